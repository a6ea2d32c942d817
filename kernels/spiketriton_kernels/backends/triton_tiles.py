"""How the Triton kernels cut a time step into tiles: the launches' geometry, offsets and masks.

A time step is a gapless block of N elements. Without per-channel values it is one row of N columns; channels_last it is
R rows of C channels; contiguous it is, for each channel, R samples of S pixels, C * S apart. A program owns a tile
[BLOCK_R, BLOCK_L] of neurons and walks its whole window with the membranes in registers:

    BY_COLUMN   element (r, l) at r * L + l, channel l              (channels_last; R = 1, L = N without channels)
    else        element (r, l) at (r * C + c) * L + l, channel c    (contiguous; a program stays in one channel c)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..layout import channel_axis
from ..triton_import import tl, triton

WARPS = 4


@triton.jit
def blocks(n, BLOCK: tl.constexpr):
    """Blocks that hold n >= 1 elements. Not ``tl.cdiv``: n + BLOCK - 1 leaves int32 where n is near its end."""
    return (n - 1) // BLOCK + 1


@triton.jit
def own_tile(pid, C, L, BLOCK_L: tl.constexpr, BY_COLUMN: tl.constexpr):
    """(row, column) blocks of a program and its channel; programs run over columns first, then channels, then rows."""
    columns = blocks(L, BLOCK_L)
    column = pid % columns
    if BY_COLUMN:
        channel = 0
        row = pid // columns
    else:
        channel = (pid // columns) % C
        row = pid // columns // C
    return row, column, channel


@triton.jit
def elements(
    row,
    column,
    channel,
    R,
    C,
    L,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
):
    """Offsets [BLOCK_R, BLOCK_L] within a time step, their mask, and each column's channel [1, BLOCK_L] and mask."""
    r = row * BLOCK_R + tl.arange(0, BLOCK_R)
    l = column * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = (r < R)[:, None] & (l < L)[None, :]
    wide = r.to(tl.int64)
    if BY_COLUMN:
        offsets = (wide * L)[:, None] + l[None, :]
        channels = l[None, :]
        valid = (l < L)[None, :]
    else:
        offsets = ((wide * C + channel) * L)[:, None] + l[None, :]
        channels = tl.full([1, 1], 0, tl.int32) + channel
        valid = channels >= 0
    return offsets, inside, channels, valid


@triton.jit
def step_size(R, C, L, BY_COLUMN: tl.constexpr):
    """Elements of a time step."""
    if BY_COLUMN:
        size = tl.cast(R, tl.int64) * L
    else:
        size = tl.cast(R, tl.int64) * C * L
    return size


@triton.jit
def where_below(inside, index, end):
    """The mask, where the scalar index < end: written as a tile because the interpreter widens scalar booleans."""
    return inside & (tl.full([1, 1], 0, tl.int32) + index < end)


@triton.jit
def time_step(k, j, offsets, inside, step, T: tl.constexpr, CHUNK: tl.constexpr):
    """Step j of chunk k: its t, the offsets in [T, N] and their mask, all false beyond the window."""
    t = k * CHUNK + j
    here = inside
    if T % CHUNK != 0:
        here = where_below(inside, t, T)
    return t, t * step + offsets, here


@triton.jit
def total(tile):
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@dataclass(frozen=True)
class Tiling:
    """How a launch cuts a time step into tiles; see the module's docstring."""

    R: int
    C: int
    L: int
    block_r: int
    block_l: int
    by_column: bool

    @property
    def row_tiles(self) -> int:
        return -(-self.R // self.block_r)

    @property
    def columns(self) -> int:
        return -(-self.L // self.block_l)

    @property
    def lanes(self) -> int:
        """Programs per row of tiles."""
        return self.columns if self.by_column else self.columns * self.C

    def programs(self, walking: bool) -> int:
        """Row programs of a launch: one per tile, or, where sums are kept, so few that partial sums stay small."""
        return min(self.row_tiles, max(1, 1024 // self.lanes)) if walking else self.row_tiles

    def parts(self, programs: int) -> int:
        """Partial sums of one channel that this many row programs leave."""
        return programs * (1 if self.by_column else self.columns)


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def tiling(x: torch.Tensor, per_channel: bool, vector: int) -> Tiling:
    """Cut a time step of x [T, B, C, ...] so that a thread owns ``vector`` neighbouring elements."""
    block = 32 * WARPS * vector
    neurons = x[0].numel()
    if not per_channel:
        return Tiling(1, 1, neurons, 1, block, True)
    channels, inner = channel_axis(x)
    if channels > 1 and inner == 1:
        block_l = min(_power_of_2(channels), 128)
        return Tiling(neurons // channels, channels, channels, block // block_l, block_l, True)
    inner = inner if channels > 1 else neurons
    block_l = min(_power_of_2(inner), block)
    return Tiling(neurons // (channels * inner), channels, inner, block // block_l, block_l, False)


def vector_width(x: torch.Tensor) -> int:
    """Neighbouring elements a thread owns: 16 bytes."""
    return 16 // x.element_size()
