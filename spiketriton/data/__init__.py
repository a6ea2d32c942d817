"""Images, sequences, or recordings of event cameras, for training and testing: `build_data(recipe)`.

Read sources.py (a `Source`, which a data set's own file makes: photographs.py, cifar.py, ...), splits.py (images in
memory or in files), transforms.py (tensors of them), sequences.py (signals, and images that are shown as such),
stream.py (batches as a function of seed and step), prefetch.py (their way to a GPU). facts.py is what a run knows of
its data, given.py what somebody hands over; checking.py leaves broken images out.
"""

import math
import os
from dataclasses import dataclass, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from spiketriton.config import DataConfig, Recipe, TrainConfig
from spiketriton.config.names import TIME_KEYS, UNROLLED, Events, Images, Sequences
from spiketriton.config.parts import chosen, lies_in
from spiketriton.config.recipe import KEYS
from spiketriton.config.words import shown
from spiketriton.data.counter_rng import mix
from spiketriton.data.facts import Facts
from spiketriton.data.sequences import SequenceTransform, TimeMoves, UnrolledTransform
from spiketriton.data.sources import Recorded, Source
from spiketriton.data.splits import ArraySplit, FileSplit, Split, drawn_of_each
from spiketriton.data.stream import (
    Batches,
    Loading,
    Request,
    TestSet,
    TrainStream,
    auto_workers,
    subset,
    workers_that_fit,
)
from spiketriton.data.transforms import ArrayTransform, Augmentation, PhotoTransform, Transform
from spiketriton.plugins.tasks import Task, task_of
from spiketriton.system.errors import UserError

__all__ = ["Data", "Facts", "TestSet", "TrainStream", "build_data"]


_FILES = {  # of data sets that share one; any other's has its name
    **dict.fromkeys(("imagenette", "imagefolder"), "data.photographs"),
    **dict.fromkeys(("cifar10", "cifar100"), "data.cifar"),
    "cluttered_fashion_mnist": "data.fashion_mnist",
    "synthetic": "data.digits",
    **dict.fromkeys(get_args(Events), "events.recordings"),
    **dict.fromkeys(("shd", "ssc"), "data.spikes"),
}
for _name in (*get_args(Images), *get_args(Events), *get_args(Sequences)):
    lies_in(f"spiketriton.{_FILES.get(_name, f'data.{_name}')}", "data", [_name])

_VALIDATION = 3  # keeps these draws apart from those of stream.py


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set ready to train on: images float32 [b, C, S, S], or time first, recordings [T, b, C, S, S] and
    sequences [T, b, C]."""

    facts: Facts
    task: Task
    train: TrainStream
    test: TestSet
    validation: TestSet | None = None  # images held out of training, to choose weights by
    skipped: tuple[str, ...] = ()  # image files that are left out, each with why it cannot be read
    frames: int = (
        0  # of a training recording, without those that are left out, or steps; 0: constant images
    )
    bin_ms: np.ndarray | None = None  # of each test recording, milliseconds; None: not bins of time
    place: Path | None = None  # where the files are, if that is not where data.root says
    note: str = ""  # how the images differ from those that everybody has

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes

    @property
    def channels(self) -> int:
        return self.facts.channels

    @property
    def image_size(self) -> int:
        return self.facts.image_size

    @property
    def synthetic(self) -> bool:
        return self.facts.synthetic

    @property
    def label(self) -> str:
        return self.facts.label


def build_data(recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> Data:
    """The recipe's data for one of `world_size` ranks; all ranks call it with the same recipe.

    UserError, before any image is decoded: data are missing, damaged, or too few for a batch.
    """
    config, train = recipe.data, recipe.train
    accumulate = _micro_batches(train, world_size)
    part = train.batch_size // (accumulate * world_size)
    mixes = train.mixup > 0 or train.cutmix > 0
    if mixes and part % 2:
        raise UserError(
            f"train.batch_size = {train.batch_size} in {accumulate} micro-batches on {world_size} "
            f"ranks leaves {part} images, of which train.mixup and train.cutmix cannot make pairs; "
            "accepted: an even number"
        )
    source = _source(config, recipe.time_steps)
    task = task_of(recipe.loss)
    if mixes and (source.move == "sequence" or config.sequence != "none"):
        raise UserError(
            "train.mixup and train.cutmix mix images, and these are sequences; accepted: 0"
        )
    source.refuse_unsound(config.name, task, config.image_size or source.image_size)
    _refuse_idle(config, source)
    stretched = "" if source.move == "sequence" else _stretched(config, source)
    if not task.moves:
        from spiketriton.data.unmoved import refuse_moves

        refuse_moves(config, source, recipe.loss.kind, config.image_size or source.image_size)
    skipped: tuple[str, ...] = ()
    if config.broken == "skip":
        from spiketriton.data.checking import without_broken

        source, skipped = without_broken(config, source)
    held_out = _held_out(config, source, task)
    training = subset(np.flatnonzero(~held_out), config.train_images)
    _check_counts(config, train.batch_size, source, int((~held_out).sum()), task)
    facts = _facts(config, recipe.time_steps, source, training, task)
    _refuse_other_steps(facts, recipe.time_steps, source)
    transform = transform_of(facts, _changes(config, source, facts))
    loading, fewer = _loading(config, train, source, facts, part, world_size)
    ours: dict[str, Any] = {"rank": rank, "world_size": world_size, "loading": loading}

    def tested(split: Split, members: np.ndarray) -> TestSet:
        return TestSet(dataset=Batches(split, transform), members=members, batch_size=part, **ours)

    mixing = None
    if mixes:
        from spiketriton.data.mixing import Mixing

        mixing = Mixing(train.mixup, train.cutmix, len(facts.classes), train.mix_epochs)
    validation = None
    if source.validation is not None:
        validation = tested(source.validation, np.arange(len(source.validation)))
    elif held_out.any():
        validation = tested(source.train, np.flatnonzero(held_out))
    augment = None if config.augment == "none" else source.augment
    batches = Batches(source.train, transform, mixing, augment)
    if augment is not None:  # a mistake in it is found before the training begins
        answer = batches[Request(training[:1], np.zeros(1, np.uint64))]
        if isinstance(answer, UserError):
            raise UserError(f'data.name = "{config.name}": {answer}')
    return Data(
        facts=facts,
        task=task_of(recipe.loss, facts.class_counts),
        train=TrainStream(
            dataset=batches,
            members=training,
            seed=recipe.seed,
            batch_size=train.batch_size,
            accumulate=accumulate,
            **ours,
        ),
        test=tested(source.test, subset(np.arange(len(source.test)), config.test_images)),
        validation=validation,
        skipped=skipped,
        place=source.place,
        note="; ".join(filter(None, (source.note, _lengths(facts, source), stretched, fewer))),
        frames=facts.frames - config.augmentation.delete if facts.frames else 0,
        bin_ms=source.bin_ms,
    )


def events_room() -> Any:
    """The room of event cameras, which only their recordings need."""
    return import_module("spiketriton.events")


def _changes(config: DataConfig, source: Source, facts: Facts) -> Any:
    """Those of training images: `Augmentation`, `Moves` of recordings, or `TimeMoves` of sequences."""
    if source.move == "sequence":
        return TimeMoves.of(config, facts.frames, facts.channels)
    if source.move == "events":
        return events_room().Moves.of(config, facts.image_size, mirrors=source.mirrors)
    augmentation = Augmentation.of(config)
    # a plugin's own stand in place of the moves of the recipe
    return augmentation if source.augment is None else replace(augmentation, preset="none")


def transform_of(facts: Facts, changes: Any) -> Transform:
    """What makes the network's tensors; `changes`: `Augmentation` of images, `Moves` of recordings, `TimeMoves`."""
    if facts.move == "sequence":
        return SequenceTransform(facts.frames, facts.mean, facts.std, changes, facts.padded)
    if facts.move == "events":
        return events_room().EventTransform(facts.count, changes)
    given = facts.image_size, facts.mean, facts.std, changes
    images = PhotoTransform(*given) if facts.move == "photo" else ArrayTransform(*given, facts.move)
    return (
        UnrolledTransform(images, facts.sequence, facts.sequence_seed) if facts.sequence else images
    )


def _loading(
    config: DataConfig, train: TrainConfig, source: Source, facts: Facts, part: int, world_size: int
) -> tuple[Loading, str]:
    """How batches of `part` images are loaded, and a note where that is by fewer processes than there could be."""
    cuda = train.device != "cpu" and torch.cuda.is_available()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    workers = config.workers
    if workers == "auto":
        in_memory = not isinstance(source.train, FileSplit)
        workers = auto_workers(in_memory=in_memory, cuda=cuda, ranks_here=here)
    batch = part * math.prod(facts.image_shape) * max(1, facts.frames)  # bytes
    fit, fewer = workers_that_fit(workers, config.workers != "auto", batch, here)
    return Loading(workers=fit, pin_memory=cuda), fewer


def _source(config: DataConfig, steps: int) -> Source:
    part = chosen("data", config.name)
    found = part.checked(part.of(config), Source | Recorded, "spiketriton.data.sources.Source")
    return found if isinstance(found, Source) else found.source(config, steps)


def _held_out(config: DataConfig, source: Source, task: Task) -> np.ndarray:
    """Which training images a fraction `data.validation` takes out: bool [N]; of each class at least one, never all.

    Which ones depends on their indices alone, so that runs of different seeds are validated on the same images.
    """
    labels, share = task.groups(source.train.labels).numpy(), config.validation
    if isinstance(share, str) or share == 0:
        return np.zeros(len(labels), bool)
    draws = mix(_VALIDATION, np.arange(len(labels)))
    return drawn_of_each(labels, draws, lambda count: min(max(1, round(share * count)), count - 1))


def _facts(
    config: DataConfig, steps: int, source: Source, training: np.ndarray, task: Task
) -> Facts:
    mean, std = source.statistics
    events, given = source.move == "events", source.move == "sequence"
    sequence = "given" if given else "" if config.sequence == "none" else config.sequence
    splits: Any = (source.train, source.test, source.validation)
    targets = source.train.labels[torch.from_numpy(training)]
    return Facts(
        name=config.name,
        classes=source.classes,
        channels=source.channels,
        image_size=config.image_size or source.image_size,
        mean=mean,
        std=std,
        move=source.move,
        class_counts=task.count(targets, len(source.classes)),
        synthetic=source.synthetic,
        split=source.split,
        frames=steps if events or sequence else 0,
        count=config.count if events else "",
        sequence=sequence,
        sequence_seed=config.sequence_seed if sequence == "permuted" else 0,
        padded=given and any(s is not None and bool((s.lengths < steps).any()) for s in splits),
    )


def _refuse_other_steps(facts: Facts, steps: int, source: Source) -> None:
    """UserError: `time_steps` is not the number of rows, columns or pixels, or fewer than a sequence has."""
    if facts.sequence in UNROLLED:
        side = facts.image_size
        found = side if facts.sequence in ("rows", "columns") else side**2
        if steps != found:
            raise UserError(
                f'time_steps = {steps}, and data.sequence = "{facts.sequence}" makes {found} steps of {side}x{side} '
                f"pixels; accepted: time_steps = {found}, or another data.image_size"
            )
    elif facts.sequence:
        splits: Any = (source.train, source.test, source.validation)
        longest = max(int(split.lengths.max()) for split in splits if split is not None)
        if longest > steps:
            raise UserError(
                f"time_steps = {steps}, and sequences of {facts.name} have up to {longest:,} steps; accepted: "
                f"time_steps = {longest} or more, to which shorter ones are padded, or sequences of fewer steps"
            )


def _lengths(facts: Facts, source: Source) -> str:
    """A note on sequences that are shorter than the window."""
    if not facts.padded:
        return ""
    split: Any = source.train
    shortest, longest = int(split.lengths.min()), int(split.lengths.max())
    mean = float(split.lengths.double().mean())
    found = f"{shortest} to {longest}, {mean:.1f} on average" if shortest < longest else longest
    return f"of the {facts.frames} steps of a sequence {found} are its own, the others padding"


def _stretched(config: DataConfig, source: Source) -> str:
    """A note on images in memory that are not square. UserError: nobody has said that they are to be stretched."""
    for split in (source.train, source.test, source.validation):
        shape = split.images.shape if type(split) is ArraySplit else ()
        if len(shape) == 4 and shape[-2] != shape[-1]:
            high, wide = shape[-2:]
            if not config.image_size and source.image_size in (high, wide):
                raise UserError(
                    f'data.name = "{config.name}": images of {high}x{wide} are not square; accepted: data.image_size, '
                    "to which they are stretched each way, or a SequenceSplit of [N, T, C], if a side of them is time"
                )
            side = config.image_size or source.image_size
            return f"images of {high}x{wide} stretched to {side}x{side}"
    return ""


def _refuse_idle(config: DataConfig, source: Source) -> None:
    """Refuses keys without effect on the images of a plugin, whose kind no rule of recipes knows."""
    files = isinstance(source.train, FileSplit)
    idle = [] if files else ["broken"]
    if source.move != "photo":
        idle.append("augmentation.crop_scale")
    if source.move in ("events", "sequence"):
        idle += ["augmentation.erasing", "sequence"]
    if source.move == "sequence":
        idle += ["image_size", "augmentation.cutout", "augmentation.policy"]
    else:
        idle += [f"augmentation.{name}" for name in TIME_KEYS]
    if source.augment is not None and config.augment == "strong":
        raise UserError(
            f'data.augment = "strong" has no effect on the data of data.name = "{config.name}", which bring an '
            'augmentation of their own; accepted: "standard", which is that, or "none"'
        )
    for name in idle:
        value = attrgetter(name)(config)
        if value != KEYS[f"data.{name}"].default:
            raise UserError(
                f"data.{name} = {shown(value)} has no effect on the data of data.name = "
                f'"{config.name}", {_kind(source)}; leave it out'
            )


def _kind(source: Source) -> str:
    if source.move == "sequence":
        return "sequences"
    files = isinstance(source.train, FileSplit)
    return f'{"files" if files else "arrays"} that move as "{source.move}"'


def _micro_batches(train: TrainConfig, world_size: int) -> int:
    """Micro-batches per step on each rank; `accumulate` while micro_batch = "auto" is not found."""
    given = train.micro_batch not in (0, "auto")
    key = "micro_batch" if given else "accumulate"
    value = getattr(train, key)
    if train.batch_size % (value * world_size):
        raise UserError(
            f"train.batch_size = {train.batch_size} does not divide by train.{key} = {value} on "
            f"{world_size} ranks; accepted: a multiple of {value * world_size}"
        )
    return train.batch_size // (value * world_size) if given else value


def _check_counts(
    config: DataConfig, batch_size: int, source: Source, available: int, task: Task
) -> None:
    """`available`: training images that are not held out."""
    if len(source.classes) < 2 and task.classifies:
        raise UserError(
            f"{config.name} has only one class, {source.classes[0]}; accepted: two or more"
        )
    left = "" if available == len(source.train) else " left beside data.validation"
    what = {"events": "recordings", "sequence": "sequences"}.get(source.move, "images")
    for key, wanted, there, where in (
        ("data.train_images", config.train_images, available, left),
        ("data.test_images", config.test_images, len(source.test), ""),
    ):
        if wanted > there:
            raise UserError(
                f"{key} = {wanted:,}, but {config.name} has only {there:,} {what}{where}"
            )
    images = config.train_images or available
    if images < batch_size:
        raise UserError(
            f"train.batch_size = {batch_size:,} is more than the {images:,} training "
            f"{what} of {config.name} (data.train_images = {config.train_images:,}; 0 means all)"
        )
