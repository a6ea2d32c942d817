"""Losses on the read-out currents of every time step, o[t], with labels y and the cross-entropy CE:

    cross_entropy   CE(mean_t o[t], y)
    tet             (1 - lambda) * mean_t CE(o[t], y) + lambda * mean (o - 1)^2

TET is Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting" (ICLR 2022,
arXiv 2202.11946); the target 1.0 is the default `means=1.0` of the authors' `TET_loss`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton import plugins
from spiketriton.config import LossConfig
from spiketriton.config.parts import chosen
from spiketriton.system.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]  # images [b, C, H, W] or frames [T, b, C, H, W]; labels [b] or [b, K]

TET_TARGET = 1.0


def build_loss(cfg: LossConfig, class_counts: Sequence[int] = ()) -> Loss:
    """The loss of a recipe: (currents `[T, B, K]` of any float, labels `[B]` int64) -> scalar in float32 or wider.

    The built-in ones also take labels `[B, K]`, the probabilities of the classes, in which they are linear. Class
    weights multiply an image's cross-entropy; balanced they are N / (K n[k]), n[k] the `class_counts` of the N
    training images. The mean is taken over images, not over weights, so that parts of a batch add up. ValueError:
    other shapes.
    """
    weights = None
    if cfg.class_weights == "balanced":
        if not any(class_counts):
            raise ValueError(
                "balanced class weights need the number of training images of each class"
            )
        n = torch.tensor(class_counts, dtype=torch.float64)
        # 0 for a class without images
        weights = torch.where(n > 0, n.sum() / (n.count_nonzero() * n.clamp(min=1)), 0.0)
    elif cfg.class_weights != "none":
        weights = torch.tensor(cfg.class_weights, dtype=torch.float64)
        if class_counts and len(weights) != len(class_counts):
            raise UserError(
                f"loss.class_weights has {len(weights)} weights for {len(class_counts)} classes; accepted: one for each"
            )
    fit = CrossEntropy(cfg.label_smoothing, weights)
    part = chosen("losses", cfg.kind)
    loss = part.make(cfg, fit) if part.built_in else part.make(cfg)

    def checked(currents: Tensor, labels: Tensor) -> Tensor:
        of_images = currents.shape[1:] if labels.is_floating_point() else currents.shape[1:2]
        if currents.dim() != 3 or labels.shape != of_images:
            raise ValueError(
                f"currents {list(currents.shape)} and labels {list(labels.shape)} of {labels.dtype}: "
                "accepted: [T, B, K] and [B], or probabilities [B, K]"
            )
        if currents.dtype in (torch.float16, torch.bfloat16):
            currents = currents.float()
        return loss(currents, labels)

    return checked


@dataclass
class CrossEntropy:
    """Cross-entropy of currents [B, K] and labels [B] or [B, K], the mean over images."""

    smoothing: float
    weights: Tensor | None  # of the classes

    def __call__(self, currents: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            labels = labels.to(currents)
        if self.weights is None:
            return F.cross_entropy(currents, labels, label_smoothing=self.smoothing)
        self.weights = self.weights.to(currents.device)  # once: a copy to the device waits for it
        weights = self.weights.to(currents.dtype)
        each = F.cross_entropy(
            currents, labels, weights, label_smoothing=self.smoothing, reduction="none"
        )
        return each.mean()


@plugins.loss("cross_entropy")
def _cross_entropy(cfg: LossConfig, fit: CrossEntropy) -> Loss:
    return lambda currents, labels: fit(currents.mean(0), labels)


@plugins.loss("tet")
def _tet(cfg: LossConfig, fit: CrossEntropy) -> Loss:
    def loss(currents: Tensor, labels: Tensor) -> Tensor:
        # every step has as many images, so the mean over steps and images is the mean of the means
        each_step = labels.expand(currents.shape[0], *labels.shape).flatten(0, 1)
        pull = (currents - TET_TARGET).square().mean()
        return (1 - cfg.tet_lambda) * fit(currents.flatten(0, 1), each_step) + cfg.tet_lambda * pull

    return loss
