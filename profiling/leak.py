"""`leak [RECIPE]`: resident memory over a long training, and whether it keeps growing."""

from __future__ import annotations

import io
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiketriton.config import Recipe, replace
from spiketriton.data import build_data
from spiketriton.errors import UserError
from spiketriton.runs.folder import RunFolder
from spiketriton.show.display import Display
from spiketriton.show.figures import BLUE, ORANGE, STYLE
from spiketriton.trainer import Trainer

SAMPLES = 200
TOLERANCE = 8.0
"""MiB between the second and the last quarter of a run: 8 KiB a step over 2,000 steps is found."""


@dataclass(frozen=True)
class Growth:
    """`mib`: the median of the last quarter's samples beyond that of the second quarter's.

    The first quarter is warm-up: libraries, caches and the allocator's pools fill.
    """

    mib: float

    @property
    def leaks(self) -> bool:
        return self.mib > TOLERANCE

    @staticmethod
    def of(series: Sequence[float]) -> Growth:
        """From samples at even distances, in MiB. UserError: fewer than 8."""
        if len(series) < 8:
            raise UserError(f"{len(series)} samples of memory: accepted: 8 or more, by more steps")
        quarter = len(series) // 4
        second, last = series[quarter : 2 * quarter], series[-quarter:]
        return Growth(statistics.median(last) - statistics.median(second))


def resident_mib() -> float:
    """Of this process, now. UserError: the system has no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        raise UserError("leak reads /proc/self/statm, which only Linux has") from None
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Watched(Display):
    """A silent display that samples the resident memory as the steps go by."""

    def __init__(self, every: int) -> None:
        super().__init__(io.StringIO())
        self.every = every
        self.steps: list[int] = []
        self.mib: list[float] = []

    def note(self, text: str) -> None: ...

    def advance(self, step: int) -> None:
        if step % self.every == 0:
            self.steps.append(step)
            self.mib.append(resident_mib())


def leak(recipe: Recipe, steps: int, picture: Path) -> dict[str, Any]:
    """Trains as the command does (monitor, rows, tests, checkpoints); a row, and its picture."""
    recipe = replace(recipe, f"train.epochs={steps}", f"train.max_steps={steps}")
    display = Watched(max(1, steps // SAMPLES))
    with tempfile.TemporaryDirectory(prefix="spiketriton-leak-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", recipe.name)
        trainer = Trainer(recipe, build_data(recipe), folder, display)
        folder.begin_session(recipe, {})
        trainer.fit()
    growth = Growth.of(display.mib)
    row = {
        "recipe": recipe.name,
        "T": recipe.time_steps,
        "batch": recipe.train.batch_size,
        "status": "leaks" if growth.leaks else "ok",
        "why": f"resident memory grew by {growth.mib:.1f} MiB between the second and the last quarter",
        "growth_mib": round(growth.mib, 3),
        "tolerance_mib": TOLERANCE,
        "steps": display.steps,
        "resident_mib": [round(mib, 2) for mib in display.mib],
    }
    draw(row, picture)
    return row


def draw(row: dict[str, Any], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(row["steps"], row["resident_mib"], color=BLUE)
        quarter = len(row["steps"]) // 4
        for part in (slice(quarter, 2 * quarter), slice(-quarter, None)):
            xs, level = row["steps"][part], statistics.median(row["resident_mib"][part])
            axes.plot([xs[0], xs[-1]], [level, level], color=ORANGE, lw=2.5)
            axes.annotate(
                f"{level:.1f} MiB",
                (xs[-1], level),
                xytext=(0, 8),
                textcoords="offset points",
                ha="right",
                color=ORANGE,
            )
        axes.set_ylim(0, 1.25 * max(row["resident_mib"]))
        axes.set_xlabel("training step")
        axes.set_ylabel("resident memory, MiB")
        axes.set_title(f"{row['recipe']}: {row['growth_mib']:+.1f} MiB from quarter to quarter")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
