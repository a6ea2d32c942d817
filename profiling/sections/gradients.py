"""Command `gradients`: a training step with the gradient monitor off, and measuring every time."""

from __future__ import annotations

from typing import Any

from profiling.harness.contenders import OURS, Contender, Options, Row
from profiling.harness.timing import Timing
from profiling.sections.step import Bench, Step, TrainingStep
from spiketriton.config import Recipe
from spiketriton.gradients.monitor import GradientMonitor
from spiketriton.models import Network

OFF, EVERY = f"{OURS} monitor off", f"{OURS} monitor on every step"


class Monitoring(TrainingStep):
    def __init__(self, recipe: Recipe, options: Options) -> None:
        super().__init__(recipe, options)
        self.spec["measures_every"] = recipe.train.log_every

    def contenders(self, options: Options) -> list[Contender]:
        bench = Bench(self, options.device)
        return [
            Contender(OFF, lambda: Step(bench, bench.model())),
            Contender(EVERY, lambda: MonitoredStep(bench, bench.model())),
        ]

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        """`cost`: of a measured step; `cost_in_training`: spread over the steps between two."""
        if len(timings) < 2:
            return {}
        ratio = timings[EVERY].ratio_to(timings[OFF])
        shares = {"cost": 0.5, "cost_p20": 0.2, "cost_p80": 0.8}
        costs = {name: ratio.quantile(share) - 1 for name, share in shares.items()}
        return {EVERY: costs | {"cost_in_training": costs["cost"] / self.spec["measures_every"]}}


class MonitoredStep(Step):
    """A step whose gradients the trainer's own monitor measures; `rows`: of the last one."""

    def __init__(self, bench: Bench, model: Network) -> None:
        super().__init__(bench, model)
        self.rows: list[dict[str, Any]] = []
        self.monitor = GradientMonitor(
            model,
            batch=bench.spec["batch"],
            image_shape=tuple(bench.spec["image"]),
            scale=self.scaler.get_scale,
            write=lambda step, measured: setattr(self, "rows", measured.rows(step)),
        )

    def backward(self) -> None:
        with self.monitor.watch():
            super().backward()
        self.monitor.read(self.turn + 1)
