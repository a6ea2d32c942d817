"""When a training's state is written: once for each step, by the first rank, and whole whatever signal comes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from spiketriton.runs.checkpoint import Checkpoints, State
from spiketriton.training.interrupts import StopSignals


class Saver:
    """Writes the last and the best state of a run; a second signal of `stop` waits meanwhile.

    told: called with the path of each last.pt. saved_at: the step of the newest last.pt, unless something was found
    out about that step since.
    """

    def __init__(
        self, checkpoints: Checkpoints, stop: StopSignals, told: Callable[[Path], None]
    ) -> None:
        self.checkpoints, self.stop, self.told = checkpoints, stop, told
        self.saved_at: int | None = None

    def save_last(self, step: int, state: Callable[[], State]) -> None:
        """Where it cannot be written, `saved_at` stays and a warning says why."""
        if self._written(self.checkpoints.save_last, state):
            self.saved_at = step
            self.told(self.checkpoints.folder / "last.pt")

    def save_best(self, state: Callable[[], State]) -> None:
        self._written(self.checkpoints.save_best, state)

    def _written(self, write: Callable[[State], bool], state: Callable[[], State]) -> bool:
        with self.stop.saving():
            return self.stop.ranks.decide(partial(write, state()))
