"""A run's measurements, judged as they come."""

from collections.abc import Callable, Iterable, Sequence

from spiketriton.config import Recipe
from spiketriton.gradients.measurement import Measurement, Signal
from spiketriton.gradients.verdict import LIMITS, Learned, Verdict, Word, judge, learned_by
from spiketriton.runs.rows import Row


class Watch:
    """Judges what `diagnose` would measure of a run of `steps` steps, and tells once of each obstacle."""

    def __init__(
        self,
        recipe: Recipe,
        counts: Sequence[int],
        steps: int,
        tell: Callable[[int, Verdict], None],
    ) -> None:
        self.recipe, self.counts, self.steps, self.tell = recipe, counts, steps, tell
        self.verdict: Verdict | None = None
        self.learned: Learned | None = None
        self._measured: tuple[Measurement, Signal] | None = None
        self._rows: list[Row] = []
        self._begun = False
        self._told: set[Word] = set()

    @property
    def obstacles(self) -> tuple[Word, ...]:
        """What stood in the way when it last looked."""
        return () if self.verdict is None else self.verdict.obstacles

    def look(self, step: int, measured: Measurement, signal: Signal) -> None:
        """Judges what was measured after `step` of the training."""
        self._measured, self._begun = (measured, signal), step > 0
        self._judge()
        assert self.verdict is not None
        # fp16's loss scaler finds its factor by overflowing, so values that are not finite are normal
        found = {*self.verdict.obstacles} - {Word.NOT_FINITE}
        stands = self.verdict.word not in (Word.LEARNING, Word.FALLING)
        if stands and not self._told.issuperset(found):
            self._told.update(found)
            self.tell(step, self.verdict)

    def recall(self, rows: Iterable[Row]) -> None:
        """The rows of a run that goes on."""
        self._rows = [*rows]
        self.learned = learned_by(self._rows, self.recipe, self.counts, self.steps)

    def hear(self, row: Row) -> None:
        """A row of metrics.jsonl."""
        self._begun = True
        recent = [kept for kept in self._rows if kept["step"] > row["step"] - LIMITS.steps]
        tests = [kept for kept in self._rows if kept["kind"] == "eval" and kept not in recent]
        self._rows = [*tests[-1:], *recent, row]
        self.learned = learned_by(self._rows, self.recipe, self.counts, self.steps)
        self._judge()

    def _judge(self) -> None:
        if self._measured is not None:
            measured, signal = self._measured
            self.verdict = judge(measured, self.recipe, signal, self.learned, begun=self._begun)
