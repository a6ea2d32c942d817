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
    image_size: (
        int  # side of the square images that the network sees; 1 of sequences that are no images
    )
    mean: tuple[float, ...]  # by channel, of pixels in 0..1, or of the values of sequences
    std: tuple[float, ...]
    move: str  # kind of augmentation, see transforms.py
    class_counts: tuple[int, ...] = ()  # training images of each class
    synthetic: bool = False  # random images: every number measured on them must say so
    split: str = ""  # which recordings are tested on; "": images, which have one split only
    frames: int = 0  # of a recording, or steps of a sequence; 0: constant images
    count: str = ""  # what the network sees of a frame's counts, see events/augment.py
    sequence: str = ""  # "given", or how images became sequences (data/sequences.py); "": neither
    sequence_seed: int = 0  # of "permuted"
    padded: bool = False  # whether some sequences are shorter than the window

    @property
    def label(self) -> str:
        """The name, with the split where there may be several: for tables and titles."""
        return f"{self.name} ({self.split})" if self.split else self.name

    @property
    def what(self) -> str:
        """What the data are, one of them."""
        return "sequence" if self.sequence else "recording" if self.frames else "image"

    @property
    def features(self) -> int:
        """Channels of what the network sees in a time step."""
        return self.channels * (self.image_size if self.sequence in ("rows", "columns") else 1)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[C, H, W], or of sequences [C], of what the network sees in a time step."""
        if self.sequence:
            return (self.features,)
        return self.channels, self.image_size, self.image_size

    @property
    def sizes(self) -> dict[str, Any]:
        """What a network is made for, as `build_model` takes it."""
        return {
            "classes": len(self.classes),
            "channels": self.features,
            "image_size": 1 if self.sequence else self.image_size,
            "sequence": bool(self.sequence),
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
