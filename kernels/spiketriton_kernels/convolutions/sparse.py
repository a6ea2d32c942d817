"""3x3 convolutions of spikes on a CPU that multiply nothing by 0: sparse.cpp, compiled once per machine.

Stride 1, padding 1, float32. Tensors are dense [N, H, W, C], weights [O, 3, 3, C], O a multiple of `lanes`. A weight
that is infinite or NaN has no effect where the input is 0.
"""

from __future__ import annotations

import ctypes
import functools
import struct

import torch
from torch import Tensor

from ..backends import native
from .library import load, loaded

_SIZES = struct.Struct("@6q")

SHARES = {
    "AVX2": ((128, 0.5), (64, 0.45), (32, 0.35), (16, 0.15)),
    "AVX512": ((64, 0.3), (32, 0.2)),
}
"""By a processor's vectors: channels written, and up to which share of spikes they take less time than oneDNN's."""
FEW_PIXELS, SHARE_OF_FEW, LEAST_PIXELS = 49, 0.2, 16
"""On fewer pixels that share is at most this, and on fewer than the least 0: a border is summed up with them."""
IMAGES = 8
"""From so many of x, spread over all time steps, the share is taken."""


def pays(x: Tensor, written: int) -> bool:
    """Whether a convolution of x [N, C, H, W] takes less time here than oneDNN's."""
    pixels = x.shape[2] * x.shape[3]
    shares = SHARES.get(torch.backends.cpu.get_cpu_capability(), ())
    limit = next((share for least, share in shares if written >= least), 0.0)
    fits = x.dtype == torch.float32 and len(x) and pixels >= LEAST_PIXELS
    if not fits or not limit or not available() or written % lanes():
        return False
    some = x[:: -(-len(x) // IMAGES)]
    most = limit if pixels >= FEW_PIXELS else min(limit, SHARE_OF_FEW)
    return bool(some.count_nonzero() <= most * some.numel())


def available() -> bool:
    """Whether there is a compiler for it."""
    return not isinstance(load("sparse"), native.CompilerError)


def output(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """[N, H, W, O]."""
    y = x.new_empty(*x.shape[:3], len(weight))
    _call("spiketriton_output", x, len(weight), _packed(weight), y)
    return y


def by_weight(dy: Tensor, x: Tensor, stride: int = 1, size: torch.Size | None = None) -> Tensor:
    """The gradient [O, 3, 3, C]."""
    written, read = dy.shape[3], x.shape[3]
    packed = x.new_empty(written // lanes(), read, 9, lanes())
    _call("spiketriton_by_weight", x, written, dy, packed)
    return packed.permute(0, 3, 2, 1).reshape(written, 3, 3, read)


@functools.cache
def lanes() -> int:
    """Channels that are written at a time."""
    return int(loaded("sparse").spiketriton_lanes())


def _packed(weight: Tensor) -> Tensor:
    blocks = weight.reshape(-1, lanes(), 9, weight.shape[3])
    return blocks.permute(0, 3, 2, 1).contiguous()


def _call(function: str, x: Tensor, written: int, *tensors: Tensor) -> None:
    images, height, width, read = x.shape
    sizes = _SIZES.pack(images, read, height, width, written, torch.get_num_threads())
    places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, *tensors)]
    getattr(loaded("sparse"), function)(sizes, *places)
