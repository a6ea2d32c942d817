"""Score and loss on the images that are not trained on, by all ranks together."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from spiketriton.data import Data, TestSet
from spiketriton.plugins.tasks import Score, Task, answers
from spiketriton.training.interrupts import StopSignals
from spiketriton.training.placement import Placement

if TYPE_CHECKING:
    from spiketriton.training.ema import MovingAverage


class Measured(NamedTuple):
    score: Score
    loss: float


@dataclass(frozen=True)
class Results:
    """What a test of a network found."""

    test: Measured
    validation: Measured | None  # on the images held out of training
    averaged: Measured | None  # of the averaged weights, on the test images
    seconds: float

    def row(self, data: Data) -> dict[str, Any]:
        """As a row of metrics.jsonl."""
        score = self.test.score
        row = score.row("test") | {
            "test_loss": self.test.loss,
            "test_images": data.test.images,
            "test_seconds": self.seconds,
        }
        if score.chance is not None:
            row |= {"test_chance": score.chance, "test_chance_spread": score.spread}
        if self.averaged is not None:
            row |= self.averaged.score.row("ema") | {"ema_loss": self.averaged.loss}
        if self.validation is not None and data.validation is not None:
            row |= self.validation.score.row("validation") | {
                "validation_loss": self.validation.loss,
                "validation_images": data.validation.images,
            }
        return row | score.kind


@dataclass(frozen=True)
class Tester:
    """Tests `model`, whose forward pass is `forward`; a signal breaks a test off.

    sums: how many the task's `measure` gives. chance: the score of guessing on the test images, where it is known.
    tell: called after each batch with its number and how many there are.
    """

    model: nn.Module
    forward: nn.Module
    task: Task
    placement: Placement
    stop: StopSignals
    tell: Callable[[int, int], None]
    sums: int
    chance: float | None

    def results(self, data: Data, average: "MovingAverage | None") -> Results | None:
        """Of the test images, of those held out, and of the averaged weights; None if a signal came."""
        start, averaged = time.perf_counter(), None
        if (test := self.tested(data.test, self.chance)) is None:
            return None
        validation = None if data.validation is None else self.tested(data.validation, None)
        if average is not None:
            with average.applied():
                averaged = self.tested(data.test, None)
        if self.stop.anywhere():
            return None
        return Results(test, validation, averaged, time.perf_counter() - start)

    @torch.no_grad()
    def tested(self, images_of: TestSet, chance: float | None) -> Measured | None:
        """On one set of images; None if a signal came meanwhile."""
        device, task = self.placement.device, self.task
        sums = torch.zeros(self.sums, device=device, dtype=torch.float64)
        loss = torch.zeros((), device=device, dtype=torch.float64)
        batches = len(images_of)
        self.model.eval()
        for done, batch in enumerate(images_of.rounds(device), 1):
            if self.stop.anywhere():
                break
            if batch is None:
                continue
            images, targets, *lengths = map(self.placement.to_device, batch)
            with self.placement.autocast():
                currents = answers(self.forward, images, lengths)
                loss += task.loss(currents, targets, *lengths) * len(targets)
            sums += task.summed(currents, targets, *lengths)
            self.tell(done, batches)
        self.model.train()
        if self.stop.anywhere():
            return None
        total = self.stop.ranks.total(torch.cat([sums, loss.view(1)])).cpu()
        many = images_of.images
        return Measured(task.scored(total[:-1], many, chance), float(total[-1] / many))
