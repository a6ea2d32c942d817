"""A run's measurements, judged as they come."""

from collections.abc import Callable, Sequence

from spiketriton.config import Recipe
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.verdict import (
    LIMITS,
    Cure,
    Learned,
    Verdict,
    Word,
    cures,
    judge,
    mean_loss,
)


class Watch:
    """Judges each measurement of a run, and tells once of each obstacle, with its cures."""

    def __init__(
        self,
        recipe: Recipe,
        counts: Sequence[int],
        tell: Callable[[int, Verdict, list[Cure]], None],
    ) -> None:
        self.recipe, self.counts, self.tell = recipe, counts, tell
        self.verdict: Verdict | None = None
        self.learned: Learned | None = None
        self._measured: Measurement | None = None
        self._losses: list[tuple[int, float]] = []
        self._told: set[Word] = set()

    def look(self, step: int, measured: Measurement) -> None:
        """Judges what was measured at `step` of the training."""
        self._measured = measured
        self._judge()
        assert self.verdict is not None
        # fp16's loss scaler finds its factor by overflowing, so values that are not finite are normal
        found = {*self.verdict.obstacles} - {Word.NOT_FINITE}
        if self.verdict.word != Word.LEARNING and not self._told.issuperset(found):
            self._told.update(found)
            self.tell(step, self.verdict, self.cures())

    def hear_loss(self, step: int, loss: float) -> None:
        """The mean loss of training since the last call, after `step`."""
        self._losses = [*self._losses, (step, loss)][-LIMITS.steps :]
        self._learned(mean_loss(self._losses), None, 0)

    def hear_test(self, accuracy: float, images: int) -> None:
        """The result of a test, which holds until there is a newer loss."""
        self._learned(None, accuracy, images)

    def cures(self) -> list[Cure]:
        """Changes that may help; none for a net without a measurement."""
        return [] if self.verdict is None else cures(self.recipe, self.verdict)

    def _learned(self, loss: float | None, accuracy: float | None, images: int) -> None:
        self.learned = Learned.of(self.recipe.loss, self.counts, loss, accuracy, images)
        self._judge()

    def _judge(self) -> None:
        if self._measured is not None:
            self.verdict = judge(self._measured, self.recipe, learned=self.learned)
