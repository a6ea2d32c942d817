"""Several labels an image by a task of one's own: which of eight bars are there. `python examples/multi_label.py`"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import spiketriton
from spiketriton.data.sources import ArraySplit, Source
from spiketriton.plugins import data, task
from spiketriton.plugins.tasks import Task


def drawn(count, seed):  # images [N, 1, 16, 16] and whether each bar is there, [N, 8]
    random = torch.Generator().manual_seed(seed)
    there = torch.rand(count, 8, generator=random) < 0.3
    lines = there.repeat_interleave(4, 1) & (torch.arange(32) % 4 == 1)
    bars = lines[:, :16, None] | lines[:, None, 16:]
    return ArraySplit((0.7 * bars + 0.3 * torch.rand(bars.shape, generator=random))[:, None], there)


@data("bars")
def bars(config):
    return Source(train=drawn(480, 0), test=drawn(120, 1), classes=tuple("abcdefgh"))


@task("several")
class Several(Task):
    score, share, of_images, targets = "all_right", True, True, torch.int64

    def loss(self, currents, targets):
        return binary_cross_entropy_with_logits(self.reading(currents), targets.float())

    def measure(self, currents, targets):
        return ((self.reading(currents) > 0) == targets).all(1).sum()

    def chance(self, targets):  # of always answering with what is there most often
        return float(targets.unique(dim=0, return_counts=True)[1].max() / len(targets))

    def predict(self, answers):
        return answers.sigmoid()


def train(**keys):
    own = {"plugins.modules": [__file__], "data.name": "bars", "data.augment": "none"}
    own |= {"loss.kind": "several", "model.name": "mlp", "model.depth": 3}
    return spiketriton.train("quickstart", overrides=own, **keys)


if __name__ == "__main__":
    print(train().evaluate().values)
