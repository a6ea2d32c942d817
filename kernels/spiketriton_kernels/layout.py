"""Memory layouts: the kernels walk memory, not dimensions.

A tensor [T, B, C, ...] is *dense with time outermost* when each time step occupies one gapless block and the blocks
follow each other: contiguous and channels_last tensors are. Within a step the element at offset n has channel
``(n // inner) % C`` where ``inner`` is the stride of dim 2: 1 for channels_last, H*W for contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def is_dense(x: torch.Tensor) -> bool:
    """Time outermost, and the rest a permutation of a gapless block."""
    if x.is_contiguous():
        return True
    if x.dim() == 5:  # channels_last: by its strides, which cost less than the view x[0]
        _, batch, channels, height, width = x.shape
        plane = channels * height * width
        if x.stride() == (batch * plane, plane, 1, width * channels, channels):
            return True
        if x[0].is_contiguous(memory_format=torch.channels_last):
            return x.shape[0] == 1 or x.stride(0) == batch * plane
    if torch.compiler.is_compiling():  # other orders would be guesses about symbolic strides
        return False
    return gapless(x.shape[1:], x.stride()[1:]) and (
        x.shape[0] == 1 or x.stride(0) == math.prod(x.shape[1:])
    )


def gapless(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements (there are some) fill one block of memory, in whatever order of dimensions."""
    left = [(length, step) for length, step in zip(size, stride, strict=True) if length != 1]
    expected = 1
    while left:  # not sorted by stride, which torch.compile cannot do with symbolic ones
        fitting = [i for i, (_, step) in enumerate(left) if step == expected]
        if not fitting:
            return False
        expected *= left.pop(fitting[0])[0]
    return True


def dense(x: torch.Tensor) -> torch.Tensor:
    """x itself when its layout is one that the kernels read in place, else one contiguous copy (differentiable)."""
    return x if x.numel() == 0 or is_dense(x) else x.contiguous()


def like(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """value in the memory order of x: itself when the strides agree, else one copy."""
    if value.stride() == x.stride():
        return value
    pairs = zip(value.shape, value.stride(), x.stride(), strict=True)
    if value.numel() == 0 or all(a == b for size, a, b in pairs if size > 1):
        return value
    return torch.empty_like(x, dtype=value.dtype).copy_(value)


def channel_axis(x: torch.Tensor) -> tuple[int, int]:
    """(number of channels, inner): the channel of the element at offset n of a time step is (n // inner) % channels."""
    return axis_of(x.shape, x.stride())


def axis_of(size: Sequence[int], stride: Sequence[int]) -> tuple[int, int]:
    """``channel_axis`` of a tensor of this size and these strides."""
    if len(size) < 3 or size[2] == 1:  # a single channel's stride says nothing
        return 1, max(1, math.prod(size[1:]))
    return size[2], stride[2]
