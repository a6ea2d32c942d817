"""Regression by a task of one's own: where in the image a spot is. `python examples/regression.py`"""

import torch

import spiketriton
from spiketriton.data.sources import ArraySplit, Source
from spiketriton.plugins import data, task
from spiketriton.plugins.tasks import Task


def drawn(count, seed):  # images [N, 1, 16, 16] and places from -1 to 1, [N, 2]
    random = torch.Generator().manual_seed(seed)
    places = 2 * torch.rand(count, 2, generator=random) - 1
    down, across = (torch.arange(16) - 7.5 - 4.5 * places.T[:, :, None]).square()
    images = torch.exp(-(down[:, :, None] + across[:, None]) / 8)
    return ArraySplit(images[:, None], places)


@data("spots")
def spots(config):
    return Source(train=drawn(320, 0), test=drawn(80, 1), classes=("down", "across"))


@task("places")
class Places(Task):
    score, higher_is_better = "distance", False  # in pixels, the mean over images

    def loss(self, currents, targets):
        return (self.reading(currents) - targets).square().mean()

    def measure(self, currents, targets):
        return 4.5 * (self.reading(currents) - targets).norm(dim=1).sum()

    def chance(self, targets):  # of always answering with the middle
        return float(4.5 * (targets - targets.mean(0)).norm(dim=1).mean())


def train(**keys):
    own = {"plugins.modules": [__file__], "data.name": "spots", "data.augment": "none"}
    return spiketriton.train("quickstart", overrides={**own, "loss.kind": "places"}, **keys)


if __name__ == "__main__":
    print(train().evaluate().values)
