"""What a Triton launch may choose without changing what it computes: reasoned, or measured on a GPU of the kind.

``tuning.json`` beside this file, where there is one, holds what ``profiling/run.py tune`` found fastest, by compute
capability and by kernel, window and dtype; everything else is chosen where it is used. Sums may be added in another
order then, spikes and states are equal to the bit.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .triton_launch import forget

FILE = Path(__file__).with_name("tuning.json")

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Tuning(NamedTuple):
    """Of a launch; None: what is reasoned."""

    warps: int | None = None
    """Of a program: 1, 2, 4, 8 or 16."""
    width: int | None = None
    """Neighbouring elements of a thread: a power of two."""
    ahead: int | None = None
    """Time steps that are read ahead of the one at work."""
    stages: int | None = None
    """Of a loop over tiles: those under way, the one at work among them."""
    programs: int | None = None
    """On a processor, where each works on many tiles."""


REASONED = Tuning()

KERNELS = {
    "fire": ("warps", "width", "ahead"),
    "norm fire": ("warps", "width", "ahead"),
    "walk": ("warps", "width", "ahead", "stages", "programs"),
    "walk sums": ("warps", "width", "ahead", "stages", "programs"),
    "walk dy": ("warps", "width", "ahead", "stages", "programs"),
    "walk dx": ("warps", "width", "ahead", "stages", "programs"),
    "walk current": ("warps", "width", "ahead", "stages", "programs"),
    "statistics": ("warps", "width", "stages", "programs"),
    "norm backward": ("warps", "width", "ahead"),
}
"""What each kernel may choose. A walk back is alone, or behind batch norm: for its sums, for dL/dy, for dL/dx, and
where the current has a gradient of its own."""

_tried: tuple[str, Tuning] | None = None


def tuned(kernel: str, x: torch.Tensor) -> Tuning:
    """Of the launch of one of ``KERNELS`` on x [T, B, C, ...]. ValueError: what is wrong in ``FILE``."""
    if _tried is not None and _tried[0] == kernel:
        return _tried[1]
    if x.device.type != "cuda":
        return REASONED
    return _of(FILE, _capability(x.device.index)).get((kernel, x.shape[0], x.dtype), REASONED)


@contextlib.contextmanager
def trying(kernel: str, tuning: Tuning) -> Iterator[None]:
    """Within the block a kernel's launches are these, whatever is tuned."""
    global _tried
    before, _tried = _tried, (kernel, tuning)
    forget()
    try:
        yield
    finally:
        _tried = before
        forget()


@functools.cache
def _capability(index: int) -> str:
    return "{}.{}".format(*torch.cuda.get_device_capability(index))


@functools.cache
def _of(file: Path, capability: str) -> dict[tuple[str, int, torch.dtype], Tuning]:
    return read(file).get(capability, {}) if file.exists() else {}


def read(file: Path) -> dict[str, dict[tuple[str, int, torch.dtype], Tuning]]:
    """What a file holds. ValueError: it is not of ``write``."""
    try:
        found = json.loads(file.read_text("utf-8"))
        return {card: dict(map(_entry, entries)) for card, entries in found.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        accepted = f"accepted: what `python profiling/run.py tune` writes, or no file ({error!r})"
        raise ValueError(f"{file} holds no tuning; {accepted}") from error


def write(file: Path, found: dict[str, dict[tuple[str, int, torch.dtype], Tuning]]) -> None:
    """One line for each entry."""
    cards = []
    for card, entries in sorted(found.items()):
        lines = [
            json.dumps(dict(kernel=kernel, T=T, dtype=DTYPES[dtype]) | _given(tuning))
            for (kernel, T, dtype), tuning in sorted(entries.items(), key=str)
        ]
        cards.append(f"{json.dumps(card)}: [\n" + ",\n".join(lines) + "\n]")
    file.write_text("{\n" + ",\n".join(cards) + "\n}\n", "utf-8")


def _given(tuning: Tuning) -> dict[str, int]:
    return {name: value for name, value in tuning._asdict().items() if value is not None}


def _entry(line: dict[str, Any]) -> tuple[tuple[str, int, torch.dtype], Tuning]:
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    rest = dict(line)
    kernel, T, dtype = rest.pop("kernel"), rest.pop("T"), dtypes[rest.pop("dtype")]
    for name, value in rest.items():
        accepted = f"{kernel}: accepted: whole numbers from 1 for {', '.join(KERNELS[kernel])}"
        if name not in KERNELS[kernel] or type(value) is not int or value < 1:
            raise ValueError(f"{name} = {value!r} of {accepted}")
        if name in ("warps", "width") and (value & (value - 1) or value > 16):
            raise ValueError(f"{name} = {value} of {kernel}: accepted: 1, 2, 4, 8, 16")
    return (kernel, T, dtype), Tuning(**rest)
