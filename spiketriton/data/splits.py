"""Where images come from: `ArraySplit` holds all of them in memory, `FileSplit` opens files.

Both have `len`, `labels` (int64 [N]) and `read(indices)`: raw images in the order of the indices.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from spiketriton.errors import UserError, one_line


class Split(Protocol):
    """A set of labelled images."""

    labels: torch.Tensor  # int64 [N]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Any:
        """Raw images, in the order of the indices."""


class ArraySplit:
    """Images in memory. `read` gives uint8 [b, C, H, W]."""

    def __init__(self, images: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor):
        """`images`: uint8 [N, C, H, W]; `labels`: integers [N]."""
        self.images = torch.as_tensor(images)
        self.labels = torch.as_tensor(labels).long()

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

    def __init__(self, samples: Sequence[tuple[str, int]], classes: Sequence[str]):
        # One array of bytes, which workers share; reference counts would copy a list of str.
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.labels = torch.tensor([label for _, label in samples])
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> Iterator["Photo"]:
        for index in indices:
            name = self.classes[int(self.labels[index])]
            yield Photo(Path(os.fsdecode(self.paths[index])), name)


_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Photo:
    """An image file, whose size is known before its pixels are decoded.

    Opening it and decoding it raise `UserError`, which names the file and its class, when it is
    empty, cut short or not an image.
    """

    def __init__(self, path: Path, class_name: str) -> None:
        self.path, self.class_name = path, class_name
        with self._mistakes():
            self._image = Image.open(path)
            width, height = self._image.size
            lies = self._image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        self.size = (height, width) if lies else (width, height)

    def decode(self, *, reduce: int = 1) -> Image.Image:
        """The RGB image, whatever its mode (grey, 16-bit grey, palette, CMYK, with alpha).

        It is turned as its EXIF tag says, transparent parts are blended onto white, and of an
        animation the first frame is taken.
        reduce: 1, 2, 4 or 8. A JPEG gets so many times smaller each way, rounded up, in a fraction
        of the time: its decoder leaves out frequencies. Other formats keep their size.
        """
        with self._mistakes(), self._image as image:
            width, height = image.size
            if reduce > 1:
                image.draft(None, (width // reduce, height // reduce))
            if image.mode.startswith("I"):  # 16-bit grey: convert("RGB") would clip it to white
                high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
                return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
            return on_white(ImageOps.exif_transpose(image))

    @contextlib.contextmanager
    def _mistakes(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Pillow's decoders raise anything on damaged input
            path = self.path
            empty = path.exists() and path.stat().st_size == 0
            why = "the file is empty" if empty else one_line(error) or type(error).__name__
            raise UserError(f"cannot read image {path} (class {self.class_name}): {why}") from error


class DecodedPhoto:
    """An RGB image in memory, with the interface of a `Photo`."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.size = image, image.size

    def decode(self, *, reduce: int = 1) -> Image.Image:
        """The image, at its full size."""
        return self.image


def on_white(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode as RGB, its transparent parts blended onto white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
