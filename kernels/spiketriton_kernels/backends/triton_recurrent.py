"""Neurons whose spikes come back by a matrix (recurrent.py) in Triton: a program walks the window of 16 samples.

Their neurons are cut into tiles of up to 128, and a step is a product (``tl.dot``) of all of them with the matrix. Of
one tile the matrix, the states and the last spikes stay at hand. Of several a program takes one after the other: it
reads the matrix in each step, and leaves states and spikes in memory for the next one, so that a thread holds those of
one tile, whatever the neuron. Products are summed in float32. Forth they are of the dtype of x, which makes each exact
where spikes are whole numbers; float32 takes three TF32 products for one. Back, gradients are float32, rounded to TF32
beside a matrix of half precision, which that holds whole.

Bytes per element and step, e of an element of the I/O dtype, K values that a step keeps: forth 2e + 4K, back 2e + 4K.
With several tiles, and S states, also 8S + 2e forth and 8S + 8 back, and N * N * e for each program; all of them are
read again within a step, so that they stay in the second-level cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import PROBE_FIELDS
from ..neuron import Neuron
from ..surrogate import own_surrogate
from ..triton_import import INTERPRETED, tl, triton
from . import triton_neuron
from .triton_fire import constants_of, states, store_states
from .triton_launch import launch
from .triton_neuron import constants_for
from .triton_tiles import (
    SIZES,
    Moment,
    Size,
    Tiling,
    Window,
    grouped,
    join_groups,
    step_size,
    tile_at,
    where_below,
)
from .triton_walk import observe, with_first

SAMPLES = 16  # of a program: as few as a product takes
WIDEST = 128  # neurons of a tile
MOST = 512
"""Neurons of a kernel. With more a program would read megabytes of a matrix in each step, for 16 samples; PyTorch's
loop multiplies all samples at once."""
DEEP = 32
"""Neurons whose spikes are multiplied at once, where there are several tiles."""


_DEEP = tl.constexpr(DEEP)


class Product(NamedTuple):
    """What a kernel is compiled for: tiles of neurons, the operands' dtype, and how float32 is multiplied."""

    tiles: int
    dtype: Any
    precision: str


@triton.jit
def held_matrix(matrix, size, CUT: tl.constexpr, PRODUCT: tl.constexpr):
    """All of a matrix for one tile of neurons, 0 beyond it; None for several."""
    held = None
    if PRODUCT.tiles == 1:
        rows = tl.arange(0, CUT.block_l)[:, None]
        columns = tl.arange(0, CUT.block_l)[None, :]
        inside = (rows < size.L) & (columns < size.L)
        held = tl.load(matrix + rows * size.L + columns, mask=inside, other=0.0).to(PRODUCT.dtype)
    return held


@triton.jit
def leave(room, value, t, tile, step, PRODUCT: tl.constexpr):
    """A tile as an operand; of several it is left in memory for the product of step t, where all tiles are read."""
    value = tl.where(tile.inside, value, 0.0)
    if room is not None:
        place = room + (t % 2) * step + tile.offs
        tl.store(place, value.to(room.dtype.element_ty), mask=tile.inside)
    return value.to(PRODUCT.dtype)


@triton.jit
def meet(room, sums):
    """What the program's threads have left is there for all of them."""
    if room is not None or sums is not None:
        tl.debug_barrier()


@triton.jit
def product(
    only, held, room, t, matrix, n, size, step, CUT: tl.constexpr, PRODUCT: tl.constexpr
):  # fmt: skip
    """Tile n of the product with the matrix: of the only tile with what is held, or of all that were left for t."""
    total = tl.zeros([CUT.block_r, CUT.block_l], tl.float32)
    if held is not None:
        total = tl.dot(only, held, total, input_precision=PRODUCT.precision)
    else:
        r = (tl.program_id(0) + 0 * size.R) * CUT.block_r + tl.arange(0, CUT.block_r)[:, None]
        rows = room + (t % 2) * step + r.to(tl.int64) * size.L
        columns = n * CUT.block_l + tl.arange(0, CUT.block_l)[None, :]
        for k in tl.range(0, size.L, _DEEP, num_stages=3):
            inner = k + tl.arange(0, _DEEP)
            here = (r < size.R) & (inner < size.L)[None, :]
            part = tl.load(rows + inner[None, :], mask=here, other=0.0).to(PRODUCT.dtype)
            inside = (inner < size.L)[:, None] & (columns < size.L)
            w = tl.load(matrix + inner[:, None] * size.L + columns, mask=inside, other=0.0)
            w = w.to(PRODUCT.dtype)
            total = tl.dot(part, w, total, input_precision=PRODUCT.precision)
    return total


@triton.jit(**SIZES)
def recurrent_forward_kernel(
    x,
    matrix,  # [N, N], transposed
    first,  # [states + 1, B, N], or None
    out,  # Window of recurrent.py
    between,  # of several tiles [states or more, B, N]: those after the step before; else None
    room,  # of several tiles [2, B, N]: the spikes of a step and of the next one; else None
    given,  # the step's constants, then its starts
    R,
    C,
    units,
    S,
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
    PRODUCT: tl.constexpr,
    ABOUT: tl.constexpr,
    FORTH: tl.constexpr,
):
    TILES: tl.constexpr = PRODUCT.tiles
    STATES: tl.constexpr = ABOUT.states
    size = Size(R, C, units * CUT.align, S)
    step = step_size(size, CUT)
    held = held_matrix(matrix, size, CUT, PRODUCT)
    tile = tile_at(tl.program_id(0), 0, 0, size, CUT)
    carried = states(first, given, tile, tile.inside, step, ABOUT)
    fired = tl.zeros([CUT.block_r, CUT.block_l], PRODUCT.dtype)
    for n in tl.range(0, TILES, num_stages=1):
        tile = tile_at(tl.program_id(0), n, 0, size, CUT)
        if between is not None:
            own = states(first, given, tile, tile.inside, step, ABOUT)
            store_states(between, own, tile, step, ABOUT)
        s = tl.zeros(tile.offs.shape, tl.float32)
        if first is not None:
            s = tl.load(first + STATES * step + tile.offs, mask=tile.inside, other=0.0)
        fired = leave(room, s, 0, tile, step, PRODUCT)
    meet(room, None)
    for t in tl.range(0, WINDOW.steps, num_stages=1):
        before = fired
        for n in tl.range(0, TILES, num_stages=1):
            tile = tile_at(tl.program_id(0), n, 0, size, CUT)
            at = t * step + tile.offs
            if between is not None:  # before the product, in which threads meet; written after it
                carried = states(between, None, tile, tile.inside, step, ABOUT)
            current = tl.load(x + at, mask=tile.inside, other=0.0).to(tl.float32)
            current = current + product(before, held, room, t, matrix, n, size, step, CUT, PRODUCT)
            s, carried, kept = FORTH(current, carried, constants_of(given, tile, ABOUT))
            tl.store(out.spikes + at, s.to(out.spikes.dtype.element_ty), mask=tile.inside)
            if out.trace is not None:
                tl.store(out.trace + at, carried[0], mask=tile.inside)
            if out.kept is not None:
                for i in tl.static_range(len(kept)):
                    kind = out.kept + i * WINDOW.steps * step
                    tl.store(kind + at, kept[i], mask=tile.inside)
            fired = leave(room, s, t + 1, tile, step, PRODUCT)
            if between is not None:
                store_states(between, carried, tile, step, ABOUT)
        meet(room, None)
    for n in tl.range(0, TILES, num_stages=1):
        tile = tile_at(tl.program_id(0), n, 0, size, CUT)
        if between is None:
            store_states(out.states, carried, tile, step, ABOUT)
        if out.states is not None:
            s = tl.load(out.spikes + (WINDOW.steps - 1) * step + tile.offs, mask=tile.inside)
            tl.store(out.states + STATES * step + tile.offs, s.to(tl.float32), mask=tile.inside)


@triton.jit
def place_of_sum(sums, i: tl.constexpr, tile, size, ROWS: tl.constexpr):
    """Where a tile's sums of the i-th gradient by constants are in [programs, rows, N]."""
    return sums + (tl.program_id(0) * ROWS + i) * size.L + tile.channels


@triton.jit(**SIZES)
def recurrent_backward_kernel(
    upstream,  # Upstream of recurrent.py
    kept,  # [kinds, T, B, N]
    matrix,  # [N, N]
    out,  # Found of recurrent.py
    between,  # of several tiles [states or more, B, N]: the gradients by the states; else None
    sums,  # of each program's gradients by constants, [programs, rows, N], or None
    partial_probe,  # [groups, T, 8, GROUP], or None
    room,  # of several tiles [2, B, N], float32: the gradients by the currents of a step and of the one before
    given,
    R,
    C,
    units,
    S,
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
    PRODUCT: tl.constexpr,
    KINDS: tl.constexpr,
    ABOUT: tl.constexpr,
    FORTH: tl.constexpr,
    BACK: tl.constexpr,
    OWN_SLOPE: tl.constexpr,
    OWN_AREA: tl.constexpr,
):
    TILES: tl.constexpr = PRODUCT.tiles
    STATES: tl.constexpr = ABOUT.states
    ROWS: tl.constexpr = ABOUT.rows
    size = Size(R, C, units * CUT.align, S)
    step = step_size(size, CUT)
    held = held_matrix(matrix, size, CUT, PRODUCT)
    tile = tile_at(tl.program_id(0), 0, 0, size, CUT)
    carried = states(upstream.states, None, tile, tile.inside, step, ABOUT)
    by_current = tl.zeros([CUT.block_r, CUT.block_l], PRODUCT.dtype)
    for n in tl.range(0, TILES, num_stages=1):
        tile = tile_at(tl.program_id(0), n, 0, size, CUT)
        if between is not None:
            own = states(upstream.states, None, tile, tile.inside, step, ABOUT)
            store_states(between, own, tile, step, ABOUT)
        if sums is not None:
            for i in tl.static_range(ROWS):
                place = place_of_sum(sums, i, tile, size, ROWS)
                tl.store(place, tl.zeros([1, CUT.block_l], tl.float32), mask=tile.valid)
        leave(room, tl.zeros(tile.offs.shape, tl.float32), 0, tile, step, PRODUCT)
    meet(room, sums)
    for back in tl.range(0, WINDOW.steps, num_stages=1):
        t = WINDOW.steps - 1 - back
        before = by_current
        for n in tl.range(0, TILES, num_stages=1):
            tile = tile_at(tl.program_id(0), n, 0, size, CUT)
            at = t * step + tile.offs
            if between is not None:  # before the product, in which threads meet; written after it
                carried = states(between, None, tile, tile.inside, step, ABOUT)
            summed = ()
            if sums is not None:
                for i in tl.static_range(ROWS):
                    place = place_of_sum(sums, i, tile, size, ROWS)
                    summed = summed + (tl.load(place, mask=tile.valid, other=0.0),)  # type: ignore[assignment]
            grad = tl.load(upstream.spikes + at, mask=tile.inside, other=0.0).to(tl.float32)
            if upstream.states is not None:
                last = upstream.states + STATES * step + tile.offs
                grad = grad + tl.load(last, mask=where_below(tile.inside, back, 1), other=0.0)
            grad = grad + product(before, held, room, back, matrix, n, size, step, CUT, PRODUCT)
            of_step = ()
            for i in tl.static_range(KINDS):
                kind = kept + i * WINDOW.steps * step
                of_step = of_step + (tl.load(kind + at, mask=tile.inside, other=0.0),)  # type: ignore[assignment]
            if upstream.trace is not None:
                more = tl.load(upstream.trace + at, mask=tile.inside, other=0.0)
                carried = with_first(carried, carried[0] + more)
            c = constants_of(given, tile, ABOUT)
            dx, earlier, by_constants, factor, unit, s = BACK(
                of_step, c, grad, carried, OWN_SLOPE, OWN_AREA
            )
            tl.store(out.dx + at, dx.to(out.dx.dtype.element_ty), mask=tile.inside)
            if partial_probe is not None:
                row = tl.program_id(0) * TILES + n
                now = Moment(t, at, tile.inside)
                observe(partial_probe, row, now, grad, dx, carried[0], factor, unit, s, WINDOW)
            if sums is not None:
                for i in tl.static_range(ROWS):
                    share = tl.where(tile.inside, by_constants[i], 0.0)
                    total = summed[i] + tl.sum(share, axis=0, keep_dims=True)
                    tl.store(place_of_sum(sums, i, tile, size, ROWS), total, mask=tile.valid)
            by_current = leave(room, dx, back + 1, tile, step, PRODUCT)
            carried = earlier
            if between is not None:
                store_states(between, carried, tile, step, ABOUT)
        meet(room, sums)
    for n in tl.range(0, TILES, num_stages=1):
        tile = tile_at(tl.program_id(0), n, 0, size, CUT)
        if out.states is not None:
            by_spikes = product(
                by_current, held, room, WINDOW.steps, matrix, n, size, step, CUT, PRODUCT
            )
            tl.store(out.states + STATES * step + tile.offs, by_spikes, mask=tile.inside)
        if between is None:
            store_states(out.states, carried, tile, step, ABOUT)


def fits(x: Tensor) -> bool:
    """Whether programs can hold the neurons of currents [T, B, N]."""
    return x.shape[2] <= MOST


def _cut(x: Tensor, neuron: Neuron, back: bool) -> tuple[Tiling, int, int]:
    """How samples and neurons are cut, tiles of a program, and its warps."""
    _, samples, neurons = x.shape
    whole, amd, widest = x.dtype == torch.float32, triton_neuron.AMD, WIDEST
    held = len(neuron.step.states) + neuron.rows
    much = held > (2 if whole else 3)  # for registers
    if amd or much:  # shared memory of AMD holds as much of a matrix
        widest //= 2
    width = min(widest, max(16, triton.next_power_of_2(neurons)))
    tiles = -(-neurons // width)
    warps = 8 if whole or tiles > 1 else 4
    if tiles > 1 and held > 1 and not (amd or (much and back)):
        warps = 16
    return Tiling(samples, neurons, neurons, SAMPLES, width, True), tiles, warps


def _room(x: Tensor, tiles: int, dtype: torch.dtype) -> Tensor | None:
    """What tiles of a program leave to each other."""
    return None if tiles == 1 else x.new_empty((2, *x.shape[1:]), dtype=dtype)


def _between(x: Tensor, tiles: int, neuron: Neuron, wanted: Tensor | None) -> Tensor | None:
    """Where several tiles leave their states from step to step: where they are wanted at the end, if they are."""
    if tiles == 1 or wanted is not None:
        return None if tiles == 1 else wanted
    return x.new_empty((len(neuron.step.states), *x.shape[1:]), dtype=torch.float32)


def _exact() -> str:
    """How float32 is multiplied to its last bits."""
    return "ieee" if triton_neuron.AMD or INTERPRETED else "tf32x3"


def forward(x: Tensor, matrix: Tensor, first: Tensor | None, neuron: Neuron, out: Any) -> None:
    """Fill what ``out``, a ``Window``, holds tensors for."""
    cut, tiles, warps = _cut(x, neuron, back=False)
    given, compiled = constants_for(neuron, back=False)
    dtypes = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # the interpreter cannot multiply in half precision
    dtype = tl.float32 if INTERPRETED else dtypes.get(x.dtype, tl.float32)
    way, room = Product(tiles, dtype, _exact()), _room(x, tiles, x.dtype)
    between = _between(x, tiles, neuron, out.states)
    launch(
        recurrent_forward_kernel, (cut.row_tiles,), x, x, matrix.t().contiguous(), first, out, between, room, given,
        WINDOW=Window(len(x), 1, 0), PRODUCT=way, warps=warps, **cut.geometry, **compiled,
    )  # fmt: skip


def backward(upstream: Any, kept: Tensor, matrix: Tensor, neuron: Neuron, out: Any) -> None:
    """Fill what ``out``, ``Found``, holds tensors for."""
    by_spikes = upstream.spikes
    steps, _, neurons = by_spikes.shape
    cut, tiles, warps = _cut(by_spikes, neuron, back=True)
    programs, fields = cut.row_tiles, len(PROBE_FIELDS)
    given, compiled = constants_for(neuron, back=True)
    own = own_surrogate(neuron.step.own_surrogate)
    half = by_spikes.dtype != torch.float32 and not triton_neuron.AMD
    way = Product(tiles, tl.float32, "tf32" if half else _exact())
    room = _room(by_spikes, tiles, torch.float32)
    between = _between(by_spikes, tiles, neuron, out.states)
    sums = None if out.constants is None else kept.new_empty(programs, neuron.rows, neurons)
    probe = None if out.probe is None else grouped(by_spikes, programs * tiles, steps * fields)
    launch(
        recurrent_backward_kernel, (programs,), by_spikes,
        upstream, kept, matrix, out, between, sums, probe, room, given,
        WINDOW=Window(steps, 1, 0), PRODUCT=way, KINDS=len(kept), warps=warps,
        **cut.geometry, **compiled, OWN_SLOPE=None if own is None else own.slope,
        OWN_AREA=None if own is None else own.primitive,
    )  # fmt: skip
    if sums is not None:
        total = sums.sum(0)
        out.constants.copy_(total if neuron.channels > 1 else total.sum(1, keepdim=True))
    if probe is not None:
        largest = PROBE_FIELDS.index("grad_input_max")
        join_groups(probe, out.probe, programs * tiles, fields, largest)
