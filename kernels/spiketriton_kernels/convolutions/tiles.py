"""Convolutions by a processor's matrix unit (AMX), which multiplies bfloat16: tiles.cpp, compiled once per machine.

Kernels of 1x1 and 3x3 pixels, padded by (k - 1) / 2, strides 1 and 2; channels read and written are multiples of 16.
Tensors are dense [N, H, W, C], weights float32 [O, k, k, C], which are rounded to bfloat16; products are summed up in
float32, and so is the gradient by the weights. What is not finite reaches what sees it and nothing else, but in the
gradient by the weights all of its channels. The same bits by any number of threads.

In float32, convolutions of spikes: whole numbers that bfloat16 has (`narrowed`). A float32 is the sum of three values
of bfloat16, so their products with spikes are exact, and the sums as good as any of float32.
"""

from __future__ import annotations

import ctypes
import functools
import struct

import torch
from torch import Tensor

from ..backends import native
from .library import load, loaded

LANES = 16
_SIZES = struct.Struct("@8q")


@functools.cache
def available() -> bool:
    """Whether this processor has such a unit, the system lends it to this process, and there is a compiler for it."""
    if "amx_bf16" not in native._machine():
        return False  # nothing is compiled
    library = load("tiles")
    return not isinstance(library, native.CompilerError) and bool(library.spiketriton_tiles())


def serves(dtype: torch.dtype, read: int, written: int, kernel: int, stride: int) -> bool:
    """Whether a convolution is computed here, in whatever sizes of images; float32: one of spikes."""
    fits = kernel in (1, 3) and stride in (1, 2) and not (read % LANES or written % LANES)
    return fits and dtype in (torch.bfloat16, torch.float32) and available()


def output(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """[N, H', W', O]."""
    sides = (-(-side // stride) for side in x.shape[1:3])
    y = x.new_empty(len(x), *sides, len(weight))
    _call("spiketriton_tiles_output", x.shape, weight.shape, stride, x, weight, y)
    return y


def by_input(dy: Tensor, weight: Tensor, stride: int, size: torch.Size) -> Tensor:
    """The gradient [N, H, W, C] by an input of size [N, C, H, W]."""
    images, read, height, width = size
    made = dy.new_zeros if weight.shape[1] < stride else dy.new_empty
    dx = made(images, height, width, read)
    _call("spiketriton_tiles_by_input", dx.shape, weight.shape, stride, dy, weight, dx)
    return dx


def by_weight(dy: Tensor, x: Tensor, stride: int, size: torch.Size) -> Tensor:
    """The gradient float32 [O, k, k, C] by weights of size [O, C, k, k]."""
    written, read, kernel, _ = size
    dw = x.new_empty(written, kernel, kernel, read, dtype=torch.float32)
    _call("spiketriton_tiles_by_weight", x.shape, dw.shape, stride, x, dy, dw)
    return dw


def narrowed(x: Tensor) -> Tensor | None:
    """A dense float32 x in bfloat16, if every value is finite and the same there; else None."""
    halves = torch.empty_like(x, dtype=torch.bfloat16)
    sizes = ctypes.c_int64(x.numel()), ctypes.c_int64(torch.get_num_threads())
    places = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(halves.data_ptr())
    return halves if loaded("tiles").spiketriton_spikes(*sizes, *places) else None


def output_of_spikes(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Float32 [N, H', W', O] of `narrowed` x."""
    sides = (-(-side // stride) for side in x.shape[1:3])
    y = x.new_empty(len(x), *sides, len(weight), dtype=torch.float32)
    _call("spiketriton_spikes_output", x.shape, weight.shape, stride, x, weight, y)
    return y


def by_weight_of_spikes(dy: Tensor, x: Tensor, stride: int, size: torch.Size) -> Tensor:
    """The gradient [O, k, k, C] by weights of size [O, C, k, k], of float32 dy and `narrowed` x."""
    written, read, kernel, _ = size
    dw = dy.new_empty(written, kernel, kernel, read)
    _call("spiketriton_spikes_by_weight", x.shape, dw.shape, stride, x, dy, dw)
    return dw


def _call(function: str, x: torch.Size, weight: torch.Size, stride: int, *tensors: Tensor) -> None:
    if not x.numel():
        tensors[-1].zero_()
        return
    written, kernel = weight[:2]
    sizes = _SIZES.pack(*x, written, kernel, stride, torch.get_num_threads())
    places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    getattr(loaded("tiles"), function)(sizes, *places)
