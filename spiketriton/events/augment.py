"""From counts of events to what the network sees: augmented (training) or as they are, time first.

`transform(frames, keys)` takes uint8 [b, T, 2, S, S] and gives float32 [T', b, 2, S, S], as transforms of images do.
What is done to a recording is done to all of its frames alike and depends on its key alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from spiketriton.config import DataConfig
from spiketriton.data.counter_rng import mix, uniforms
from spiketriton.data.transforms import Draws, Transform

_DELETE = 2  # keeps these draws of a key apart


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How far training recordings are changed; 0 and False leave them as they are."""

    flip: bool = False  # mirror half of them
    roll: int = 0  # shift by up to so many pixels; what leaves at one side enters at the other
    rotate: float = 0.0  # turn by up to so many degrees
    shear: float = 0.0  # move a row by up to this share of its distance from the middle
    cutout: int = 0  # side in pixels of a square that is left without events
    delete: int = 0  # leave out so many frames, drawn anew for each recording

    @classmethod
    def of(cls, config: DataConfig, size: int, *, mirrors: bool) -> "Moves":
        """What a recipe asks for, for frames of `size` pixels; `mirrors`: classes survive a mirror.

        "auto" under standard: mirror and roll by up to 5 pixels of 48 (Deng et al. 2022, arXiv 2202.11946); strong:
        also turn by up to 15 degrees, shear by up to 0.15 and cut out 8 pixels of 48 (Li et al. 2022, arXiv
        2203.06145).
        """
        some, much = config.augment != "none", config.augment == "strong"
        usual: dict[str, Any] = {
            "flip": some and mirrors,
            "roll": round(5 * size / 48) if some else 0,
            "rotate": 15.0 if much else 0.0,
            "shear": 0.15 if much else 0.0,
            "cutout": round(8 * size / 48) if much else 0,
        }
        for name in ("flip", "roll", "cutout"):
            if (value := getattr(config.augmentation, name)) != "auto":
                usual[name] = value
        return cls(**usual, delete=config.augmentation.delete)


@dataclass(frozen=True)
class EventTransform(Transform):
    """Augments (training only), scales counts, and puts time first.

    count: what the network sees of n events: "log" ln(1 + n), "clip" 1 if there is one, "raw" n.
    """

    count: str
    moves: Moves

    def load(self, frames: Tensor, keys: np.ndarray | None) -> tuple[Tensor, Draws]:
        """The first half: augmented, time first, uint8 [T', b, 2, S, S]; no draw is left."""
        if keys is not None:
            draws = uniforms(keys, 8)
            each = zip(frames, keys, draws, strict=True)
            frames = torch.stack([self._moved(frame, key, draw) for frame, key, draw in each])
        return frames.transpose(0, 1).contiguous(), {}

    def finish(self, frames: Tensor, draws: Draws) -> Tensor:
        """The second half, on any device: counts as the network sees them, float32."""
        counts = frames.float()
        if self.count == "log":
            return counts.log1p_()
        return counts.clamp_(max=1) if self.count == "clip" else counts

    def _moved(self, frames: Tensor, key: np.uint64, draws: np.ndarray) -> Tensor:
        """One recording, uint8 [T, 2, S, S] -> [T', 2, S, S]; `draws`: 8 numbers from [0, 1)."""
        moves, size = self.moves, frames.shape[-1]
        if moves.delete:
            frames = frames[kept_steps(key, len(frames), moves.delete)]
        if moves.flip and draws[1] < 0.5:
            frames = frames.flip(3)
        if moves.roll:
            down, right = (int((2 * moves.roll + 1) * draw) - moves.roll for draw in draws[2:4])
            frames = frames.roll((down, right), (2, 3))
        if moves.rotate or moves.shear:
            turn, shear = 2 * draws[4:6] - 1
            frames = turned(frames, math.radians(moves.rotate) * turn, moves.shear * shear)
        if moves.cutout:
            frames = frames.clone()
            top, left = (int((size + moves.cutout - 1) * draw) + 1 for draw in draws[6:8])
            above, before = max(0, top - moves.cutout), max(0, left - moves.cutout)
            frames[:, :, above:top, before:left] = 0
        return frames


def kept_steps(key: np.uint64, steps: int, deleted: int) -> np.ndarray:
    """The frames left of `steps` by random temporal delete (Fang et al. 2021, arXiv 2102.04159), in order."""
    draws = mix(np.array([key]), _DELETE, np.arange(steps))
    return np.sort(np.argsort(draws, kind="stable")[deleted:])


def turned(frames: Tensor, angle: float, shear: float) -> Tensor:
    """Frames uint8 [T, 2, S, S] turned by `angle` (radians), then sheared along x: the nearest counts."""
    size = frames.shape[-1]
    at = (2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1
    y, x = at[:, None], at[None, :] - shear * at[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    grid = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=2).float()
    counts = frames.flatten(0, 1)[None].float()
    found = grid_sample(counts, grid[None], mode="nearest", align_corners=False)
    return found[0].to(torch.uint8).view(frames.shape)
