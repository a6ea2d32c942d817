"""The forward pass of the neuron in Triton, and what a walk back (triton_walk) has to do again as it does.

The membrane's arithmetic is never contracted into fused multiply-adds (``enable_fp_fusion=False``), so forward and
replay agree with the reference bit for bit. A pointer is None for what a call does not have or want, ABOUT is a
constant; a kernel is then compiled without what it does not need.
"""

from __future__ import annotations

from typing import NamedTuple

from ..triton_import import tl, triton
from .triton_norm import norm_constants
from .triton_tiles import (
    SIZES,
    Size,
    own_tile,
    read_ahead,
    step_size,
    tile_at,
    time_step,
    where_below,
)


@triton.jit
def current_of(queues, j: tl.constexpr, inputs, norm, affine, now, WINDOW: tl.constexpr):
    """The neuron's input current, of what was read: the same operations in the same order in every kernel."""
    current = queues[0][j].to(tl.float32)
    if norm.mean is not None:
        current = (current - affine.mean) * affine.scale + affine.bias
        current = amplified(current, norm, now, WINDOW)
    if inputs.residual is not None:
        current = current + queues[1][j].to(tl.float32)
    return current


@triton.jit
def amplified(value, norm, now, WINDOW: tl.constexpr):
    """Times the gain of the step."""
    if norm.step_gain is not None:
        value = tl.load(norm.step_gain + now.t, mask=now.t < WINDOW.steps, other=0.0) * value
    return value


@triton.jit
def visit(
    queues, pointers, n: tl.constexpr, k, tile, step, WINDOW: tl.constexpr, BACK: tl.constexpr
):
    """``read_ahead`` of three tensors, some of them None."""
    return (
        read_ahead(queues[0], pointers[0], n, k, tile, step, WINDOW, BACK),
        read_ahead(queues[1], pointers[1], n, k, tile, step, WINDOW, BACK),
        read_ahead(queues[2], pointers[2], n, k, tile, step, WINDOW, BACK),
    )


class About(NamedTuple):
    """Of a step what a kernel is compiled for.

    ``forms``: how each constant is given. ``rows``: how many of them learn, ``per_channel``: by channel. ``wild``:
    whether its slopes may be infinite."""

    states: int
    constants: int
    forms: tuple[int, ...]
    rows: int
    per_channel: bool
    wild: bool


FLOAT, SCALAR, CHANNEL = 0, 1, 2
"""How a constant is given: as a number, or as a pointer to one, or to one for each channel."""
_FLOAT, _SCALAR = tl.constexpr(FLOAT), tl.constexpr(SCALAR)


@triton.jit
def constants_of(given, tile, ABOUT: tl.constexpr):
    """Those of a tile: numbers, or one value for each column or for its channel."""
    COUNT: tl.constexpr = ABOUT.constants
    values = ()
    for i in tl.static_range(COUNT):
        if ABOUT.forms[i] == _FLOAT:
            value = given[i]
        elif ABOUT.forms[i] == _SCALAR:
            value = tl.load(given[i])
        else:
            value = tl.load(given[i] + tile.channels, mask=tile.valid, other=1.0)
        values = values + (value,)  # type: ignore[assignment]
    return values


@triton.jit
def states(ptr, starts, tile, inside, step, ABOUT: tl.constexpr):
    """The states of a tile, one after the other in memory: the given ones, or ``starts``; None, and of them None: 0."""
    COUNT: tl.constexpr = ABOUT.states
    FIRST: tl.constexpr = ABOUT.constants
    found = ()
    for i in tl.static_range(COUNT):
        if ptr is not None:
            state = tl.load(ptr + i * step + tile.offs, mask=inside, other=0.0)
        elif starts is not None and starts[FIRST + i] is not None:
            state = tl.full(tile.offs.shape, 0.0, tl.float32) + starts[FIRST + i]
        else:
            state = tl.full(tile.offs.shape, 0.0, tl.float32)
        found = found + (state,)  # type: ignore[assignment]
    return found


@triton.jit
def store_states(ptr, found, tile, step, ABOUT: tl.constexpr):
    """Where there is memory for them: the reverse of ``states``."""
    COUNT: tl.constexpr = ABOUT.states
    if ptr is not None:
        for i in tl.static_range(COUNT):
            tl.store(ptr + i * step + tile.offs, found[i], mask=tile.inside)


@triton.jit(**SIZES)
def fire_kernel(
    inputs,  # Inputs
    norm,  # Norm
    out,  # Outputs
    given,  # the step's constants, then its starts
    R,
    C,
    units,
    S,
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
    ABOUT: tl.constexpr,
    FORTH: tl.constexpr,  # the printed step
):
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.ahead
    STATES: tl.constexpr = ABOUT.states
    CHUNKS: tl.constexpr = (WINDOW.steps + CHUNK - 1) // CHUNK
    size = Size(R, C, units * CUT.align, S)
    row, column, channel = own_tile(tl.num_programs(0) - 1 - tl.program_id(0), size, CUT)
    tile = tile_at(row, column, channel, size, CUT)
    step = step_size(size, CUT)
    c = constants_of(given, tile, ABOUT)
    affine = norm_constants(norm, tile)
    state = states(inputs.states, given, tile, tile.inside, step, ABOUT)
    read = (inputs.x, inputs.residual, inputs.spike_add)
    for chunk in range(CHUNKS):
        k = tl.cast(chunk, tl.int32)
        queues = ((), (), ())
        for n in tl.static_range(AHEAD):
            queues = visit(queues, read, n, k, tile, step, WINDOW, False)
        for j in tl.static_range(CHUNK):
            queues = visit(queues, read, j + AHEAD, k, tile, step, WINDOW, False)
            now = time_step(k, j, tile, step, WINDOW)
            current = current_of(queues, j, inputs, norm, affine, now, WINDOW)
            if out.current is not None:
                tl.store(
                    out.current + now.at, current.to(out.current.dtype.element_ty), mask=now.inside
                )
            s, after, _ = FORTH(current, state, c)
            emitted = s
            if inputs.spike_add is not None:
                emitted = s + queues[2][j].to(tl.float32)
            tl.store(out.spikes + now.at, emitted.to(out.spikes.dtype.element_ty), mask=now.inside)
            if out.trace is not None:
                tl.store(out.trace + now.at, after[0], mask=now.inside)
            state = within(now, after, state, WINDOW)
        if out.saved is not None:
            kept = where_below(tile.inside, k, CHUNKS - 1)
            for i in tl.static_range(STATES):
                tl.store(kept_at(out.saved, k, tile, step, ABOUT) + i * step, state[i], mask=kept)
    store_states(out.states, state, tile, step, ABOUT)


@triton.jit
def within(now, after, before, WINDOW: tl.constexpr):
    """The states after a step; beyond the window those before it."""
    states = ()
    for i in tl.static_range(len(after)):
        state = after[i]
        if WINDOW.steps % WINDOW.chunk != 0:
            state = tl.where(now.t < WINDOW.steps, state, before[i])
        states = states + (state,)  # type: ignore[assignment]
    return states


@triton.jit
def kept_at(saved_ptr, k, tile, step, ABOUT: tl.constexpr):
    """Where the first state after chunk k is kept; each other one follows, a step further."""
    return saved_ptr + k * ABOUT.states * step + tile.offs
