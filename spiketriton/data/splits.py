"""Where images come from: `ArraySplit` holds all of them in memory, `FileSplit` opens files.

Both have `len`, `labels` (int64 [N]) and `read(indices)`: raw images in the order of the indices.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from spiketriton.config import DataConfig
from spiketriton.system.errors import UserError, one_line


class Split(Protocol):
    """A set of labelled images."""

    labels: torch.Tensor  # int64 [N], or the targets of a task: int64 or float32 [N, ...]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Any:
        """Raw images, in the order of the indices."""


def folders_of_splits(root: Path, config: DataConfig, holding: str) -> list[str]:
    """Names of the folders in `root` to train on, to test on and, if data.validation names it, to choose by.

    Tested is val, or test where there is no val or val is chosen by. UserError: one is missing, or has two purposes.
    """
    held_out = [config.validation] if isinstance(config.validation, str) else []
    test = "val" if (root / "val").is_dir() and held_out != ["val"] else "test"
    for name in ("train", test, *held_out):
        if not (root / name).is_dir():
            raise UserError(
                f"{config.name}: no folder {root / name}; data.root must hold train/<class>/ and "
                f"val/<class>/ (or test/<class>/) with {holding}"
            )
    if set(held_out) & {"train", test}:
        raise UserError(
            f'{config.name}: data.validation = "{held_out[0]}" is the folder of other images; accepted: '
            "a folder beside train and test, or a fraction"
        )
    return ["train", test, *held_out]


def drawn_of_each(labels: np.ndarray, draws: np.ndarray, count: Callable[[int], int]) -> np.ndarray:
    """Of the members of each class `count(their number)`, those of the smallest draws: bool [N]."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.argsort(draws[members], kind="stable")
        chosen[members[order[: count(len(members))]]] = True
    return chosen


def as_tensor(values: Any) -> torch.Tensor:
    """`torch.as_tensor` without its warning of a read-only array, as a memory map is: nothing here writes to it.

    UserError: they are no numbers, or lists of different lengths.
    """
    with warnings.catch_warnings():
        if isinstance(values, np.ndarray) and not values.flags.writeable:
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(values, np.ndarray):
                raise UserError(f"an array of {values.dtype}; accepted: numbers") from None
            kind = type(values).__name__
            raise UserError(f"a {kind} ({one_line(error)}); accepted: numbers") from None


class ArraySplit:
    """Images in memory. `read` gives them as they are."""

    def __init__(self, images: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor):
        """`images`: uint8 or floats in 0..1, [N, C, H, W]; `labels`: integers [N], or targets of a task [N, ...]."""
        self.images = as_tensor(images)
        labels = as_tensor(labels)
        self.labels = labels.float() if labels.is_floating_point() else labels.long()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return self.images[torch.from_numpy(indices)]


class RepeatedSplit(ArraySplit):
    """Fewer images than labels: the images repeat."""

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return super().read(indices % len(self.images))


class FileSplit:
    """Image files. `read` opens them one by one: photographs of any size, not yet decoded."""

    def __init__(self, samples: Sequence[tuple[str, Any]], classes: Sequence[str] = ()):
        """`samples`: paths, each with its class, or its target where `classes` is empty."""
        # One array of bytes, which workers share; reference counts would copy a list of str.
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.labels = torch.tensor([label for _, label in samples])
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self.paths[index]))

    def class_of(self, index: int) -> str:
        return self.classes[int(self.labels[index])] if self.classes else ""

    def only(self, chosen: Sequence[bool] | np.ndarray) -> "FileSplit":
        """The files of a mask."""
        mask, rest = np.array(chosen, bool), copy.copy(self)
        rest.paths, rest.labels = self.paths[mask], self.labels[torch.from_numpy(mask)]
        return rest

    def read(self, indices: np.ndarray) -> Iterator["Photo"]:
        for index in indices:
            yield Photo(self.path(index), self.class_of(index))


_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Photo:
    """An image file, whose size is known before its pixels are decoded.

    UserError, with its class, on opening and decoding: it is empty, cut short or not an image.
    """

    def __init__(self, path: Path, class_name: str) -> None:
        self.path, self.class_name = path, class_name
        with _mistakes(path, class_name):
            self._image = Image.open(path)
            width, height = self._image.size
            lies = self._image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        self.size = (height, width) if lies else (width, height)

    def decode(self, *, reduce: int = 1) -> Image.Image:
        """The RGB image, upright, transparent parts on white, the first frame of an animation.

        reduce: 1, 2, 4 or 8. A JPEG gets so many times smaller each way, rounded up, in a fraction of the time: its
        decoder leaves out frequencies. Other formats keep their size.
        """
        with _mistakes(self.path, self.class_name), self._image as image:
            width, height = image.size
            if reduce > 1:
                image.draft(None, (width // reduce, height // reduce))
            ImageOps.exif_transpose(image, in_place=True)  # else a copy, turned or not
            return in_colour(image)


@contextlib.contextmanager
def _mistakes(path: Path, class_name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow's decoders raise anything on damaged input
        empty = path.exists() and path.stat().st_size == 0
        why = "the file is empty" if empty else one_line(error) or type(error).__name__
        of = f" (class {class_name})" if class_name else ""
        raise UserError(f"cannot read image {path}{of}: {why}") from error


def check_file(path: Path, class_name: str) -> None:
    """Raises the `UserError` that `Photo` would raise for a file that is cut short or no image.

    Pixels are decoded only where the file does not end as its format says.
    """
    with _mistakes(path, class_name), Image.open(path) as image:
        whole = _ends_well(path, image.format or "")
    if not whole:
        Photo(path, class_name).decode()


_TAIL = 4096  # bytes at the end of a file: cameras and programs write some behind the image


def _ends_well(path: Path, format: str) -> bool:
    """Whether the file holds the end of its image; False for formats that have no mark for it."""
    with path.open("rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if format == "WEBP":  # RIFF: its length follows the first four bytes
        return size >= 8 + int.from_bytes(head[4:8], "little")
    if format == "GIF":
        return tail.endswith(b"\x00;")
    # neither can stand in what is compressed before it, or with a chance of one in a million
    mark = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(format)
    return mark is not None and mark in tail


class DecodedPhoto:
    """An RGB image in memory, with the interface of a `Photo`."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.size = image, image.size

    def decode(self, *, reduce: int = 1) -> Image.Image:
        """The image, at its full size."""
        return self.image


def in_bytes(images: torch.Tensor, accepted: str = "uint8, or floats in 0..1") -> torch.Tensor:
    """Images of floats in 0..1 rounded to uint8; uint8 ones themselves. UserError: other values."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UserError(f"images of {images.dtype}; accepted: {accepted}")
    if not bool(((images >= 0) & (images <= 1)).all()):  # refuses NaN too
        low, high = images.min().item(), images.max().item()
        raise UserError(f"images with values from {low:g} to {high:g}; accepted: {accepted}")
    return (images * 255).round().to(torch.uint8)


def in_colour(image: Image.Image) -> Image.Image:
    """An image as RGB: of 16-bit grey the high byte, transparent parts on white. UserError: pixels of floats."""
    if image.mode == "F":
        raise UserError("its pixels are floats; accepted: integers of 8 or 16 bits")
    if image.mode.startswith("I"):  # convert("RGB") would clip it to white
        high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
