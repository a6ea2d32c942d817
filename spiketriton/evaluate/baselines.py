"""What a score is without the order in time, by which a reader knows whether a net has used it:

steps shuffled    the same net, the steps of each sequence in a random order
the mean step     a linear classifier of the mean of each channel over the steps
number of events  of recordings: a linear classifier of ln(1 + n) and its square, n the number of events
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.data import TestSet
from spiketriton.data.stream import subset
from spiketriton.evaluate.results import Baseline
from spiketriton.plugins.tasks import Reading, answers
from spiketriton.training.trained import TrainedRun

MOST = 10_000  # training examples of a linear classifier
PENALTY = 1e-4  # of the mean square of its weights, beside the cross-entropy


def baselines_of(run: TrainedRun, test: TestSet) -> list[Baseline]:
    """Those of the run's data, on the same test; none of images, which have no time."""
    facts, task = run.data.facts, run.data.task
    if facts.move == "events":
        what, features = "the number of events alone", _numbers
    elif facts.sequence:
        what, features = "a linear classifier of the mean step", _means
    else:
        return []
    found = (
        [Baseline(name="the same net, steps shuffled", value=_shuffled(run, test))]
        if facts.sequence
        else []
    )
    if task.classifies:
        trained = _training(run, test)
        right = linear_classifier(
            features(trained), features(test), trained.targets, test.targets, len(facts.classes)
        )
        found.append(Baseline(name=what, value=right))
    return found


def _training(run: TrainedRun, test: TestSet) -> TestSet:
    """Training examples as tests show them."""
    stream = run.data.train
    members = subset(stream.members, min(MOST, len(stream.members)))
    return replace(
        test, dataset=replace(stream.dataset, mixing=None, augment=None), members=members
    )


@torch.inference_mode()
def _shuffled(run: TrainedRun, test: TestSet) -> float:
    task, generator = run.data.task, torch.Generator().manual_seed(0)
    sums, seen = torch.zeros(()), 0
    for images, *rest in test:
        mixed = run.to_device(shuffled(images, rest[1] if len(rest) > 1 else None, generator))
        targets, *lengths = (one.to(run.device) for one in rest)
        with run.autocast():
            currents = answers(run.model, mixed, lengths)
        sums = sums.to(run.device) + task.summed(currents, targets, *lengths)
        seen += len(targets)
    return task.scored(sums.cpu(), seen).value


def shuffled(x: Tensor, lengths: Tensor | None, generator: torch.Generator) -> Tensor:
    """Sequences [T, b, C], the valid steps of each in an order of its own; what is behind them stays there."""
    steps, count = x.shape[:2]
    drawn = torch.rand(steps, count, generator=generator)
    if lengths is not None:
        at = torch.arange(steps).unsqueeze(1)
        drawn = torch.where(at < lengths, drawn, 1.0 + at)
    return x.gather(0, drawn.argsort(0).unsqueeze(2).expand_as(x))


def _means(test: TestSet) -> Tensor:
    """The mean over the valid steps of each channel, float64 [N, C]."""
    reading = Reading("mean")
    return torch.cat([reading(x.double(), *lengths) for x, _, *lengths in test])


def _numbers(test: TestSet) -> Tensor:
    """ln(1 + n) and its square, of n events in all frames, float64 [N, 2]."""
    split: Any = test.dataset.split
    if hasattr(split, "facts"):  # which also counts those beyond 255 of a pixel
        counts = torch.from_numpy(split.facts["events"][test.members]).double()
    else:
        parts = np.array_split(test.members, -(-len(test.members) // test.batch_size))
        counts = torch.cat(
            [split.read(some).flatten(1).sum(1, dtype=torch.float64) for some in parts]
        )
    logarithm = counts.log1p()
    return torch.stack([logarithm, logarithm.square()], 1)


def linear_classifier(
    train: Tensor, test: Tensor, labels: Tensor, tested: Tensor, classes: int
) -> float:
    """Accuracy on `test` of a multinomial logistic regression on `train`, features [N, F], fitted until it is.

    It is convex and has a penalty, so that there is one best, whatever it begins with.
    """
    with torch.inference_mode(False), torch.enable_grad():
        train, test, labels, tested = (x.clone() for x in (train, test, labels, tested))
        std, mean = torch.std_mean(train, 0)
        train, test = ((x - mean) / std.clamp_min(1e-12) for x in (train, test))
        weight = train.new_zeros(classes, train.shape[1]).requires_grad_()
        bias = train.new_zeros(classes).requires_grad_()
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            fit = F.cross_entropy(F.linear(train, weight, bias), labels)
            value = fit + PENALTY * weight.square().mean()
            value.backward()
            return float(value.detach())

        optimizer.step(loss)
        answers_to = F.linear(test, weight, bias).argmax(1)
    return float((answers_to == tested).double().mean())
