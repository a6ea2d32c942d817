"""When a run logs, tests and saves, how far it has come, and how a session of it ended."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from spiketriton.config import Recipe
from spiketriton.data import Data
from spiketriton.plugins.tasks import Score
from spiketriton.training.testing import Results

SELDOM = 50  # measurements, of which one tells the ways through time apart, in two passes more
APART = 500  # steps between measurements of a net that is judged, each of which costs up to four steps of 32 images


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counts are optimizer steps; step n is the n-th, so 0 is before the first."""

    steps: int
    epoch_steps: int
    batch_size: int
    log_every: int
    test_every: int
    save_every: int
    measure_every: int  # of the gradient monitor; 0: never
    test_images: int

    @classmethod
    def of(cls, recipe: Recipe, data: Data) -> "Plan":
        train, epoch_steps = recipe.train, data.train.steps_per_epoch
        steps = train.epochs * epoch_steps
        return cls(
            steps=min(steps, train.max_steps or steps),
            epoch_steps=epoch_steps,
            batch_size=train.batch_size,
            log_every=train.log_every,
            test_every=epoch_steps,
            save_every=recipe.checkpoint.every or epoch_steps,
            measure_every=train.log_every * recipe.monitor.enabled,
            test_images=data.test.images,
        )

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.steps

    def tests(self, step: int) -> bool:
        """After every epoch, and at the end."""
        return step > 0 and (step % self.test_every == 0 or step == self.steps)

    def judges(self, step: int) -> bool:
        """Whether a net without an obstacle is measured at this test: the last one, or the first of `APART` steps."""
        return step == self.steps or step // APART > (step - self.test_every) // APART

    def saves(self, step: int) -> bool:
        """Every `checkpoint.every` steps, after each epoch, and at the end."""
        ends = step % self.epoch_steps == 0 or step == self.steps
        return step > 0 and (step % self.save_every == 0 or ends)

    @property
    def first_save(self) -> int:
        """The step of the first checkpoint."""
        return min(self.save_every, self.epoch_steps, self.steps)

    def measures(self, step: int) -> bool:
        """Whether the gradients of this step are measured: now and then, the first and the last."""
        every = self.measure_every
        return every > 0 and (step in (1, self.steps) or step % every == 0)

    def tells_ways(self, step: int) -> bool:
        """Whether the ways through time are told apart: at every fiftieth measurement, the first and the last."""
        return self.measures(step) and (
            step in (1, self.steps) or step % (SELDOM * self.measure_every) == 0
        )

    def epoch(self, step: int) -> float:
        """Passes over the training images after `step` steps."""
        return round(step / self.epoch_steps, 4)

    def finished(self, progress: "Progress") -> bool:
        """All steps are done, and the last test, before which a signal may have come."""
        return progress.tested_at == self.steps

    def tests_after(self, step: int) -> int:
        """Tests still to come."""
        at_the_end = self.steps % self.test_every > 0 and step < self.steps
        return self.steps // self.test_every - step // self.test_every + at_the_end


@dataclass
class Progress:
    """How far a run is; plain numbers, saved in every checkpoint."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # in `fit`, over all sessions
    tested_at: int = -1  # step of the last test
    score: str = "accuracy"  # what a test measures, see `tasks.Score`
    share: bool = True
    higher_is_better: bool = True
    test_score: float | None = None
    test_loss: float | None = None
    validation_score: float | None = None  # these three only with data.validation
    best_score: float | None = None  # the best of them
    best_step: int = 0
    best_test_score: float | None = None  # of the weights with the best validation score

    @classmethod
    def of_state(cls, state: dict[str, Any], validated: bool) -> "Progress":
        """That of a checkpoint."""
        known = (field.name for field in fields(cls) if field.name in state)
        found = cls(**{name: state[name] for name in known})
        found.best_score = found.best_score if validated else None
        return found

    def tested(self, results: Results) -> bool:
        """Takes the results of a test after the last step; whether these are the best weights so far.

        The best are chosen by the images held out of training alone, never by the test images.
        """
        test, self.test_loss = results.test
        self.tested_at, self.test_score = self.step, test.value
        self.score, self.share, self.higher_is_better = test.name, test.share, test.higher_is_better
        if results.validation is None:
            return False
        found = results.validation.score
        self.validation_score = found.value
        best = self.best_score is None or found.beats(self.best_score)
        if best:
            self.best_score, self.best_step = found.value, self.step
            self.best_test_score = self.test_score
        return best

    def named(self, value: float) -> Score:
        """One of its scores, with what it is."""
        kind = {"share": self.share, "higher_is_better": self.higher_is_better}
        return Score(value=value, name=self.score, **kind)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a session of training ended."""

    plan: Plan
    progress: Progress
    images_per_s: float | None  # of training, in the last row
    peak_memory_mib: float
    firing_rate: float | None
    saved_at: int | None  # step of the newest checkpoint on the disk
    exit_code: int  # 0, or the signal's

    @property
    def finished(self) -> bool:
        return self.plan.finished(self.progress)

    def row(self) -> dict[str, Any]:
        """All numbers, as plain data."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        del numbers["plan"], numbers["progress"]
        done = {
            "finished": self.finished,
            "steps": self.plan.steps,
            "epoch": self.plan.epoch(self.progress.step),
        }
        found = asdict(self.progress)
        del found["score"], found["share"], found["higher_is_better"]
        named = {key.replace("_score", f"_{self.progress.score}"): v for key, v in found.items()}
        return {**named, **self.progress.named(0.0).kind, **done, **numbers}

    @property
    def saved(self) -> bool:
        return self.saved_at == self.progress.step
