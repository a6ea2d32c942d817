"""Sequences: signals [T, C] of one length or of different ones, and images that are shown as sequences.

A batch is time first, float32 [T, b, C], normalised by channel; behind the end of a sequence it is zero, and its length
goes with the batch. What is done to a training sequence depends on its key alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.config import DataConfig
from spiketriton.data.counter_rng import uniforms
from spiketriton.data.splits import as_tensor
from spiketriton.data.transforms import Draws, Transform
from spiketriton.system.errors import UserError

Ragged = Sequence[Tensor | np.ndarray]


class SequenceSplit:
    """Labelled sequences in memory.

    Attributes:
        values: float32 [N, T, C], or a list of [T_i, C].
        labels: int64 [N], or the targets of a task [N, ...].
        lengths: int64 [N], the valid steps of each.
        channels: C.
        steps: of the longest.
    """

    def __init__(
        self,
        values: Tensor | np.ndarray | Ragged,
        labels: Any,
        lengths: Tensor | np.ndarray | Sequence[int] | None = None,
    ) -> None:
        """`values`: numbers [N, T, C], or a list of [T_i, C]; `lengths`: of the former, where they differ.

        What is behind the end of a sequence is never read, and may be anything. UserError: another shape, another kind
        of number, values that are not finite, a length that is not from 1 to T.
        """
        if isinstance(values, Tensor | np.ndarray):
            whole = _shaped(values, 3)
            longest = [whole.shape[1]] * len(whole)
            if lengths is not None:
                ends = _whole(lengths, longest)
                behind = torch.arange(whole.shape[1]) >= ends.unsqueeze(1)
                whole = real(whole, "sequences", _ACCEPTED).masked_fill(behind.unsqueeze(2), 0)
            self.values: Tensor | list[Tensor] = finite(whole, "sequences", _ACCEPTED)
            self.channels, self.steps = whole.shape[2], whole.shape[1]
        else:
            if lengths is not None:
                raise UserError(
                    "sequences: a list of [T, C] has lengths of its own; accepted: no lengths"
                )
            self.values = [
                finite(_shaped(one, 2), f"sequence {place}", _ACCEPTED)
                for place, one in enumerate(values)
            ]
            if len({one.shape[1] for one in self.values}) != 1:
                found = sorted({one.shape[1] for one in self.values}) or "no"
                raise UserError(
                    f"sequences of {found} channels; accepted: a list of [T, C] of one C"
                )
            longest = [len(one) for one in self.values]
            self.channels, self.steps = self.values[0].shape[1], max(longest)
        labels = as_tensor(labels)
        self.labels = labels.float() if labels.is_floating_point() else labels.long()
        self.lengths = torch.tensor(longest) if lengths is None else _whole(lengths, longest)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> list[Tensor]:
        """The valid steps of each, float32 [T_i, C]."""
        return [self.values[index][: self.lengths[index]] for index in indices.tolist()]

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all valid steps; 1 where a channel never changes."""
        if isinstance(self.values, Tensor) and bool((self.lengths == self.steps).all()):
            valid = self.values.flatten(0, 1)
        else:
            valid = torch.cat(self.read(np.arange(len(self.values))))
        return statistics_of(valid)


def statistics_of(steps: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of steps [n, C]; 1 where a channel never changes."""
    means, stds = [], []
    for channel in steps.unbind(1):
        std, mean = (float(x) for x in torch.std_mean(channel.double(), correction=0))
        means.append(mean)
        stds.append(std if std > 1e-9 * (1 + abs(mean)) else 1.0)
    return tuple(means), tuple(stds)


_ACCEPTED = "numbers [N, T, C], or a list of [T, C], of one step or more"


def _shaped(values: Tensor | np.ndarray, dimensions: int) -> Tensor:
    found = as_tensor(values).detach().cpu()
    if found.ndim != dimensions or 0 in found.shape:
        shape = list(found.shape)
        raise UserError(f"sequences of {found.dtype} {shape}; accepted: {_ACCEPTED}")
    return found


def real(values: Tensor, what: str, accepted: str) -> Tensor:
    """As float32 on the CPU. UserError: another kind of number."""
    if values.dtype == torch.bool or values.is_complex():
        raise UserError(f"{what} of {values.dtype} {list(values.shape)}; accepted: {accepted}")
    return values.detach().cpu().float()


def finite(values: Tensor, what: str, accepted: str) -> Tensor:
    """As float32 on the CPU. UserError: another kind of number, or one that is not finite."""
    values = real(values, what, accepted)
    # a sum tells in a fifth of the time of a few values; large ones may overflow it
    if not math.isfinite(float(values.sum())) and not bool(values.isfinite().all()):
        place = (~values.isfinite()).nonzero()[0].tolist()
        raise UserError(
            f"{what} with values that are not finite, the first at {place}; accepted: finite ones"
        )
    return values


def _whole(lengths: Any, longest: list[int]) -> Tensor:
    found = as_tensor(lengths)
    counts = torch.tensor(longest)
    right = found.shape == counts.shape and not (
        found.is_floating_point() or found.dtype == torch.bool
    )
    if not right or bool(((found < 1) | (found > counts)).any()):
        low, high = (f"{found.min()}", f"{found.max()}") if found.numel() else ("none", "none")
        raise UserError(
            f"lengths of {found.dtype} {list(found.shape)} from {low} to {high}; accepted: {len(longest)} integers "
            f"from 1 to {max(longest)}"
        )
    return found.long().cpu()


@dataclass(frozen=True, kw_only=True)
class TimeMoves:
    """How far training sequences are changed; 0 leaves them as they are.

    shift: they begin up to so many steps later or earlier. stretch: they take up to this share more or less time.
    mask_steps, mask_channels: up to so many steps, and channels, in a row are set to the mean (SpecAugment, Park et al.
    2019, arXiv 1904.08779).
    """

    shift: int = 0
    stretch: float = 0.0
    mask_steps: int = 0
    mask_channels: int = 0

    @classmethod
    def of(cls, config: DataConfig, steps: int, channels: int) -> "TimeMoves":
        """What a recipe asks for: "auto" is 1/16 of the steps and 10 % under standard, with masks of 1/8 in strong."""
        some, much = config.augment != "none", config.augment == "strong"
        usual: dict[str, Any] = {
            "shift": round(steps / 16) if some else 0,
            "stretch": 0.1 if some else 0.0,
            "mask_steps": round(steps / 8) if much else 0,
            "mask_channels": round(channels / 8) if much else 0,
        }
        for name in usual:
            if (value := getattr(config.augmentation, name)) != "auto":
                usual[name] = value
        return cls(**usual)

    def moved(self, x: Tensor, draws: Sequence[float], steps: int) -> Tensor:
        """A normalised sequence [L, C] -> [L', C], of 1 to `steps`; `draws`: 6 numbers from [0, 1)."""
        if self.stretch:
            wanted = round(len(x) * (1 + self.stretch * (2 * draws[0] - 1)))
            x = resampled(x, min(max(1, wanted), steps))
        if self.shift:
            by = int((2 * self.shift + 1) * draws[1]) - self.shift
            x = F.pad(x, (0, 0, by, 0)) if by > 0 else x[min(-by, len(x) - 1) :]
            x = x[:steps]
        if self.mask_steps or self.mask_channels:
            x = x.clone()
            for dim, most, (size, place) in (
                (0, self.mask_steps, draws[2:4]),
                (1, self.mask_channels, draws[4:6]),
            ):
                wide = min(int((most + 1) * size), x.shape[dim])
                start = int((x.shape[dim] - wide + 1) * place)
                x.narrow(dim, start, wide).zero_()
        return x


def resampled(x: Tensor, steps: int) -> Tensor:
    """[L, C] -> [steps, C] by straight lines between the steps, the first and the last where they were."""
    return F.interpolate(x.T[None], steps, mode="linear", align_corners=True)[0].T


@dataclass(frozen=True)
class SequenceTransform(Transform):
    """Normalises by channel, changes (training only), pads with zeros to `steps`, and puts time first.

    padded: whether batches tell the lengths of their sequences.
    """

    steps: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    moves: TimeMoves
    padded: bool

    @cached_property
    def _channels(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean), torch.tensor(self.std)

    def normalised(self, values: Tensor) -> Tensor:
        """Values [..., C] by their channels."""
        mean, std = self._channels
        return values.sub(mean).div_(std)

    def load(self, images: Sequence[Tensor], keys: np.ndarray | None) -> tuple[Tensor, Draws]:
        """Of sequences [T_i, C]: all of it, float32 [T, b, C]; `lengths` int64 [b] is what is drawn."""
        whole = self.normalised(torch.cat([*images]))
        ready = list(whole.split([len(one) for one in images]))
        if keys is not None and self.moves != TimeMoves():
            draws = uniforms(keys, 6).tolist()
            ready = [
                self.moves.moved(one, drawn, self.steps)
                for one, drawn in zip(ready, draws, strict=True)
            ]
        batch = whole.new_zeros(self.steps, len(ready), whole.shape[1])
        for place, one in enumerate(ready):
            batch[: len(one), place] = one
        lengths = {"lengths": np.array([len(one) for one in ready])} if self.padded else {}
        return batch, lengths

    def finish(self, images: Tensor, draws: Draws) -> Tensor:
        return images


@dataclass(frozen=True)
class UnrolledTransform(Transform):
    """Images as sequences, after the transform of images: [b, C, S, S] -> [T, b, C'].

    order: "rows" (T = S, from the top; a row of each channel behind the other), "columns" (from the left), "pixels"
    (T = S * S, row by row), "permuted" (the same in an order drawn from `seed`, one for all images).
    """

    images: Transform
    order: str
    seed: int

    def load(self, images: Any, keys: np.ndarray | None) -> tuple[Tensor, Draws]:
        return self.images.load(images, keys)

    def finish(self, images: Tensor, draws: Draws) -> Tensor:
        return unrolled(self.images.finish(images, draws), self.order, self.seed)


def unrolled(x: Tensor, order: str, seed: int) -> Tensor:
    """Images [b, C, H, W] as sequences [T, b, C']: see `UnrolledTransform`."""
    if order == "rows":
        return x.permute(2, 0, 1, 3).flatten(2).contiguous()
    if order == "columns":
        return x.permute(3, 0, 1, 2).flatten(2).contiguous()
    pixels = x.flatten(2).permute(2, 0, 1).contiguous()
    if order == "pixels":
        return pixels
    return pixels[drawn_order(len(pixels), seed).to(x.device)]


def drawn_order(pixels: int, seed: int) -> Tensor:
    """The pixel of each step of "permuted", int64 [pixels], counted row by row."""
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(seed))


def given_sequences(values: Any, channels: int, steps: int) -> SequenceSplit:
    """Sequences that somebody hands over, with labels of 0. UserError: other shapes, or more steps."""
    accepted = f"numbers [B, T, {channels}] or a list of [T, {channels}], of 1 to {steps} steps"
    if not isinstance(values, Tensor | np.ndarray | Sequence) or isinstance(values, str):
        raise UserError(f"sequences as a {type(values).__name__}; accepted: {accepted}")
    if len(values) == 0:
        raise UserError(f"no sequence was given; accepted: {accepted}")
    if not isinstance(values, Tensor | np.ndarray):
        wrong = [type(one).__name__ for one in values if not isinstance(one, Tensor | np.ndarray)]
        if wrong:
            raise UserError(f"a sequence as a {wrong[0]}; accepted: {accepted}")
    split = SequenceSplit(values, np.zeros(len(values), np.int64))
    if split.channels != channels or split.steps > steps:
        raise UserError(
            f"sequences of up to {split.steps} steps and {split.channels} channels; accepted: {accepted}"
        )
    return split
