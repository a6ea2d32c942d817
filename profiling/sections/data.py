"""The loader alone, in images per second: if it is slower than the training step, the GPU starves."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any

import torch

from profiling.contenders import OK, OURS, WRONG, Contender, Options, Spec, Verdict
from profiling.memory import Memory
from profiling.networks import Bench, Step, recipe_spec
from profiling.peers import Unavailable
from profiling.timing import Effort, Timing
from spiketriton.config import Recipe, recipe_from_toml, replace
from spiketriton.data import Data, build_data

PREFETCHED = 2  # batches that torch's DataLoader lets each worker make ahead


class Loading:
    """Section `data`: a recipe's training batches, by different numbers of worker processes."""

    name = "data"

    def __init__(self, recipes: list[Recipe]) -> None:
        self.recipes = recipes

    def specs(self, options: Options) -> list[Spec]:
        return [
            recipe_spec(recipe, options) | {"augment": recipe.data.augment, "cores": os.cpu_count()}
            for recipe in self.recipes
        ]

    def contenders(self, spec: Spec, options: Options) -> list[Contender]:
        """Ways of loading, and beside them the step that they feed."""
        recipe = recipe_from_toml(spec["toml"], spec["recipe"])
        bench = Bench(spec, options.device)

        def loader(name: str, workers: object) -> Contender:
            return Contender(name, lambda: Loader(replace(recipe, f"data.workers={workers}")))

        many = min(os.cpu_count() or 1, 8)
        return [
            loader("auto", "auto"),
            loader("no worker", 0),
            loader(f"{many} workers", many),
            Contender(STEP, lambda: Step(bench, bench.model())),
        ]

    def numbers(self, spec: Spec, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
        """Images per second, and how often a loader feeds the step: below 1 the step starves."""
        rows = {}
        for name, timing in timings.items():
            rows[name] = {"images_per_s": spec["batch"] / timing.median}
            if STEP in timings and name != STEP:
                rows[name]["of_step"] = timings[STEP].median / timing.median
        return rows


STEP = f"{OURS}'s training step"


class Loader:
    """Batches of one way of loading (the Work of a contender); one call is one batch."""

    def __init__(self, recipe: Recipe) -> None:
        self.data: Data = build_data(recipe)
        self.recipe = recipe
        self.batches = 1

    @property
    def ahead(self) -> int:
        """Batches that may lie ready before the clock starts."""
        return 1 + PREFETCHED * self.data.train.loading.workers

    def check(self) -> Verdict:
        """The first two batches are those of the training process's own loading."""
        alone = build_data(replace(self.recipe, "data.workers=0"))
        with (
            closing(self.data.train.from_step(0)) as mine,
            closing(alone.train.from_step(0)) as one,
        ):
            for _ in range(2):
                images, labels = next(mine)
                same, their_labels = next(one)
                if not (torch.equal(images, same) and torch.equal(labels, their_labels)):
                    return Verdict(WRONG, "a batch depends on the number of workers")
        return Verdict(OK, numbers={"workers": self.data.train.loading.workers})

    def prepare(self, effort: Effort) -> None:
        """Settles how many batches fill a sample: far more than may lie ready at its start."""
        one = self._seconds(2)
        self.batches = max(4 * self.ahead, int(10 * effort.seconds / one))

    def sample(self) -> float:
        """Seconds of a batch, on a stream of its own, once its workers have started."""
        return self._seconds(self.batches)

    def _seconds(self, batches: int) -> float:
        with closing(self.data.train.from_step(0)) as stream:
            next(stream)
            start = time.perf_counter()
            for _ in range(batches):
                next(stream)
            return (time.perf_counter() - start) / batches

    def memory(self) -> Memory:
        raise Unavailable("a loader has no backward")
