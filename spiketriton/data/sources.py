"""What a data set is: its splits, and what the transforms need to know. Each set is in a file of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from spiketriton.config import DataConfig
from spiketriton.data.sequences import SequenceSplit
from spiketriton.data.splits import ArraySplit, FileSplit, Split, as_tensor, in_bytes
from spiketriton.plugins.tasks import Task
from spiketriton.system.errors import UserError

Move = Literal["photo", "crop", "affine", "events", "sequence"]
Held = ArraySplit | FileSplit | SequenceSplit | Split


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: its two splits and what the transforms need to know.

    `channels`, `image_size` and `statistics` that are not given are those of training images, or sequences, in memory.
    """

    train: Held
    test: Held
    validation: Held | None = None  # of its own, beside the training images
    classes: tuple[str, ...]  # of a task without classes, what each of the K outputs is
    channels: int = 0
    image_size: int = 0  # default side of the square images that the network sees
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # mean, std by channel
    move: Move = "crop"  # kind of augmentation, see transforms.py
    # in place of it: uint8 [C, S, S] to the same, with torch's generator seeded by image and epoch
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None
    synthetic: bool = False
    mirrors: bool = True  # of events: whether a mirrored recording is still of its class
    split: str = ""  # of events: which recordings are tested on
    bin_ms: np.ndarray | None = None  # of events in bins of time: of each test recording
    place: Path | None = None  # where its files are, if that is not where data.root says
    note: str = ""  # how its images differ from those that everybody has, for the run's first lines

    def __post_init__(self) -> None:
        if isinstance(self.train, SequenceSplit):
            object.__setattr__(self, "move", "sequence")
            if self.statistics == ((), ()):
                object.__setattr__(self, "statistics", self.train.statistics())
            object.__setattr__(self, "channels", self.channels or self.train.channels)
        if self.move == "sequence":
            object.__setattr__(self, "image_size", 1)
            return
        images = self.train.images if type(self.train) is ArraySplit else None
        if images is None or images.ndim != 4 or len(images) == 0:
            return
        found: dict[str, Any] = {"channels": images.shape[1], "image_size": images.shape[-1]}
        if self.statistics == ((), ()):
            scale = 1 if images.is_floating_point() else 255
            by_channel = [torch.std_mean(channel / scale) for channel in images.unbind(1)]
            stds, means = (tuple(map(float, values)) for values in zip(*by_channel, strict=True))
            object.__setattr__(self, "statistics", (means, stds))
        for name, value in found.items():
            object.__setattr__(self, name, getattr(self, name) or value)

    def refuse_unsound(self, name: str, task: Task, side: int) -> None:
        """UserError: what no network can be trained and tested on, or only with wrong numbers.

        side: pixels of the images that it sees.
        """
        for why in self._unsound(task, side):
            raise UserError(f'data.name = "{name}": {why}')

    def _unsound(self, task: Task, side: int) -> Iterator[str]:
        if self.move not in get_args(Move):
            yield f"move {self.move!r}; accepted: {', '.join(get_args(Move))}"
        splits = self.train, self.test, self.validation
        if self.move == "photo" and any(isinstance(split, ArraySplit) for split in splits):
            yield 'move "photo" of images in memory (ArraySplit); accepted: "crop", "affine", or files (FileSplit)'
        if self.image_size < 1:
            yield f"image_size {self.image_size}; accepted: 1 or more"
        if len({*self.classes}) < len(self.classes):
            twice = max(self.classes, key=self.classes.count)
            yield f"two classes are named {twice!r}; accepted: names that differ"
        for name in ("train", "test", "validation"):
            split = getattr(self, name)
            if split is not None:
                yield from self._unsound_images(name, split, task, side)
        if self.move in ("events", "sequence") and self.augment is not None:
            what = "recordings of events" if self.move == "events" else "sequences"
            yield f"augment of {what}; accepted: none, of images alone"
        if self.move == "events":
            return
        mean, std = (np.asarray(values, float) for values in self.statistics)
        shaped = mean.shape == std.shape == (self.channels,)
        if not (shaped and np.isfinite([mean, std]).all() and (std > 0).all()):
            yield (
                f"statistics {self.statistics}; accepted: a mean and a standard deviation above 0 for each of "
                f"{self.channels} channels"
            )

    def _unsound_images(self, name: str, split: Held, task: Task, side: int) -> Iterator[str]:
        count, labels = len(split), as_tensor(split.labels)
        if count == 0:
            yield f"{name} holds no images; accepted: one or more"
        if len(labels) != count:
            yield f"{name} holds {count:,} images and {len(labels):,} labels; accepted: as many"
        if why := task.wrong_targets(labels, len(self.classes), side):
            yield f"{name} has {why}"
        if self.move == "sequence":
            yield from self._unsound_sequences(name, split)
            return
        images: Any = split.images if type(split) is ArraySplit else None
        if images is not None and len(images) != count:
            yield f"{name} holds {len(images):,} images and {count:,} labels; accepted: as many"
        if images is None and self.move in ("crop", "affine"):
            images = split.read(np.zeros(1, np.int64))
        if images is None:
            return
        if images.ndim != 4 or images.shape[1] != self.channels:
            yield (
                f"{name} holds images of shape {list(images.shape)}; accepted: [N, {self.channels}, "
                "height, width]"
            )
        try:
            in_bytes(images)
        except UserError as error:
            yield f"{name}: {error}"

    def _unsound_sequences(self, name: str, split: Any) -> Iterator[str]:
        lengths, channels = getattr(split, "lengths", None), getattr(split, "channels", None)
        if lengths is None or channels is None:
            yield (
                f"{name} is a {type(split).__name__}; accepted of sequences: SequenceSplit, or a split with lengths "
                "[N] and channels, whose read gives [T, C] of each"
            )
        elif len(lengths) != len(split):
            yield f"{name} holds {len(lengths):,} sequences and {len(split):,} labels; accepted: as many"
        elif channels != self.channels:
            yield f"{name} holds sequences of {channels} channels; accepted: {self.channels}, as in training"


class Recorded(ABC):
    """Data that are a `Source` once the time steps are known: recordings of event cameras, see `events.cache`."""

    @abstractmethod
    def source(self, config: DataConfig, steps: int) -> Source:
        """As `steps` frames each."""
