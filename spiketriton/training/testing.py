"""Accuracy and loss on the images that are not trained on, by all ranks together."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from spiketriton.data import Data, TestSet
from spiketriton.training.ema import MovingAverage
from spiketriton.training.interrupts import StopSignals
from spiketriton.training.losses import Loss
from spiketriton.training.placement import Placement


class Score(NamedTuple):
    """accuracy: 0 to 1."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Results:
    """What a test of a network found."""

    test: Score
    validation: Score | None  # on the images held out of training
    averaged: Score | None  # of the averaged weights, on the test images
    seconds: float

    def row(self, data: Data) -> dict[str, float]:
        """As a row of metrics.jsonl."""
        row = {
            "test_accuracy": self.test.accuracy,
            "test_loss": self.test.loss,
            "test_images": data.test.images,
            "test_largest_class": data.test.largest_class,
            "test_seconds": self.seconds,
        }
        if self.averaged is not None:
            row |= {"ema_accuracy": self.averaged.accuracy, "ema_loss": self.averaged.loss}
        if self.validation is not None and data.validation is not None:
            row |= {
                "validation_accuracy": self.validation.accuracy,
                "validation_loss": self.validation.loss,
                "validation_images": data.validation.images,
            }
        return row


@dataclass(frozen=True)
class Tester:
    """Tests `model`, whose forward pass is `forward`; a signal breaks a test off.

    tell: called after each batch with its number and how many there are.
    """

    model: nn.Module
    forward: nn.Module
    loss: Loss
    placement: Placement
    stop: StopSignals
    tell: Callable[[int, int], None]

    def results(self, data: Data, average: MovingAverage | None) -> Results | None:
        """Of the test images, of those held out, and of the averaged weights; None if a signal came."""
        start, averaged = time.perf_counter(), None
        if (test := self.score(data.test)) is None:
            return None
        validation = None if data.validation is None else self.score(data.validation)
        if average is not None:
            with average.applied():
                averaged = self.score(data.test)
        if self.stop.anywhere():
            return None
        return Results(test, validation, averaged, time.perf_counter() - start)

    @torch.no_grad()
    def score(self, images_of: TestSet) -> Score | None:
        """On one set of images; None if a signal came meanwhile."""
        device = self.placement.device
        correct = torch.zeros((), device=device, dtype=torch.int64)
        loss = torch.zeros((), device=device, dtype=torch.float64)
        batches = len(images_of)
        self.model.eval()
        for done, batch in enumerate(images_of.rounds(device), 1):
            if self.stop.anywhere():
                break
            if batch is None:
                continue
            images, labels = map(self.placement.to_device, batch)
            with self.placement.autocast():
                currents = self.forward(images)
                loss += self.loss(currents, labels) * len(labels)
            correct += (currents.mean(0).argmax(1) == labels).sum()
            self.tell(done, batches)
        self.model.train()
        if self.stop.anywhere():
            return None
        sums = self.stop.ranks.total(torch.stack([correct.double(), loss]))
        return Score(*(sums / images_of.images).tolist())
