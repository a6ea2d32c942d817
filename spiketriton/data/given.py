"""Images that somebody hands over, prepared as the test images of a run are."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from spiketriton.config import DataConfig
from spiketriton.data import events_room, transform_of
from spiketriton.data.facts import Facts
from spiketriton.data.photographs import IMAGE_ENDINGS
from spiketriton.data.sequences import TimeMoves, finite, given_sequences
from spiketriton.data.splits import DecodedPhoto, Photo, as_tensor, in_bytes, in_colour
from spiketriton.data.spoken_digits import log_mel
from spiketriton.data.stream import Batches, Loading, TestSet
from spiketriton.data.transforms import Augmentation
from spiketriton.system.errors import UserError, one_line


def given_images(
    images: Any, facts: Facts, batch_size: int, config: DataConfig
) -> tuple[TestSet, list[int] | None]:
    """Images, sequences or recordings of one's own as batches, prepared as the test images of `facts` are.

    With how many of them, in order, are parts of one file of a recording; None: each is whole. Images: see
    `GivenSplit`. config: that of the run, by which recordings in files are cut and binned.
    """
    parts: list[int] | None = None
    if facts.move == "sequence":
        if isinstance(images, str | Path):
            images = [images]
        if isinstance(images, list | tuple):
            images = [
                _sequence(one, facts) if isinstance(one, str | Path) else one for one in images
            ]
        split: Any = given_sequences(images, facts.channels, facts.frames)
        facts = replace(facts, padded=facts.padded or bool((split.lengths < facts.frames).any()))
    elif facts.move == "events":
        split, parts = events_room().given_frames(images, facts, config)
    else:
        split = GivenSplit(images, facts)
    batches = TestSet(
        dataset=Batches(split, transform_of(facts, _unchanged(facts))),
        members=np.arange(len(split)),
        batch_size=batch_size,
        rank=0,
        world_size=1,
        loading=Loading(workers=0, pin_memory=False),
    )
    return batches, parts


class GivenSteps:
    """Time steps that somebody hands over, prepared as the test set of `facts` is; what all share is made once."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._unrolled = facts, bool(facts.sequence) and facts.move != "sequence"
        self._sizes = facts.image_shape if facts.frames else (facts.channels, "H", "W")
        words = ", ".join(map(str, self._sizes))
        self._accepted = f"[{words}], or [B, {words}] of B streams"
        one = replace(facts, sequence="") if self._unrolled else facts
        self._transform: Any = transform_of(one, _unchanged(one))

    def __call__(self, values: Any) -> Tensor:
        """A step of an image, recording or sequence, or of B of them [B, ...], as the network sees it: [1, B, ...].

        values: images as in `GivenSplit`, of which all steps are the same: [B, ...]; counts of a frame, uint8 [2, S,
        S]; numbers of a sequence [C]; of images that are shown as sequences their pixels of the step, floats in 0..1
        or uint8. UserError: others.
        """
        facts, accepted = self._facts, self._accepted
        if not isinstance(values, Tensor | np.ndarray):
            kind = type(values).__name__
            raise UserError(f"a step as a {kind}; accepted: a tensor or an array, {accepted}")
        values, given = as_tensor(values).detach().cpu(), [*values.shape]
        if values.ndim == len(self._sizes):
            values = values.unsqueeze(0)
        fits = values.ndim == 1 + len(self._sizes) and all(
            isinstance(size, str) or size == found
            for size, found in zip(self._sizes, values.shape[1:], strict=True)
        )
        if not fits or 0 in values.shape:
            raise UserError(f"a step of shape {given}; accepted: {accepted}")
        if facts.move == "sequence":
            numbers = finite(values, "a step", f"numbers {accepted}")
            return self._transform.normalised(numbers).unsqueeze(0)
        if self._unrolled:
            pixels = in_bytes(values, f"uint8 or floats in 0..1, {accepted}")
            pixels = pixels.view(len(values), facts.channels, 1, -1)
            return self._transform.finish(pixels, {}).flatten(1).unsqueeze(0)
        if facts.move == "events":
            if values.dtype != torch.uint8:
                raise UserError(f"a step of {values.dtype}; accepted: uint8 counts, {accepted}")
            return self._transform(values.unsqueeze(1), None)
        split = GivenSplit(values, facts)
        return self._transform(split.read(np.arange(len(split))), None).unsqueeze(0)


def _unchanged(facts: Facts) -> Any:
    """What `transform_of` is told of tests."""
    if facts.move == "sequence":
        return TimeMoves()
    return events_room().Moves() if facts.move == "events" else Augmentation("none")


def endings(facts: Facts) -> tuple[str, ...]:
    """Of the files that are answered in a folder, in small letters."""
    if facts.move == "events":
        return events_room().ENDINGS
    if facts.move == "sequence":
        return (".npy", ".wav") if facts.name == "spoken_digits" else (".npy",)
    return IMAGE_ENDINGS


def _sequence(path: str | Path, facts: Facts) -> Tensor | np.ndarray:
    """The sequence [T, C] of a file. UserError: it cannot be read, or is no array."""
    ending = Path(path).suffix.lower()
    if ending == ".wav" and facts.name == "spoken_digits":
        frames = log_mel(Path(path))
        if len(frames) > facts.frames:
            answered = f"the first {facts.frames} are answered, as in training"
            warnings.warn(f"{path} has {len(frames)} frames of 10 ms: {answered}", stacklevel=2)
        return frames[: facts.frames]
    if ending != ".npy":
        raise UserError(f"{path}: accepted of {facts.name}: {', '.join(endings(facts))}")
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2:
        raise UserError(
            f"{path} holds an array {list(found.shape)}; accepted: a sequence [T, {facts.channels}]"
        )
    try:
        given_sequences([found], facts.channels, facts.frames)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


class GivenSplit:
    """Images that somebody hands over, as a split, whose labels are 0.

    images: float [B, C, H, W] in 0..1 or uint8 [B, C, H, W], rounded to 8 bits as data sets are; or a sequence of
    such images, PIL images and paths of image files. UserError: other shapes, dtypes, values or files.
    """

    def __init__(self, images: Tensor | np.ndarray | Sequence[Any], facts: Facts) -> None:
        self.facts = facts
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        if isinstance(images, Tensor | np.ndarray):
            self.images: Any = self._as_bytes(images)
        elif isinstance(images, Iterable):
            self.images = [
                self._as_bytes(image[None])[0] if isinstance(image, Tensor | np.ndarray) else image
                for image in images
            ]
        else:
            raise UserError(
                f"images: a value of type {type(images).__name__}; accepted: {self._accepted}"
            )
        if len(self.images) == 0:
            raise UserError("no image was given; accepted: one or more")
        self.labels = torch.zeros(len(self.images), dtype=torch.int64)

    @property
    def _accepted(self) -> str:
        shape = f"[B, {self.facts.channels}, H, W]"
        return f"float {shape} in 0..1, uint8 {shape}, PIL images, paths"

    def _as_bytes(self, images: Tensor | np.ndarray) -> Tensor:
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.facts.channels or 0 in shape[1:]:
            raise UserError(f"images of shape {shape}; accepted: {self._accepted}")
        return in_bytes(as_tensor(images).detach().cpu(), self._accepted)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Any:
        """Photographs for networks of photographs; else uint8 [b, C, H, W]."""
        chosen = (self.images[int(index)] for index in indices)
        if self.facts.move == "photo":
            return (_photograph(image) for image in chosen)
        pixels = [image if isinstance(image, Tensor) else self._pixels(image) for image in chosen]
        if len({image.shape for image in pixels}) > 1:  # as the transform does with a batch
            side = [self.facts.image_size] * 2
            pixels = [F.resize(image, side, antialias=True) for image in pixels]
        return torch.stack(pixels)

    def _pixels(self, image: Any) -> Tensor:
        shown = _photograph(image).decode()
        return F.pil_to_tensor(shown.convert("L") if self.facts.channels == 1 else shown)


def _photograph(image: Any) -> Photo | DecodedPhoto:
    if isinstance(image, str | Path):
        return Photo(Path(image), "")
    if isinstance(image, Tensor):
        return DecodedPhoto(F.to_pil_image(image))
    if isinstance(image, Image.Image):
        return DecodedPhoto(in_colour(ImageOps.exif_transpose(image)))
    raise UserError(
        f"an image of type {type(image).__name__}; accepted: PIL images and paths, or one tensor of all"
    )
