"""mixup and CutMix: training images mixed in pairs, and their labels by the same shares.

A batch is in random order, so its neighbours 2k and 2k + 1 are a random pair. The draw depends on the seed, the
step and the pair's place in the step's batch alone: not on micro-batches or ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spiketriton.data.counter_rng import mix, on_device
from spiketriton.data.transforms import in_boxes

_MIXING = 5  # keeps these draws apart from those of stream.py
_SMALLEST = 1e-6  # alpha below which a beta distribution cannot be told from a coin, nor computed


@dataclass(frozen=True)
class Mixing:
    """How pairs are mixed; with both of them above 0 a fair coin chooses for each pair.

    mixup: alpha of Zhang et al. 2018 (arXiv 1710.09412): an image keeps the share s ~ Beta(alpha, alpha) of its values.
    cutmix: alpha of Yun et al. 2019 (arXiv 1905.04899): a box of the share 1 - s of the area, its centre anywhere, is
     cut off at the borders and comes from the other image.
    epochs: in which pairs are mixed, from the first; 0: all.
    """

    mixup: float
    cutmix: float
    classes: int
    epochs: int = 0

    def draw(self, seed: int, step: int, pairs: int, epoch: int = 0) -> np.ndarray:
        """For all pairs of a step: whether boxes are cut, share, centre of the box in shares; float64 [pairs, 4]."""
        generator = np.random.RandomState(int(mix(seed, _MIXING, step)[0]) % (1 << 32))
        coins, down, across = generator.random_sample((3, pairs))
        if self.mixup > 0 and self.cutmix > 0:
            cuts = coins < 0.5
        else:
            cuts = np.full(pairs, self.cutmix > 0)
        blended, cut = (
            generator.beta(max(alpha, _SMALLEST), max(alpha, _SMALLEST), pairs)
            for alpha in (self.mixup, self.cutmix)
        )
        share = np.where(cuts, cut, blended)
        whole = np.full(pairs, 0 < self.epochs <= epoch)
        return np.stack([cuts & ~whole, np.where(whole, 1.0, share), down, across], 1)

    def mixed(self, images: Tensor, labels: Tensor, draws: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mixed images [..., b, C, H, W], and the probabilities of their classes, float32 [b, K], on their device.

        draws: some rows of `draw`, [b / 2, 4]; all frames of a recording are cut alike.
        """
        cuts, share, box = draws[:, 0] > 0, draws[:, 1], boxes(draws, *images.shape[-2:])
        share = np.where(
            cuts, 1 - box[:, 2] * box[:, 3] / (images.shape[-2] * images.shape[-1]), share
        )
        others = _exchanged(images, -4)
        if not cuts.all():
            kept = _of_each(np.where(cuts, 1.0, share), images).view(-1, 1, 1, 1)
            images = images * kept + others * (1 - kept)  # not lerp, which may round by batch size
        if cuts.any():
            images = torch.where(in_boxes(box.repeat(2, 0), images), others, images)
        number = torch.arange(self.classes, device=labels.device)
        one = (labels[:, None] == number).float()
        mine = _of_each(share, images).view(-1, 1)
        return images, one * mine + _exchanged(one, -2) * (1 - mine)


def boxes(draws: np.ndarray, height: int, width: int) -> np.ndarray:
    """The box that each pair exchanges: top, left, height, width, int64 [pairs, 4]; 0 for mixup."""
    cuts, share, *centre = draws.T
    edges = []
    for middle, size in zip(centre, (height, width), strict=True):
        side = (size * np.sqrt(1 - share)).astype(np.int64)
        start = (middle * size).astype(np.int64) - side // 2
        low, high = start.clip(0, size), (start + side).clip(0, size)
        edges.append((low, high - low))
    (top, high), (left, wide) = edges
    return np.stack([top, left, high, wide], 1) * (cuts > 0)[:, None].astype(np.int64)


def _exchanged(x: Tensor, dim: int) -> Tensor:
    """Each entry 2k in place of 2k + 1 and the other way round; `dim` counts from the end, -1 is the last."""
    return x.unflatten(dim, (-1, 2)).flip(dim).flatten(dim - 1, dim)


def _of_each(of_pairs: np.ndarray, images: Tensor) -> Tensor:
    """A number of each pair for both of its images, float32 [b]."""
    return on_device(of_pairs.astype(np.float32).repeat(2), images.device)
