"""Spikes that a neuron has left as bits as well, for the convolution that reads them: see `convolutions/tiles.py`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import beside, native

LANES = 16
"""Spikes in a word."""


def room(x: Tensor) -> Tensor | None:
    """Memory for the bits of spikes like x [T, B, C, H, W]; None where no convolution would read them."""
    size = x.shape
    if len(size) != 5 or size[2] % LANES or x.stride(2) != 1 or not _read():
        return None
    return x.new_empty(size[0] * size[1], *size[3:], size[2] // LANES, dtype=torch.int16)


_read = functools.cache(native.matrix_unit)
"""Whether there is the unit whose convolutions read them."""


def of(x: Tensor) -> Tensor | None:
    """The bits [N, H, W, C / 16] of a view [N, H, W, C] of such spikes, all of them in their order; else None."""
    bits = beside.of(x) if x.is_contiguous() else None
    if bits is None or bits.dtype != torch.int16:
        return None
    return bits if x.shape == (*bits.shape[:3], bits.shape[3] * LANES) else None
