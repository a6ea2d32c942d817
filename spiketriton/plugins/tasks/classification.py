"""Classification, the built-in task: losses on the currents of each time step o[t], labels y, the cross-entropy CE:

    cross_entropy   CE(read o, y), the mean over t or the last step's (`reading.py`)
    tet             (1 - lambda) * mean_t CE(o[t], y) + lambda * mean (o - 1)^2, whatever is read in a test

TET is Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting" (ICLR 2022,
arXiv 2202.11946); the target 1.0 is the default `means=1.0` of the authors' `TET_loss`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton import plugins
from spiketriton.config import LossConfig
from spiketriton.config.names import NONE
from spiketriton.config.parts import chosen
from spiketriton.plugins.tasks.reading import Reading
from spiketriton.plugins.tasks.task import Loss, Task
from spiketriton.system.errors import UserError

TET_TARGET = 1.0


def task_of(cfg: LossConfig, class_counts: Sequence[int] = ()) -> Task:
    """The task of a recipe. `class_counts`: the training images of each class, for weights that balance them.

    UserError: a plugin made something else, or the recipe has keys that only classification reads.
    """
    part = chosen("losses", cfg.kind)
    if part.built_in:
        return Classification(cfg, class_counts)
    what = "function of currents and labels, or a spiketriton.plugins.tasks.Task"
    made = part.checked(part.of(cfg), Callable | Task, what)
    if not isinstance(made, Task):
        return Classification(cfg, class_counts, made)
    from spiketriton.plugins.tasks.own import refuse_unfit

    refuse_unfit(cfg, made)
    made.reading = Reading(cfg.read)
    return made


def build_loss(cfg: LossConfig, class_counts: Sequence[int] = ()) -> Loss:
    """The loss of a recipe: (currents `[T, B, ...]` of any float, targets `[B, ...]`) -> scalar in float32 or wider."""
    return task_of(cfg, class_counts).loss


class Classification(Task):
    """One class for each image. The score is the accuracy."""

    score = "accuracy"
    targets = torch.int64
    share = of_images = built_in = classifies = moves = True

    def __init__(
        self, cfg: LossConfig, class_counts: Sequence[int] = (), own: Loss | None = None
    ) -> None:
        """own: the loss of a plugin."""
        self.cfg, self.class_counts, self.own = cfg, class_counts, own
        self.reading = Reading(cfg.read)

    def target_shape(self, outputs: int, side: int) -> tuple[int, ...]:
        return ()

    def unsound(self, targets: Tensor, outputs: int) -> str:
        low, high = int(targets.min()), int(targets.max())
        if low >= 0 and high < outputs:
            return ""
        return f"labels from {low} to {high}; accepted with {outputs} classes: 0 to {outputs - 1}"

    @cached_property
    def loss(self) -> Loss:
        """(currents `[T, B, K]` of any float, labels `[B]` int64) -> scalar in float32 or wider.

        The built-in ones also take labels `[B, K]`, the probabilities of the classes, in which they are linear. Class
        weights multiply an image's cross-entropy; balanced they are N / (K n[k]), n[k] the `class_counts` of the N
        training images. The mean is taken over images, not over weights, so that parts of a batch add up.
        A third argument, lengths int64 [B], says how many steps of each sequence are valid; a plugin's loss is called
        with it where there are lengths. ValueError: other shapes.
        """
        cfg = self.cfg
        fit = CrossEntropy(cfg.label_smoothing, self._weights())
        loss = self.own or chosen("losses", cfg.kind).make(cfg, fit)

        def checked(currents: Tensor, labels: Tensor, lengths: Tensor | None = None) -> Tensor:
            of_images = currents.shape[1:] if labels.is_floating_point() else currents.shape[1:2]
            if currents.dim() != 3 or labels.shape != of_images:
                raise ValueError(
                    f"currents {list(currents.shape)} and labels {list(labels.shape)} of {labels.dtype}: "
                    "accepted: [T, B, K] and [B], or probabilities [B, K]"
                )
            if currents.dtype in (torch.float16, torch.bfloat16):
                currents = currents.float()
            return loss(currents, labels, *([] if lengths is None else [lengths]))

        return checked

    def _weights(self) -> Tensor | None:
        given, counts = self.cfg.class_weights, self.class_counts
        if given == "none":
            return None
        if given == "balanced":
            if not any(counts):
                raise ValueError(
                    "balanced class weights need the number of training images of each class"
                )
            n = torch.tensor(counts, dtype=torch.float64)
            # 0 for a class without images
            return torch.where(n > 0, n.sum() / (n.count_nonzero() * n.clamp(min=1)), 0.0)
        if counts and len(given) != len(counts):
            raise UserError(
                f"loss.class_weights has {len(given)} weights for {len(counts)} classes; accepted: one for each"
            )
        return torch.tensor(given, dtype=torch.float64)

    def measure(self, currents: Tensor, targets: Tensor, lengths: Tensor | None = None) -> Tensor:
        return (self.reading(currents, lengths).argmax(1) == targets).sum()

    def summed_so_far(
        self, currents: Tensor, targets: Tensor, lengths: Tensor | None = None
    ) -> Iterator[Tensor]:
        for answers in self.reading.so_far(currents, lengths):
            yield self.summed(answers.unsqueeze(0), targets)

    def predict(self, currents: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().predict(currents, lengths).softmax(1)

    def groups(self, targets: Tensor) -> Tensor:
        return targets

    def chance(self, targets: Tensor) -> float:
        return float(np.bincount(targets.numpy()).max() / len(targets))

    def guess_loss(self, counts: tuple[int, ...]) -> float | None:
        """The least that one answer to all images has; a teacher's loss has no known value for guessing.

        Without smoothing and weights it is the entropy of the classes' shares. TET's pull may add to its part of that.
        """
        cfg = self.cfg
        if cfg.kind not in ("cross_entropy", "tet") or cfg.teacher != NONE or sum(counts) == 0:
            return None
        part = 1 - cfg.tet_lambda if cfg.kind == "tet" else 1
        shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        shares = (1 - cfg.label_smoothing) * shares + cfg.label_smoothing / len(counts)
        weights = Classification(cfg, counts)._weights()
        due = shares if weights is None else weights * shares
        return float(-part * torch.xlogy(due, due / due.sum()).sum())

    def count(self, targets: Tensor, outputs: int) -> tuple[int, ...]:
        return tuple(targets.bincount(minlength=outputs).tolist())


@dataclass
class CrossEntropy:
    """Cross-entropy of currents [B, K] and labels [B] or [B, K], the mean over images, or [B] of each ("none")."""

    smoothing: float
    weights: Tensor | None  # of the classes
    reduction: Literal["mean", "none"] = "mean"

    def __call__(self, currents: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            labels = labels.to(currents)
        if self.weights is None:
            return F.cross_entropy(
                currents, labels, label_smoothing=self.smoothing, reduction=self.reduction
            )
        self.weights = self.weights.to(currents.device)  # once: a copy to the device waits for it
        weights = self.weights.to(currents.dtype)
        each = F.cross_entropy(
            currents, labels, weights, label_smoothing=self.smoothing, reduction="none"
        )
        return each.mean() if self.reduction == "mean" else each


@plugins.loss("cross_entropy")
def _cross_entropy(cfg: LossConfig, fit: CrossEntropy) -> Loss:
    reading = Reading(cfg.read)
    return lambda currents, labels, lengths=None: fit(reading(currents, lengths), labels)


@plugins.loss("tet")
def _tet(cfg: LossConfig, fit: CrossEntropy) -> Loss:
    def loss(currents: Tensor, labels: Tensor, lengths: Tensor | None = None) -> Tensor:
        each_step = labels.expand(currents.shape[0], *labels.shape).flatten(0, 1)
        if lengths is None:
            # every step has as many images, so the mean over steps and images is the mean of the means
            fitted = fit(currents.flatten(0, 1), each_step)
            pull = (currents - TET_TARGET).square().mean()
        else:  # of each sequence the mean over its valid steps, then over sequences
            mean, each = Reading("mean"), replace(fit, reduction="none")
            currents = torch.where(mean.steps(currents, lengths), currents, 0)
            of_steps = each(currents.flatten(0, 1), each_step).view(currents.shape[:2])
            fitted = mean(of_steps, lengths).mean()
            pull = mean((currents - TET_TARGET).square(), lengths).mean()
        return (1 - cfg.tet_lambda) * fitted + cfg.tet_lambda * pull

    return loss
