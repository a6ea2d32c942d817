"""Losses on the read-out currents of every time step.

With o[t] the currents of step t, y the labels and CE the cross-entropy:

    cross_entropy   CE(mean_t o[t], y)
    tet             (1 - lambda) * mean_t CE(o[t], y) + lambda * mean (o - 1)^2

TET is Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient
Re-weighting" (ICLR 2022, arXiv 2202.11946); the target 1.0 of its second term, which keeps
single steps from drifting, is the default `means=1.0` of the authors' `TET_loss`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.config import LossConfig

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]  # images [b, C, H, W], labels [b]

TET_TARGET = 1.0


def build_loss(cfg: LossConfig) -> Loss:
    """The loss of a recipe: (currents `[T, B, K]` of any float, labels `[B]` int64) -> scalar.

    The scalar is the mean over the batch, computed in float32 or wider whatever the currents'
    dtype. Label smoothing spreads its share evenly over all K classes. Raises ValueError for other
    shapes.
    """
    loss = {"cross_entropy": _cross_entropy, "tet": _tet}[cfg.kind]

    def checked(currents: Tensor, labels: Tensor) -> Tensor:
        if currents.dim() != 3 or labels.shape != currents.shape[1:2]:
            raise ValueError(
                f"currents {list(currents.shape)} and labels {list(labels.shape)}: "
                "accepted: [T, B, K] and [B]"
            )
        if currents.dtype in (torch.float16, torch.bfloat16):
            currents = currents.float()
        return loss(cfg, currents, labels)

    return checked


def _cross_entropy(cfg: LossConfig, currents: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(currents.mean(0), labels, label_smoothing=cfg.label_smoothing)


def _tet(cfg: LossConfig, currents: Tensor, labels: Tensor) -> Tensor:
    # every step has as many images, so the mean over steps and images is the mean of the means
    each_step = labels.expand(currents.shape[0], -1).flatten()
    fit = F.cross_entropy(currents.flatten(0, 1), each_step, label_smoothing=cfg.label_smoothing)
    pull = (currents - TET_TARGET).square().mean()
    return (1 - cfg.tet_lambda) * fit + cfg.tet_lambda * pull
