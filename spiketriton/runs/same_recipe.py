"""Whether a run may go on with a recipe: the keys that may change between its sessions, and how it is extended."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spiketriton.config import Recipe, TrainConfig
from spiketriton.runs.rows import Row
from spiketriton.system.errors import UserError

# what moves a run and changes no weight
MOVABLE = (
    "data.root",
    "data.cache",
    "data.download",
    "data.workers",
    "train.device",
    "train.threads",
    "checkpoint.every",
    "plugins.modules",
)

# how a step is computed, in parts or with less memory, and how often it is told of. Parts change no more
# than how batch norm sees a batch: `resuming` says so
COMPUTED = ("model.memory", "model.checkpoint_blocks", "train.log_every")
MICRO_BATCHES = ("train.micro_batch", "train.accumulate")
RESUMABLE = (*MOVABLE, *COMPUTED, *MICRO_BATCHES)
LENGTHS = {"train.epochs": "epoch", "train.max_steps": "step"}  # --extend: keys and columns of rows


def lengths(train: TrainConfig) -> dict[str, int]:
    """How long a recipe trains, by its keys."""
    return {"train.epochs": train.epochs, "train.max_steps": train.max_steps}


def extended(train: TrainConfig, wanted: int | str, rows: Iterable[Row]) -> dict[str, int]:
    """The key that makes a recipe longer, with its value: `wanted` is a number of epochs, or as "train.max_steps=400".

    rows: of the run so far. An extension that was cut short may be asked for again. UserError: it is not longer, or
    has no effect.
    """
    key, _, number = str(wanted).rpartition("=")
    key, before = key or "train.epochs", lengths(train)
    if key not in LENGTHS or not number.isdecimal() or isinstance(wanted, bool):
        raise UserError(
            f"extend {wanted}: accepted: a number of epochs, or {' or '.join(f'{name}=N' for name in LENGTHS)}"
        )
    ends = "train.max_steps" if before["train.max_steps"] else "train.epochs"
    if key != ends:
        raise UserError(
            f"extend {wanted} has no effect on a run that ends by {ends} = {before[ends]}; accepted: {ends}=N"
        )
    reached = max((row[LENGTHS[key]] for row in rows), default=0)
    if int(number) < before[key] or reached >= int(number):
        raise UserError(
            f"extend {wanted}: the run has {before[key]} {LENGTHS[key]}s already; accepted: more, counted from its "
            "beginning"
        )
    return {key: int(number)}


@dataclass(frozen=True)
class Extension:
    """The key by which a recipe is longer than another, and how long both are."""

    key: str
    before: int
    after: int

    @property
    def unit(self) -> str:
        return f"{LENGTHS[self.key]}s"


def extension(given: TrainConfig, trained: TrainConfig) -> Extension | None:
    """By what `given` is longer than `trained`; None if it is not."""
    ours, theirs = lengths(given), lengths(trained)
    longer = (Extension(k, theirs[k], ours[k]) for k in LENGTHS if 0 < theirs[k] < ours[k])
    return next(longer, None)


def refuse_another_recipe(given: Recipe, trained: Recipe) -> None:
    """UserError naming the keys in which `given` differs from the recipe a run was begun with."""
    ours, theirs = given.effective(), trained.effective()
    keys = sorted({*ours, *theirs} - {*RESUMABLE})
    if differing := [key for key in keys if ours.get(key) != theirs.get(key)]:
        said = (f"{key} = {ours.get(key)!r} (the run: {theirs.get(key)!r})" for key in differing)
        longer = "--extend trains it longer, and " if {*LENGTHS} & {*differing} else ""
        raise UserError(
            f"the run has another recipe: {'; '.join(said)}; a resumed run keeps its recipe but for "
            f"{', '.join(RESUMABLE)}; {longer}train.init_from=RUN begins a new run with its weights"
        )


def refuse_changes(overrides: Sequence[str], values: Mapping[str, Any]) -> None:
    """UserError: one of the `key=value` or of the dotted keys would change what a run was trained with."""
    given = {text.partition("=")[0].strip(): f"override {text!r}" for text in overrides}
    given |= {dotted: dotted for dotted in values}
    for dotted, words in given.items():
        if dotted not in MOVABLE:
            keys = ", ".join(MOVABLE)
            if "=" not in words and dotted not in values:
                raise UserError(
                    f"{words} is no key=value; accepted: {keys}; evaluate takes another run with --against"
                )
            raise UserError(f"{words}: a trained run takes only keys that change no weight: {keys}")
