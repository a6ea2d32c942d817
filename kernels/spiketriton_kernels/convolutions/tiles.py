"""Convolutions by a processor's matrix unit (AMX), which multiplies bfloat16: tiles.cpp, compiled once per machine.

Kernels of 1x1 and 3x3 pixels, padded by (k - 1) / 2, strides 1 and 2; channels read and written are multiples of 16.
Tensors are dense [N, H, W, C], weights float32 [O, k, k, C], which are rounded to bfloat16; products are summed up in
float32, and so is the gradient by the weights. What is not finite reaches what sees it and nothing else, but in the
gradient by the weights all of its channels. The same bits by any number of threads.

In float32, convolutions of spikes: of 0 and 1 (`bits`), or other whole numbers that bfloat16 has (`narrowed`). A
float32 is the sum of three values of bfloat16, so their products with spikes are exact, and the sums as good as any of
float32. So are gradients by the input, of six products.
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
_SIZES = struct.Struct("@10q")


@functools.cache
def available() -> bool:
    """Whether this processor has such a unit, it is wanted, the system lends it, and there is a compiler for it."""
    if not native.matrix_unit():
        return False  # nothing is compiled
    library = load("tiles")
    return not isinstance(library, native.CompilerError) and bool(library.spiketriton_tiles())


def serves(dtype: torch.dtype, read: int, written: int, kernel: int, stride: int) -> bool:
    """Whether a convolution is computed here, in whatever sizes of images; float32: one of spikes."""
    fits = kernel in (1, 3) and stride in (1, 2) and not (read % LANES or written % LANES)
    return fits and dtype in (torch.bfloat16, torch.float32) and available()


def output(
    x: Tensor,
    weight: Tensor,
    stride: int,
    dtype: torch.dtype | None = None,
    moments: Tensor | None = None,
) -> Tensor:
    """[N, H', W', O] of bfloat16 x, or of spikes as `bits`; in float32 of these, and of `narrowed` x.

    moments: float64 [2, O], is filled with the mean and the biased variance of each channel of what is written.
    """
    sides = (-(-side // stride) for side in x.shape[1:3])
    y = x.new_empty(len(x), *sides, len(weight), dtype=dtype or torch.bfloat16)
    size = torch.Size([*x.shape[:3], weight.shape[3]])
    floats = y.dtype == torch.float32
    given = x, weight, moments, y
    _call("spiketriton_tiles_output", size, weight.shape, stride, *given, floats=floats)
    return y


def by_input(
    dy: Tensor, weight: Tensor, stride: int, size: torch.Size, more: Tensor | None = None
) -> Tensor:
    """The gradient [N, H, W, C] by an input of size [N, C, H, W], and `more`, as it, summed up before it is rounded."""
    dx = _like_input(dy, weight, stride, size, more)
    _call("spiketriton_tiles_by_input", dx.shape, weight.shape, stride, dy, weight, more, dx)
    return dx


def by_input_of_floats(
    dy: Tensor, weight: Tensor, stride: int, size: torch.Size, more: Tensor | None = None
) -> Tensor | None:
    """The same in float32: dy and weights are sums of three values of bfloat16. None: one of them is not finite."""
    dx = _like_input(dy, weight, stride, size, more)
    made = _call(
        "spiketriton_floats_by_input", dx.shape, weight.shape, stride, dy, weight, more, dx
    )
    return dx if made else None


def _like_input(
    dy: Tensor, weight: Tensor, stride: int, size: torch.Size, more: Tensor | None
) -> Tensor:
    """Where a kernel leaves pixels out, what stays there."""
    images, read, height, width = size
    if weight.shape[1] >= stride:
        return dy.new_empty(images, height, width, read)
    return dy.new_zeros(images, height, width, read) if more is None else more.clone()


def by_weight(dy: Tensor, x: Tensor, stride: int, size: torch.Size) -> Tensor:
    """The gradient float32 [O, k, k, C] by weights of size [O, C, k, k]; x and dy as x and the answer of `output`."""
    written, read, kernel, _ = size
    dw = x.new_empty(written, kernel, kernel, read, dtype=torch.float32)
    sizes = torch.Size([*x.shape[:3], read])
    floats = dy.dtype == torch.float32
    _call("spiketriton_tiles_by_weight", sizes, dw.shape, stride, x, dy, dw, floats=floats)
    return dw


def bits(x: Tensor) -> Tensor | None:
    """A dense x [N, H, W, C], C a multiple of 16, of nothing but 0 and 1 as int16 [N, H, W, C / 16]; else None."""
    words = x.new_empty(*x.shape[:3], x.shape[3] // LANES, dtype=torch.int16)
    return _if_all("spiketriton_bits", x, words, ctypes.c_int(x.dtype == torch.float32))


def narrowed(x: Tensor) -> Tensor | None:
    """A dense float32 x in bfloat16, if every value is finite and the same there; else None."""
    return _if_all("spiketriton_spikes", x, torch.empty_like(x, dtype=torch.bfloat16))


def _if_all(function: str, x: Tensor, made: Tensor, *more: ctypes.c_int) -> Tensor | None:
    """What a function makes of x, where it can say it of each value."""
    sizes = ctypes.c_int64(x.numel()), ctypes.c_int64(torch.get_num_threads()), *more
    places = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(made.data_ptr())
    return made if getattr(loaded("tiles"), function)(*sizes, *places) else None


def _call(
    function: str,
    x: torch.Size,
    weight: torch.Size,
    stride: int,
    *tensors: Tensor | None,
    floats: bool = False,
) -> int:
    if not x.numel():
        made = tensors[-1]
        assert made is not None
        made.zero_()
        return 1
    written, kernel = weight[:2]
    of_bits = tensors[0] is not None and tensors[0].dtype == torch.int16
    given = written, kernel, stride, torch.get_num_threads(), of_bits, floats
    sizes = _SIZES.pack(*x, *given)
    places = [ctypes.c_void_p(0 if tensor is None else tensor.data_ptr()) for tensor in tensors]
    return int(getattr(loaded("tiles"), function)(sizes, *places))
