"""How the Triton kernels cut a time step into tiles: the launches' geometry, offsets and masks.

A time step is a gapless block of N elements. Without per-channel values it is one row of N columns; channels_last it is
R rows of C channels; contiguous it is, for each channel, R samples of S pixels, C * S apart. A program owns a tile
[BLOCK_R, BLOCK_L] of neurons and walks its whole window with the membranes in registers:

    BY_COLUMN   element (r, l) at r * L + l, channel l, or (l // S) % C   (channels_last; R = 1, L = N without channels)
    else        element (r, l) at (r * C + c) * L + l, channel c          (contiguous; a program stays in one channel c)

An access moves 16 bytes where Triton can prove that its address allows it: where L is a multiple of 16. Where the
pixels of a channel are not (14 x 14, 7 x 7), or the channels of a row (24), whole samples or several rows make one row
of columns, which is, and each column's channel is computed from S. Where nothing helps, a kernel is given L as
``units * align``, align the largest power of two that divides it: the accesses are as wide as that allows.

Of 16, 32 or 64 channels several rows make one of 128 columns: a network whose widths are powers of two (CYCLIC) then
has one kernel where it would have one for each width below 128.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ..layout import channel_axis
from ..triton_import import tl, triton
from .triton_launch import WARPS, launch, scratch

PROCESSORS = 132  # an H100's: where a launch is interpreted, or lowered for a GPU that is not here
WALKS = 12  # programs on a processor, of walks that work on many tiles each
JOIN_PARTS, JOIN_CHANNELS = 128, 8  # of one tile; 8 float32 fill a sector of memory
JOIN_ROW = 4096
GROUP = tl.constexpr(32)  # of neighbouring partial sums: a cache line
SIZES = dict(
    do_not_specialize=("programs", "parts", "n"), do_not_specialize_on_alignment=("R",)
)  # fmt: skip
"""Of a kernel's sizes those whose divisibility no access is wider for: a launch of others compiles nothing anew."""


@triton.jit
def blocks(n, BLOCK: tl.constexpr):
    """Blocks that hold n >= 1 elements. Not ``tl.cdiv``: n + BLOCK - 1 leaves int32 where n is near its end."""
    return (n - 1) // BLOCK + 1


class Size(NamedTuple):
    """Of a time step: rows, channels, columns, and neighbouring columns of one channel (None: each is a channel)."""

    R: Any
    C: Any
    L: Any
    S: Any


class Cut(NamedTuple):
    """What a kernel is compiled for: a tile's rows and columns, what divides L beside ``units``, and whether the number
    of channels is a power of two, 16 or more, and column l of channel l % C."""

    block_r: int
    block_l: int
    by_column: bool
    align: int
    cyclic: bool


class Window(NamedTuple):
    """What a kernel is compiled for: time steps, those of a chunk, how many are read ahead of the one at work, and the
    stages of its loop over tiles."""

    steps: int
    chunk: int
    ahead: int
    replay_ahead: int = 0
    stages: int = 1


class Tile(NamedTuple):
    """Offsets [BLOCK_R, BLOCK_L] within a time step and their mask, each column's channel [1, BLOCK_L] and mask."""

    offs: Any
    inside: Any
    channels: Any
    valid: Any


class Moment(NamedTuple):
    """A time step of a tile: its number, its offsets in [T, N] and their mask."""

    t: Any
    at: Any
    inside: Any


@triton.jit
def own_tile(pid, size, CUT: tl.constexpr):
    """(row, column) blocks of a program and its channel; programs run over columns first, then channels, then rows."""
    columns = blocks(size.L, CUT.block_l)
    column = pid % columns
    if CUT.by_column:
        channel = 0
        row = pid // columns
    else:
        channel = (pid // columns) % size.C
        row = pid // columns // size.C
    return row, column, channel


@triton.jit
def tile_at(row, column, channel, size, CUT: tl.constexpr):
    """The ``Tile`` of these blocks."""
    # in 64 bits where R takes as many
    r = (row + 0 * size.R) * CUT.block_r + tl.arange(0, CUT.block_r)
    l = column * CUT.block_l + tl.arange(0, CUT.block_l)
    inside = (r < size.R)[:, None] & (l < size.L)[None, :]
    wide = r.to(tl.int64)
    if CUT.by_column:
        offs = (wide * size.L)[:, None] + l[None, :]
        channels = l[None, :]
        if CUT.cyclic:  # 16 neighbours are of 16 neighbouring channels, which one access reads
            channels = tl.multiple_of(channels & (size.C - 1), [1, 16])
            channels = tl.max_contiguous(channels, [1, 16])
        if size.S is not None:
            channels = (channels // size.S) % size.C
        valid = (l < size.L)[None, :]
    else:
        offs = ((wide * size.C + channel) * size.L)[:, None] + l[None, :]
        channels = tl.full([1, 1], 0, tl.int32) + channel
        valid = channels >= 0
    return Tile(offs, inside, channels, valid)


@triton.jit
def tile_number(row, column, channel, size, CUT: tl.constexpr):
    """The number of the tile at these blocks among all."""
    columns = blocks(size.L, CUT.block_l)
    if CUT.by_column:
        number = row * columns + column
    else:
        number = (row * size.C + channel) * columns + column
    return number


@triton.jit
def step_size(size, CUT: tl.constexpr):
    """Elements of a time step."""
    elements = tl.cast(size.R, tl.int64) * size.L
    if not CUT.by_column:
        elements = tl.cast(size.R, tl.int64) * size.C * size.L
    return elements


@triton.jit
def where_below(inside, index, end):
    """The mask, where the scalar index < end: written as a tile because the interpreter widens scalar booleans."""
    return inside & (tl.full([1, 1], 0, tl.int32) + index < end)


@triton.jit
def time_step(k, j, tile, step, WINDOW: tl.constexpr):
    """Step j of chunk k; its mask is false beyond the window."""
    t = k * WINDOW.chunk + j
    inside = tile.inside
    if WINDOW.steps % WINDOW.chunk != 0:
        inside = where_below(inside, t, WINDOW.steps)
    return Moment(t, t * step + tile.offs, inside)


@triton.jit
def read_ahead(
    queue, ptr, n: tl.constexpr, k, tile, step, WINDOW: tl.constexpr, BACK: tl.constexpr
):
    """The queue, and behind it what the n-th step that a chunk's walk visits holds, where there is such a step.

    Pointers may alias for all that a compiler knows, so it moves no load before a store of an earlier step: what shall
    be under way by then has to be asked for first.
    """
    if ptr is not None and n < WINDOW.chunk:
        now = time_step(k, WINDOW.chunk - 1 - n if BACK else n, tile, step, WINDOW)
        queue = queue + (tl.load(ptr + now.at, mask=now.inside, other=0.0),)
    return queue


@triton.jit
def total(tile):
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit
def over_owned(tile, size, CUT: tl.constexpr):
    """The sum of a tile over what each of its columns ([1, BLOCK_L]), or its channel ([1, 1]), owns of it.

    Columns of one channel among fewer than 128 own its sum together."""
    BLOCK_L: tl.constexpr = CUT.block_l
    if not CUT.by_column:
        tile = tl.sum(tile, axis=1, keep_dims=True)
    owned = tl.sum(tile, axis=0, keep_dims=True)
    if CUT.cyclic and BLOCK_L >= 128:
        owned = owned + tl.zeros(
            [1, BLOCK_L], tl.float32
        )  # a number of rows stands for every column
        owned = _with_next(owned, size.C, BLOCK_L, 64)
        owned = _with_next(owned, size.C, BLOCK_L, 32)
        owned = _with_next(owned, size.C, BLOCK_L, 16)
    return owned


@triton.jit
def _with_next(owned, C, BLOCK_L: tl.constexpr, SPAN: tl.constexpr):
    """Of SPAN channels or fewer each column and the one SPAN further have their sum; of more, each what it had."""
    pairs = tl.reshape(owned, [BLOCK_L // (2 * SPAN), 2, SPAN])
    both = tl.sum(pairs, axis=1, keep_dims=True) + tl.zeros_like(pairs)
    few = tl.full([1, 1], 0, tl.int32) + C <= SPAN
    return tl.where(few, tl.reshape(both, [1, BLOCK_L]), owned)


@triton.jit
def partial_place(first, column, channel, programs, size, CUT: tl.constexpr):
    """Where a program's ``over_owned`` goes in [parts, L or C], their mask, and the elements of that plane.

    C by row, and of columns of one channel among fewer than 128."""
    if CUT.by_column:
        l = column * CUT.block_l + tl.arange(0, CUT.block_l)[None, :]
        owners = size.C if CUT.cyclic else size.L
        place = tl.cast(first, tl.int64) * owners + l
        keep = l < owners
        plane = tl.cast(programs, tl.int64) * owners
    else:
        columns = blocks(size.L, CUT.block_l)
        part = tl.cast(first, tl.int64) * columns + column
        place = part * size.C + channel + tl.full([1, 1], 0, tl.int64)
        keep = place >= 0
        plane = tl.cast(programs, tl.int64) * columns * size.C
    return place, keep, plane


@triton.jit
def part_place(part, c, parts, C, S):
    """Where the parts of some channels are in [parts / S, C, S], and their mask."""
    return ((part // S).to(tl.int64) * C + c) * S + part % S, (part < parts) & (c < C)


@triton.jit(**SIZES)
def join_kernel(
    partial_ptr,  # [kinds, parts / S, C, S]
    out_ptr,  # [kinds, C] out
    parts,
    C,
    S,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sum of each kind's parts, by channel."""
    kind = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    p = tl.arange(0, BLOCK_P)[:, None]
    own_ptr = partial_ptr + kind * parts * C
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, parts, BLOCK_P):
        place, here = part_place(start + p, c, parts, C, S)
        total += tl.load(own_ptr + place, mask=here, other=0.0)
    tl.store(out_ptr + kind * C + c, tl.sum(total, axis=0, keep_dims=True), mask=c < C)


@triton.jit
def in_group(index, fields):
    """Where the first field of the index-th of many is in [groups, fields, GROUP]."""
    return (index // GROUP).to(tl.int64) * (fields * GROUP) + index % GROUP


@triton.jit(**SIZES)
def join_groups_kernel(
    partial_ptr,  # [groups, fields, GROUP]
    out_ptr,  # [fields] out
    n,
    PERIOD: tl.constexpr,
    MAXIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of each field over the first n, or its maximum."""
    field = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        place = in_group(i, tl.num_programs(0)) + field * GROUP
        value = tl.load(partial_ptr + place, mask=i < n, other=0.0)
        if MAXIMUM is None:
            total += value
        else:
            total = tl.where(field % PERIOD == MAXIMUM, tl.maximum(total, value), total + value)
    result = tl.sum(total, axis=0)
    if MAXIMUM is not None:
        result = tl.where(field % PERIOD == MAXIMUM, tl.max(total, axis=0), result)
    tl.store(out_ptr + field, result)


@dataclass(frozen=True)
class Tiling:
    """How a launch cuts a time step into tiles; see the module's docstring."""

    R: int
    C: int
    L: int
    block_r: int
    block_l: int
    by_column: bool
    S: int | None = None

    @property
    def align(self) -> int:
        """The power of two that a kernel has to be told; of 16 Triton's launcher sees itself that it divides L."""
        return 1 if self.L % 16 == 0 or self.L >= 2**31 else self.L & -self.L

    @property
    def cyclic(self) -> bool:
        """Whether kernels are told so (``Cut``)."""
        C, whole = self.C, self.S is None and self.L % self.C == 0
        return self.by_column and whole and C >= 16 and C & (C - 1) == 0

    @functools.cached_property
    def geometry(self) -> dict[str, Any]:
        """The arguments of a kernel, by name."""
        cut = Cut(self.block_r, self.block_l, self.by_column, self.align, self.cyclic)
        return dict(R=self.R, C=self.C, units=self.L // self.align, S=self.S, CUT=cut)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - tilings are remembered anyway
    def over_time(self, T: int) -> Tiling:
        """With the steps of a window among the rows."""
        return replace(self, R=self.R * T)

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

    def programs(self, most: int) -> int:
        """Row programs of a launch that keeps sums: about ``most`` programs in all, so that partial sums stay few."""
        return min(self.row_tiles, max(1, most // self.lanes))

    def partial(self, x: torch.Tensor, kinds: int, programs: int) -> torch.Tensor:
        """Room for what this many row programs leave of so many kinds of sums, float32: [kinds, parts, L or C]."""
        owners = self.C if self.cyclic else self.L
        rows = (programs, owners) if self.by_column else (programs * self.columns, self.C)
        return scratch(x, kinds, *rows)

    def join(self, partial: torch.Tensor, out: torch.Tensor) -> None:
        """Sum a ``partial`` by channel: out [kinds, C], float32, in a fixed order."""
        parts = partial[0].numel() // self.C
        launch(
            join_kernel, (-(-self.C // JOIN_CHANNELS), len(partial)), out,
            partial, out, parts, self.C, self.S or 1, BLOCK_P=JOIN_PARTS, BLOCK_C=JOIN_CHANNELS,
        )  # fmt: skip


def grouped(x: torch.Tensor, n: int, fields: int) -> torch.Tensor:
    """Room for n sums of each field, float32: [groups, fields, GROUP].

    The sums of a field fill cache lines, and the distance of two fields is constant, which costs a kernel no register.
    """
    return scratch(x, -(-n // GROUP.value), fields, GROUP.value)


def join_groups(
    partial: torch.Tensor, out: torch.Tensor, n: int, period: int = 1, maximum: int | None = None
) -> None:
    """Sum the first n of each field of ``grouped`` into out, float32, in a fixed order.

    Of every ``period`` fields the one at ``maximum``, which is never negative, gives its maximum.
    """
    launch(
        join_groups_kernel, (partial.shape[1],), out,
        partial, out, n, PERIOD=period, MAXIMUM=maximum, BLOCK=JOIN_ROW,
    )  # fmt: skip


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return _of_gpu(device.index) if device.type == "cuda" else PROCESSORS


@functools.cache
def _of_gpu(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def tiling(x: torch.Tensor, per_channel: bool, vector: int, walks: bool = False) -> Tiling:
    """Cut a time step of x [T, B, C, ...] so that a thread owns ``vector`` neighbouring elements.

    walks: into rows also without channels, where they come out even, so that a program may go through several tiles.
    """
    block, neurons = 32 * WARPS * vector, x[0].numel()
    if not per_channel:
        return _whole(neurons, block, walks and neurons % block == 0)
    channels, inner = channel_axis(x)
    return _cut(channels, inner if channels > 1 else neurons, neurons, block)


@functools.lru_cache(maxsize=4096)
def _whole(neurons: int, block: int, rows: bool) -> Tiling:
    """Tiles of a step without channels."""
    return Tiling(neurons // block if rows else 1, 1, block if rows else neurons, 1, block, True)


@functools.lru_cache(maxsize=4096)
def _cut(channels: int, inner: int, neurons: int, block: int) -> Tiling:
    """Tiles of a step of so many neurons, where the channel of the element at n is (n // inner) % channels."""
    R, L = neurons // (channels * inner), channels * inner
    if channels == 1 or inner % 16 == 0:
        block_l = min(_power_of_2(inner), block)
        return Tiling(R, channels, inner, block // block_l, block_l, False)
    wide = 128
    if inner == 1 and channels in (16, 32, 64) and block >= wide and neurons % wide == 0:
        return Tiling(neurons // wide, channels, wide, block // wide, wide, True)
    # Columns of 128 leave the fewest partial sums; fewer rows and more columns, or more rows in one, only where lanes
    # would lie idle.
    cuts = []
    for fold in (1, 2, 4, 8, 16, 32, 64, 128):
        if R % fold == 0:
            widest = min(_power_of_2(L * fold), block)
            widths = [n for n in (128, 256, 512, 1024) if n <= widest] or [widest]
            cuts += [(fold, block // n, n) for n in widths]
    aligned = max(math.gcd(L * fold, 16) for fold, *_ in cuts)
    cuts = [cut for cut in cuts if math.gcd(L * cut[0], 16) == aligned]
    worked = [-(-R // f // r) * r * -(-L * f // n) * n for f, r, n in cuts]
    best = next(
        cut for cut, each in zip(cuts, worked, strict=True) if 16 * each <= 17 * min(worked)
    )
    fold, block_r, block_l = best
    own = inner == 1 and fold == 1  # every column is a channel
    return Tiling(R // fold, channels, L * fold, block_r, block_l, True, None if own else inner)


def vector_width(x: torch.Tensor) -> int:
    """Neighbouring elements a thread owns: 16 bytes; 2 where an odd number of neurons keeps accesses from being wider.

    Addresses of single elements take registers: with 8 of them walks behind batch norm spilt up to 4 KB beyond 16
    steps.
    """
    return 16 // x.element_size() if x[0].numel() % 2 == 0 else 2
