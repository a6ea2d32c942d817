"""Functions of the caller's that a training calls: see docs/own_code.md. What one raises ends the run as an error."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass
class Hooks:
    """Each may be None; one that returns True ends the run after the step, saved, as if it were done.

    on_row: after each row of metrics.jsonl, "kind" "train" or "eval", with a copy of the row.
    on_step: after each optimizer step, with its number; the first is 1. Reading a number of the step's from a GPU here
        would wait for it: rows have them.
    on_checkpoint: after last.pt was written, with its path.
    """

    on_row: Callable[[Row], Any] | None = None
    on_step: Callable[[int], Any] | None = None
    on_checkpoint: Callable[[Path], Any] | None = None
    stops: bool = False  # one has returned True

    def row(self, row: Row) -> None:
        self._tell(self.on_row, dict(row))

    def step(self, step: int) -> None:
        self._tell(self.on_step, step)

    def checkpoint(self, path: Path) -> None:
        self._tell(self.on_checkpoint, path)

    def _tell(self, hook: Callable[..., Any] | None, what: Any) -> None:
        if hook is not None and hook(what) is True:
            self.stops = True
