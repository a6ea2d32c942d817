"""Segmentation by a task of one's own: which pixels are a disc's, in noise. `python examples/segmentation.py`"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spiketriton
from spiketriton.data.sources import ArraySplit, Source
from spiketriton.plugins import data, task
from spiketriton.plugins.tasks import Task
from spiketriton_kernels.nn import LIF


def drawn(count, seed):  # images [N, 1, 16, 16] and the class of each pixel, [N, 16, 16]
    random = torch.Generator().manual_seed(seed)
    y, x = torch.randint(4, 12, (2, count, 1, 1), generator=random)
    disc = (torch.arange(16)[:, None] - y) ** 2 + (torch.arange(16) - x) ** 2 < 20
    images = 0.4 * disc + 0.6 * torch.rand(count, 16, 16, generator=random)
    return ArraySplit(images[:, None], disc)


@data("discs")
def discs(config):
    return Source(train=drawn(320, 0), test=drawn(80, 1), classes=("ground", "disc"))


@task("pixels")
class Pixels(Task):
    score, share, dense, targets = "iou", True, True, torch.int64

    def loss(self, currents, targets):
        return cross_entropy(self.reading(currents), targets)

    def measure(self, currents, targets):  # pixels of both, and of one of the two
        found = self.reading(currents).argmax(1)
        return torch.stack([(found & targets).sum(), (found | targets).sum()])

    def value(self, sums, images):
        return float(sums[0] / sums[1])

    def chance(self, targets):  # of calling every pixel the disc's
        return float(targets.float().mean())


def train(**keys):
    spiking = nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), LIF(step_mode="s")
    net = nn.Sequential(*spiking, nn.Conv2d(8, 2, 5, padding=2))
    own = {"plugins.modules": [__file__], "data.name": "discs", "data.augment": "none"}
    return spiketriton.train(net, "quickstart", overrides={**own, "loss.kind": "pixels"}, **keys)


if __name__ == "__main__":
    print(train().evaluate().values)
