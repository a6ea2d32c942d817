"""Batch norm around the neuron in Triton: its statistics, its constants in a kernel, its second pass back.

Bytes per element and step, e per element of the I/O dtype: statistics e; the second pass back from a stored dL/dx 3e.
Fused multiply-adds are those that are written out: one that a compiler made of a lane's product and another lane's sum
would leave the lanes of a warp with different last bits, and which of them is kept is for the hardware to say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..neuron import Neuron, Running
from ..triton_import import tl, triton
from .chunks import chunk_length
from .triton_launch import launch
from .triton_tiles import (
    JOIN_CHANNELS,
    JOIN_PARTS,
    SIZES,
    Size,
    Window,
    blocks,
    over_owned,
    own_tile,
    part_place,
    partial_place,
    processors,
    read_ahead,
    step_size,
    tile_at,
    tiling,
    time_step,
    vector_width,
)

AMD = torch.version.hip is not None
STAGES = 4  # of the statistics' loop: three tiles are under way while one is summed
MEASURING = 10  # programs of the statistics on a processor: as many as run at once
REGISTERS = 56  # of their threads: left alone, ptxas takes 72 for the sums at the end


class Norm(NamedTuple):
    """Of a neuron, as a kernel takes it: pointers [C], of step_gain [T], and floats."""

    mean: Any
    var: Any
    weight: Any
    bias: Any
    step_gain: Any
    eps: Any
    bn_scale: Any

    @staticmethod
    def of(neuron: Neuron) -> Norm:
        return Norm._make((*neuron.norm, float(neuron.eps), float(neuron.bn_scale)))


class Affine(NamedTuple):
    """Of each channel: mean, 1 / standard deviation, weight * bn_scale, bias, and rstd * weight."""

    mean: Any
    rstd: Any
    weight: Any
    bias: Any
    scale: Any


@triton.jit
def norm_constants(norm, tile):
    """``Affine``; (0, 1, 1, 0, 1) without a norm."""
    mean = 0.0
    rstd = 1.0
    weight = 1.0
    bias = 0.0
    if norm.mean is not None:
        mean = tl.load(norm.mean + tile.channels, mask=tile.valid, other=0.0)
        rstd = 1.0 / tl.sqrt(
            tl.load(norm.var + tile.channels, mask=tile.valid, other=1.0) + norm.eps
        )
        weight = norm.bn_scale
        if norm.weight is not None:
            weight = (
                tl.load(norm.weight + tile.channels, mask=tile.valid, other=1.0) * norm.bn_scale
            )
        if norm.bias is not None:
            bias = tl.load(norm.bias + tile.channels, mask=tile.valid, other=0.0)
    return Affine(mean, rstd, weight, bias, weight * rstd)


@triton.jit
def channel_means(sums_ptr, C, count, affine, tile):
    """For ``by_norm_input``: the means over a channel of dz, times scale, and of dz * xhat, times scale * rstd."""
    mean_dz = tl.load(sums_ptr + tile.channels, mask=tile.valid, other=0.0) / count
    mean_dz_xhat = tl.load(sums_ptr + C + tile.channels, mask=tile.valid, other=0.0) / count
    return affine.scale * mean_dz, affine.scale * affine.rstd * mean_dz_xhat


@triton.jit
def by_norm_input(dz, centred, means, affine):
    """dL/dy = scale * (dz - mean(dz) - xhat * mean(dz * xhat)); centred: y - mean(y), which is xhat / rstd."""
    shift, slope = means
    return tl.fma(-slope, centred, tl.fma(affine.scale, dz, -shift))


@triton.jit(**SIZES)
def statistics_kernel(
    y_ptr,  # [T * R, L] by column, else [T * R, C, L]
    partial_ptr,  # [3, parts, L or C] out, float32: number, mean, squared deviations from it
    R,  # rows, time included
    C,
    units,
    S,
    programs,
    STAGES: tl.constexpr,
    CUT: tl.constexpr,
):
    """Moments of each channel's share. Every lane follows its own mean (Welford 1962), so that neither a far mean nor
    a far first element loses digits; the lanes' moments then join (Chan et al. 1979)."""
    # Names of their own, because Triton 3.6 takes no field of a constant into a shape.
    BLOCK_R: tl.constexpr = CUT.block_r
    BLOCK_L: tl.constexpr = CUT.block_l
    size = Size(R, C, units * CUT.align, S)
    first, column, channel = own_tile(tl.program_id(0), size, CUT)
    mean = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    spread = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    k = 0.0
    for row in tl.range(first, blocks(R, CUT.block_r), programs, num_stages=STAGES):
        tile = tile_at(row, column, channel, size, CUT)
        y = tl.load(y_ptr + tile.offs, mask=tile.inside, other=0.0).to(tl.float32)
        k += 1.0
        weight = tl.where(k > 1.0, 1.0 / k, 1.0)
        d = y - mean
        mean = tl.fma(d, tl.where(tile.inside, weight, 0.0), mean)
        spread = tl.fma(d, d * tl.where(tile.inside, 1.0 - weight, 0.0), spread)
    # Only the last visit can leave out a row that the others reach.
    visits = tl.cdiv(blocks(R, CUT.block_r) - first, programs)
    last = (first + (visits - 1) * programs) * CUT.block_r + tl.arange(0, CUT.block_r)[:, None]
    number = tl.where(last < R, visits, visits - 1).to(tl.float32)
    if not CUT.by_column:
        l = column * CUT.block_l + tl.arange(0, CUT.block_l)[None, :]
        number = tl.where(l < size.L, number, 0.0)
    count = over_owned(number, size, CUT)
    joined = over_owned(number * mean, size, CUT) / count
    joined += over_owned(number * (mean - joined), size, CUT) / count  # what rounding took
    away = mean - joined
    spread = over_owned(spread + number * away * away, size, CUT)
    place, keep, plane = partial_place(first, column, channel, programs, size, CUT)
    tl.store(partial_ptr + place, count, mask=keep)
    tl.store(partial_ptr + plane + place, joined, mask=keep)
    tl.store(partial_ptr + 2 * plane + place, spread, mask=keep)


@triton.jit(**SIZES)
def join_statistics_kernel(
    partial_ptr,  # [3, parts / S, C, S]: of what ``statistics_kernel`` wrote, a view
    mean_ptr,  # [C] out
    var_ptr,  # [C] out
    running_mean_ptr,  # [C] in and out
    running_var_ptr,  # [C] in and out
    parts,
    C,
    S,
    count,
    momentum,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and biased variance of each channel from its parts, joined in a fixed order."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    p = tl.arange(0, BLOCK_P)[:, None]
    plane = tl.cast(parts, tl.int64) * C
    base = tl.load(partial_ptr + plane + c * S, mask=c < C, other=0.0)  # the first part's mean
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, parts, BLOCK_P):
        place, here = part_place(start + p, c, parts, C, S)
        at = partial_ptr + place
        number = tl.load(at, mask=here, other=0.0)
        mean = tl.load(at + plane, mask=here, other=0.0)
        total = tl.fma(number, mean - base, total)
    joined = base + tl.sum(total, axis=0, keep_dims=True) / count
    spread = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, parts, BLOCK_P):
        place, here = part_place(start + p, c, parts, C, S)
        at = partial_ptr + place
        number = tl.load(at, mask=here, other=0.0)
        away = tl.load(at + plane, mask=here, other=0.0) - joined
        spread += tl.fma(number * away, away, tl.load(at + 2 * plane, mask=here, other=0.0))
    squares = tl.sum(spread, axis=0, keep_dims=True)
    tl.store(mean_ptr + c, joined, mask=c < C)
    tl.store(var_ptr + c, squares / count, mask=c < C)
    if running_mean_ptr is not None:  # as torch's batch norm: the unbiased variance
        mean = tl.load(running_mean_ptr + c, mask=c < C, other=0.0)
        var = tl.load(running_var_ptr + c, mask=c < C, other=0.0)
        tl.store(running_mean_ptr + c, mean + momentum * (joined - mean), mask=c < C)
        tl.store(running_var_ptr + c, var + momentum * (squares / (count - 1.0) - var), mask=c < C)


@triton.jit(**SIZES)
def norm_backward_kernel(
    dx_ptr,  # [T, N]
    y_ptr,  # [T, N]
    norm,  # Norm
    sums_ptr,  # [2, C]
    dy_ptr,  # [T, N] out
    count,
    R,
    C,
    units,
    S,
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """dy from the stored dx."""
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.ahead
    size = Size(R, C, units * CUT.align, S)
    # from the last tile, which the walk back has left in the cache
    row, column, channel = own_tile(tl.num_programs(0) - 1 - tl.program_id(0), size, CUT)
    tile = tile_at(row, column, channel, size, CUT)
    step = step_size(size, CUT)
    affine = norm_constants(norm, tile)
    means = channel_means(sums_ptr, C, count, affine, tile)
    for chunk in range((WINDOW.steps + CHUNK - 1) // CHUNK):
        k = tl.cast(chunk, tl.int32)
        grads = ()
        inputs = ()
        for n in tl.static_range(AHEAD):
            grads = read_ahead(grads, dx_ptr, n, k, tile, step, WINDOW, False)
            inputs = read_ahead(inputs, y_ptr, n, k, tile, step, WINDOW, False)
        for j in tl.static_range(CHUNK):
            grads = read_ahead(grads, dx_ptr, j + AHEAD, k, tile, step, WINDOW, False)
            inputs = read_ahead(inputs, y_ptr, j + AHEAD, k, tile, step, WINDOW, False)
            now = time_step(k, j, tile, step, WINDOW)
            dz = grads[j].to(tl.float32)
            if norm.step_gain is not None:
                dz = tl.load(norm.step_gain + now.t, mask=now.t < WINDOW.steps, other=0.0) * dz
            dy = by_norm_input(dz, inputs[j].to(tl.float32) - affine.mean, means, affine)
            tl.store(dy_ptr + now.at, dy.to(dy_ptr.dtype.element_ty), mask=now.inside)


def norm_backward(dx, y, neuron: Neuron, sums, count, dy) -> None:
    """Fill dy, which may be dx itself, with dL/dy of batch norm from dL/dx and the channel sums."""
    T, tiles = y.shape[0], tiling(y, True, vector_width(y))
    launch(
        norm_backward_kernel, (tiles.row_tiles * tiles.lanes,), y,
        dx, y, Norm.of(neuron), sums, dy, float(count),
        WINDOW=Window(T, chunk_length(T, False), ahead=3), **tiles.geometry,
    )  # fmt: skip


def channel_statistics(
    y: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, running: Running | None
) -> None:
    """Fill mean and biased variance of each channel of y [T, B, C, ...]; running statistics move towards them."""
    running_mean, running_var, momentum = (None, None, 0.0) if running is None else running
    tiles = tiling(y, True, vector_width(y)).over_time(y.shape[0])
    programs = tiles.programs(MEASURING * processors(y.device))
    partial = tiles.partial(y, 3, programs)
    launch(
        statistics_kernel, (programs * tiles.lanes,), y, y, partial, programs=programs,
        STAGES=STAGES, maxnreg=None if AMD else REGISTERS, **tiles.geometry,
    )  # fmt: skip
    launch(
        join_statistics_kernel, (-(-tiles.C // JOIN_CHANNELS),), y,
        partial, mean, var, running_mean, running_var, partial[0].numel() // tiles.C, tiles.C, tiles.S or 1,
        float(y.numel() // tiles.C), momentum, BLOCK_P=JOIN_PARTS, BLOCK_C=JOIN_CHANNELS,
    )  # fmt: skip
