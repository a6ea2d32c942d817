"""Spikes as bits, and back (``convolutions/packed.py``)."""

from __future__ import annotations

import torch

from ..triton_import import tl, triton
from .triton_launch import launch

_BLOCK = 512  # bytes a program writes


@triton.jit
def _places(n, BLOCK: tl.constexpr):
    """Bytes [BLOCK] of a program, their spikes [BLOCK, 8], and which of both are of four whole bytes.

    Four bytes share one mask, and so do the spikes of each: then they are one access, whatever n is. What is left of
    n lies in the last program.
    """
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offs = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    return byte, offs, byte // 4 < n // 32


@triton.jit
def pack_kernel(
    spikes_ptr,  # [n]
    bits_ptr,  # [(n + 7) // 8] uint8 out
    n,
    BLOCK: tl.constexpr,
):
    byte, offs, whole = _places(n, BLOCK)
    last = tl.program_id(0) == tl.num_programs(0) - 1
    spikes = tl.load(spikes_ptr + offs, mask=whole[:, None], other=0.0)
    if last:
        rest = (whole == 0)[:, None] & (offs < n)
        spikes += tl.load(spikes_ptr + offs, mask=rest, other=0.0)
    fired = spikes.to(tl.float32) != 0.0
    value = tl.sum(fired.to(tl.int32) << tl.arange(0, 8)[None, :], axis=1).to(tl.uint8)
    tl.store(bits_ptr + byte, value, mask=whole)
    if last:
        tl.store(bits_ptr + byte, value, mask=(whole == 0) & (byte * 8 < n))


@triton.jit
def unpack_kernel(
    bits_ptr,  # [(n + 7) // 8] uint8
    spikes_ptr,  # [n] out
    n,
    BLOCK: tl.constexpr,
):
    byte, offs, whole = _places(n, BLOCK)
    last = tl.program_id(0) == tl.num_programs(0) - 1
    value = tl.load(bits_ptr + byte, mask=whole, other=0)
    if last:
        value += tl.load(bits_ptr + byte, mask=(whole == 0) & (byte * 8 < n), other=0)
    fired = (value.to(tl.int32)[:, None] >> tl.arange(0, 8)[None, :]) & 1
    spikes = fired.to(tl.float32).to(spikes_ptr.dtype.element_ty)
    tl.store(spikes_ptr + offs, spikes, mask=whole[:, None])
    if last:
        tl.store(spikes_ptr + offs, spikes, mask=(whole == 0)[:, None] & (offs < n))


def pack(spikes: torch.Tensor, bits: torch.Tensor) -> None:
    """Fill bits, uint8, from flat spikes."""
    grid = (triton.cdiv(bits.numel(), _BLOCK),)
    launch(pack_kernel, grid, spikes, spikes, bits, spikes.numel(), BLOCK=_BLOCK)


def unpack(bits: torch.Tensor, spikes: torch.Tensor) -> None:
    """Fill flat spikes from bits, uint8."""
    grid = (triton.cdiv(bits.numel(), _BLOCK),)
    launch(unpack_kernel, grid, bits, bits, spikes, spikes.numel(), BLOCK=_BLOCK)
