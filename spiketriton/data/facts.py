"""What a network was trained on, without the images: enough to build it again and to show it others."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from spiketriton.data.splits import DecodedPhoto, Photo, as_tensor, in_bytes, in_colour
from spiketriton.system.errors import UserError
from spiketriton.system.plain import of_plain


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The properties of a data set that its networks depend on. Every checkpoint holds them."""

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int  # side of the square images that the network sees
    mean: tuple[float, ...]  # by channel, of pixels in 0..1
    std: tuple[float, ...]
    move: str  # kind of augmentation, see transforms.py
    class_counts: tuple[int, ...] = ()  # training images of each class
    synthetic: bool = False  # random images: every number measured on them must say so
    split: str = ""  # which recordings are tested on; "": images, which have one split only
    frames: int = 0  # of a recording; 0: constant images
    count: str = ""  # what the network sees of a frame's counts, see events/augment.py

    @property
    def label(self) -> str:
        """The name, with the split where there may be several: for tables and titles."""
        return f"{self.name} ({self.split})" if self.split else self.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of what the network sees in a time step."""
        return self.channels, self.image_size, self.image_size

    @property
    def sizes(self) -> dict[str, int]:
        """What a network is made for, as `build_model` takes it."""
        return {
            "classes": len(self.classes),
            "channels": self.channels,
            "image_size": self.image_size,
        }

    def state_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Facts":
        """What `state_dict` returned. ValueError: it is something else."""
        known = {field.name for field in fields(cls)}
        found = of_plain(cls, {k: v for k, v in state.items() if k in known}, "data")
        for name in ("channels", "image_size"):
            if not 1 <= getattr(found, name) <= 65_536:
                raise ValueError(f"data.{name} is {getattr(found, name)}, not from 1 to 65,536")
        if not found.classes or not 0 <= found.frames <= 65_536:
            raise ValueError(f"data has {len(found.classes)} classes and {found.frames} frames")
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
