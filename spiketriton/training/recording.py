"""The rows of a run: to its folder, the screen, the caller's functions, and who judges them."""

from spiketriton.config import Recipe
from spiketriton.data import Data
from spiketriton.gradients.measurement import Measurement, Signal
from spiketriton.gradients.watch import Watch
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import Row
from spiketriton.show.verdict import warning
from spiketriton.training.display import Display
from spiketriton.training.hooks import Hooks


class Recorder:
    """Takes each row once and hands it to all who want it."""

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        folder: RunFolder,
        display: Display,
        hooks: Hooks,
        steps: int,
    ) -> None:
        self.data, self.folder, self.display, self.hooks = data, folder, display, hooks
        self.watch = Watch(
            recipe,
            data.facts.class_counts,
            steps,
            lambda step, verdict: display.warn(warning(step, verdict)),
        )

    def add(self, row: Row) -> None:
        """A row of metrics.jsonl, which says more of synthetic images and of a split."""
        if self.data.synthetic:
            row["synthetic"] = True
        if self.data.facts.split and row["kind"] == "eval":
            row["split"] = self.data.facts.split
        self.folder.metrics.append([row])
        self.watch.hear(row)
        self.display.row(row, self.watch.verdict)
        self.hooks.row(row)

    def add_gradients(self, step: int, measured: Measurement) -> None:
        """The rows of gradients.jsonl for one step."""
        self.folder.gradients.add(measured.lines(step))

    def judge(self, step: int, measured: Measurement, signal: Signal) -> None:
        """What `diagnose` would measure after this step; the report reads it in judged.jsonl."""
        self.watch.look(step, measured, signal)
        kept = vars(signal) | {"overlap": signal.overlap.tolist(), "weights": measured.weights}
        self.folder.judged.append([{"step": step, "rows": measured.rows(), **kept}])
