"""Spikes at one bit each: what a convolution keeps for its weight gradient, 16 times smaller than bfloat16.

Bit i of byte j is the spike at memory offset 8 j + i: packing follows memory order, so any dense layout (contiguous,
channels_last) packs without a copy and unpacks into the same layout.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..arguments import DTYPES
from ..backends import native
from ..backends.choice import Later, backend_for
from ..layout import gapless

_KERNELS: dict[str, Any] = {"triton": Later("triton_packed"), "native": native}


def _flat(x: torch.Tensor) -> torch.Tensor:
    """The elements of a gapless tensor in memory order, as a view."""
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def _weights(device: torch.device) -> torch.Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


@torch.library.custom_op("spiketriton::pack_spikes", mutates_args=())
def _pack(spikes: torch.Tensor) -> torch.Tensor:
    n = spikes.numel()
    flat = _flat(spikes)
    bits = spikes.new_empty((n + 7) // 8, dtype=torch.uint8)
    if n == 0:
        return bits
    backend = backend_for(spikes)
    if backend in _KERNELS:
        _KERNELS[backend].pack(flat, bits)
    else:
        padded = torch.zeros(bits.numel() * 8, dtype=torch.bool, device=spikes.device)
        padded[:n] = flat != 0
        bits = (padded.view(-1, 8) * _weights(spikes.device)).sum(1, dtype=torch.uint8)
    return bits


@_pack.register_fake
def _(spikes):
    return spikes.new_empty((spikes.numel() + 7) // 8, dtype=torch.uint8)


@torch.library.custom_op("spiketriton::unpack_spikes", mutates_args=())
def _unpack(
    bits: torch.Tensor, size: list[int], stride: list[int], dtype: torch.dtype
) -> torch.Tensor:
    spikes = torch.empty_strided(size, stride, dtype=dtype, device=bits.device)
    n = spikes.numel()
    if n == 0:
        return spikes
    flat = _flat(spikes)
    backend = backend_for(spikes)
    if backend in _KERNELS:
        _KERNELS[backend].unpack(bits, flat)
    else:
        fired = bits.view(-1, 1).bitwise_and(_weights(bits.device)) != 0
        flat.copy_(fired.view(-1)[:n])
    return spikes


@_unpack.register_fake
def _(bits, size, stride, dtype):
    return torch.empty_strided(size, stride, dtype=dtype, device=bits.device)


def pack_spikes(spikes: torch.Tensor) -> torch.Tensor:
    """Spikes as bits, in memory order.

    Args:
        spikes: any floating tensor without gaps in memory (contiguous, channels_last, a permutation of them); what is
            not 0 counts as a spike.

    Returns:
        uint8 [(n + 7) // 8] for n elements. Has no gradient.

    Raises:
        TypeError: not a floating tensor. ValueError: a tensor with gaps or overlaps in memory.
    """
    if not isinstance(spikes, torch.Tensor) or spikes.dtype not in DTYPES:
        given = spikes.dtype if isinstance(spikes, torch.Tensor) else type(spikes).__name__
        raise TypeError(
            f"spikes must be a tensor of float16, bfloat16, float32 or float64, got {given}"
        )
    if spikes.numel() and not gapless(spikes.shape, spikes.stride()):
        raise ValueError(
            f"spikes of shape {tuple(spikes.shape)} have gaps in memory (strides {spikes.stride()}); accepted: dense"
        )
    return _pack(spikes.detach())


def unpack_spikes(
    bits: torch.Tensor,
    size: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The spikes that ``pack_spikes`` packed: 0 and 1 in the given shape, strides and dtype.

    Raises:
        TypeError: bits are not uint8, or the dtype is not floating. ValueError: sizes and strides that do not fit,
            strides with gaps, or a number of bytes that does not fit the shape.
    """
    if not isinstance(bits, torch.Tensor) or bits.dtype != torch.uint8:
        given = bits.dtype if isinstance(bits, torch.Tensor) else type(bits).__name__
        raise TypeError(f"bits must be a uint8 tensor, got {given}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype {dtype} is not one of float16, bfloat16, float32, float64")
    whole = all(isinstance(n, int | torch.SymInt) for n in (*size, *stride))
    if not whole or len(size) != len(stride) or any(n < 0 for n in size):
        raise ValueError(
            f"size {tuple(size)} and strides {tuple(stride)} do not fit; accepted: as many integers each, sizes from 0"
        )
    n = math.prod(size)
    if n and not gapless(size, stride):
        raise ValueError(
            f"strides {tuple(stride)} of shape {tuple(size)} leave gaps in memory; accepted: dense"
        )
    if bits.numel() != (n + 7) // 8:
        raise ValueError(
            f"{bits.numel()} bytes do not hold a shape of {n} spikes; accepted: {(n + 7) // 8} bytes"
        )
    return _unpack(bits.contiguous(), list(size), list(stride), dtype)
