"""What a network was trained on, without the images: enough to build it again and to show it others."""

from dataclasses import asdict, dataclass, fields
from typing import Any

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
