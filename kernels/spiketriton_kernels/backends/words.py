"""Spikes that a neuron has left as bits as well, for the convolution that reads them: see `convolutions/tiles.py`."""

from __future__ import annotations

import functools
import weakref

import torch
from torch import Tensor

from . import native

LANES = 16
"""Spikes in a word."""

_kept: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}
"""Each living tensor of spikes, its version, and its bits, by the address of its memory."""


def room(x: Tensor) -> Tensor | None:
    """Memory for the bits of spikes like x [T, B, C, H, W]; None where no convolution would read them."""
    size = x.shape
    if len(size) != 5 or size[2] % LANES or x.stride(2) != 1 or not _read():
        return None
    return x.new_empty(size[0] * size[1], *size[3:], size[2] // LANES, dtype=torch.int16)


@functools.cache
def _read() -> bool:
    """Whether this processor has the unit whose convolutions read them."""
    return "amx_bf16" in native._machine()


def keep(spikes: Tensor, bits: Tensor) -> None:
    """For as long as the spikes live, and are not changed."""
    address = spikes.untyped_storage().data_ptr()
    reference = weakref.ref(spikes, lambda gone: _forget(address, gone))
    version = 0 if spikes.is_inference() else spikes._version
    _kept[address] = reference, version, bits


def hand_on(spikes: Tensor, view: Tensor) -> Tensor:
    """The view, which has the bits of the spikes for as long as it lives."""
    if torch.compiler.is_compiling():  # a graph has no addresses
        return view
    known = _kept.get(spikes.untyped_storage().data_ptr())
    if known is not None and known[0]() is spikes:
        keep(view, known[2])
    return view


def _forget(address: int, gone: weakref.ref[Tensor]) -> None:
    if address in _kept and _kept[address][0] is gone:
        del _kept[address]


def of(x: Tensor) -> Tensor | None:
    """The bits [N, H, W, C / 16] of a view [N, H, W, C] of such spikes, all of them in their order; else None."""
    reference, version, bits = _kept.get(x.untyped_storage().data_ptr(), (None, 0, None))
    spikes = None if reference is None else reference()
    if spikes is None or bits is None or spikes.dtype != x.dtype or not x.is_contiguous():
        return None
    now = 0 if spikes.is_inference() else spikes._version
    size = (*bits.shape[:3], bits.shape[3] * LANES)
    return bits if now == version and x.shape == size else None
