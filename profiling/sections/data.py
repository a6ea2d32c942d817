"""Command `data`: the loader alone, in images per second; if the step is faster, the GPU starves."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any

import torch

from profiling.harness.contenders import OURS, Contender, Options, Status, Verdict, Work
from profiling.harness.timing import Effort, Timing
from profiling.sections.step import Bench, RecipeCase, Step
from spiketriton.config import Recipe, replace
from spiketriton.data import build_data

PREFETCHED = 2  # batches that torch's DataLoader lets each worker make ahead
STEP = f"{OURS}'s training step"


class Loading(RecipeCase):
    """A recipe's training batches, by different numbers of worker processes, and the step they feed."""

    def __init__(self, recipe: Recipe, options: Options) -> None:
        super().__init__(recipe, options)
        self.spec |= {"augment": recipe.data.augment, "cores": os.cpu_count()}

    def contenders(self, options: Options) -> list[Contender]:
        bench = Bench(self, options.device)

        def loader(name: str, workers: object) -> Contender:
            return Contender(name, lambda: Loader(replace(self.recipe, f"data.workers={workers}")))

        many = min(os.cpu_count() or 1, 8)
        ways = {"auto": "auto", "no worker": 0, f"{many} workers": many}
        step = Contender(STEP, lambda: Step(bench, bench.model()))
        return [*(loader(name, workers) for name, workers in ways.items()), step]

    def numbers(self, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
        """Images per second, and how often a loader feeds the step: below 1 the step starves."""
        rows = self.images_per_s(timings)
        if self.spec["frames"]:  # the training process alone is one core
            shown = self.recipe.time_steps - self.recipe.data.augmentation.delete
            for row in rows.values():
                row["frames_per_s"] = row["images_per_s"] * shown
        for name in timings if STEP in timings else ():
            if name != STEP:
                rows[name]["of_step"] = timings[STEP].median / timings[name].median
        return rows


class Loader(Work):
    """Batches of one way of loading; one call is one batch."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.batches = recipe, 1
        self.train = build_data(recipe).train

    def check(self) -> Verdict:
        """The first two batches are those of the training process's own loading."""
        alone = build_data(replace(self.recipe, "data.workers=0")).train
        with closing(self.train.from_step(0)) as mine, closing(alone.from_step(0)) as one:
            for _ in range(2):
                pairs = zip(next(mine), next(one), strict=True)
                if not all(torch.equal(a, b) for a, b in pairs):
                    return Verdict(Status.WRONG, "a batch depends on the number of workers")
        return Verdict(Status.OK, numbers={"workers": self.train.loading.workers})

    def prepare(self, effort: Effort) -> None:
        """Determines how many batches fill a sample: far more than may be ready at its start."""
        ahead = 1 + PREFETCHED * self.train.loading.workers
        self.batches = max(4 * ahead, int(10 * effort.seconds / self._seconds(2)))

    def sample(self) -> float:
        """Seconds of a batch, on a stream of its own, once its workers have started."""
        return self._seconds(self.batches)

    def _seconds(self, batches: int) -> float:
        with closing(self.train.from_step(0)) as stream:
            next(stream)
            start = time.perf_counter()
            for _ in range(batches):
                next(stream)
            return (time.perf_counter() - start) / batches
