"""The forward pass of the neuron in Triton, and what a walk back (triton_walk) has to do again as it does.

The membrane's arithmetic is never contracted into fused multiply-adds (``enable_fp_fusion=False``), so forward and
replay agree with the reference bit for bit. A pointer is None for what a call does not have or want, FORMS and RULES
are constants; a kernel is then compiled without what it does not need.
"""

from __future__ import annotations

from typing import NamedTuple

from ..triton_import import tl, triton
from .triton_norm import norm_constants
from .triton_step import charge, of_tile, settle
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


class Own(NamedTuple):
    """Of a printed step what a kernel is compiled for: its states and constants, how these are given, which learn.

    ``apart``: whether its second state lies apart, as of a kind of ours, whose constants have ``places`` among
    ``Constants``.
    """

    states: int
    starts: tuple[float, ...]
    constants: int
    per_channel: bool
    learns: tuple[bool, ...]
    apart: bool
    places: tuple[int, ...]


@triton.jit
def own_constants(given, c, tile, C, OWN: tl.constexpr):
    """Those of a tile, from [P, C or 1]; of a kind of ours from c."""
    COUNT: tl.constexpr = OWN.constants
    values = ()
    for i in tl.static_range(COUNT):
        if given is None:
            value = c[OWN.places[i]]
        elif OWN.per_channel:
            value = tl.load(given + i * C + tile.channels, mask=tile.valid, other=1.0)
        else:
            value = tl.load(given + i)
        values = values + (value,)  # type: ignore[assignment]
    return values


@triton.jit
def states(v_ptr, m_ptr, v_start, tile, inside, step, OWN: tl.constexpr):
    """The states of a tile: the given ones, or v_start; of a printed step that is None for its own ones."""
    if OWN is None:
        v = tl.full(tile.offs.shape, v_start, tl.float32)
        if v_ptr is not None:
            v = tl.load(v_ptr + tile.offs, mask=inside, other=0.0)
        found = (v,)
    else:
        COUNT: tl.constexpr = OWN.states
        found = ()  # type: ignore[assignment]
        for i in tl.static_range(COUNT):
            ptr = state_pointer(v_ptr, m_ptr, i, step, OWN)
            if ptr is not None:
                state = tl.load(ptr + tile.offs, mask=inside, other=0.0)
            elif v_start is None:
                state = tl.full(tile.offs.shape, OWN.starts[i], tl.float32)
            else:
                state = tl.full(tile.offs.shape, v_start, tl.float32)
            found = found + (state,)  # type: ignore[assignment]
    return found


@triton.jit
def state_pointer(v_ptr, m_ptr, i: tl.constexpr, step, OWN: tl.constexpr):
    """Where state i lies: of a step of one's own all follow each other."""
    if OWN.apart:
        pointer = m_ptr if i > 0 else v_ptr
    elif v_ptr is not None:
        pointer = v_ptr + i * step
    else:
        pointer = None
    return pointer


@triton.jit
def store_states(v_ptr, m_ptr, found, tile, step, OWN: tl.constexpr):
    """Where there is memory for them: the reverse of ``states``."""
    if OWN is None:
        if v_ptr is not None:
            tl.store(v_ptr + tile.offs, found[0], mask=tile.inside)
    else:
        COUNT: tl.constexpr = OWN.states
        for i in tl.static_range(COUNT):
            ptr = state_pointer(v_ptr, m_ptr, i, step, OWN)
            if ptr is not None:
                tl.store(ptr + tile.offs, found[i], mask=tile.inside)


@triton.jit(**SIZES)
def fire_kernel(
    inputs,  # Inputs
    norm,  # Norm
    out,  # Outputs
    given,  # Constants
    own_ptr,  # [P, C or 1]: the constants of a step of one's own
    R,
    C,
    units,
    S,
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
    FORMS: tl.constexpr,
    RULES: tl.constexpr,
    OWN: tl.constexpr,
    FORTH: tl.constexpr,  # the printed step; None: LIF, by RULES
):
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.ahead
    STATES: tl.constexpr = RULES.states
    CHUNKS: tl.constexpr = (WINDOW.steps + CHUNK - 1) // CHUNK
    size = Size(R, C, units * CUT.align, S)
    row, column, channel = own_tile(tl.num_programs(0) - 1 - tl.program_id(0), size, CUT)
    tile = tile_at(row, column, channel, size, CUT)
    step = step_size(size, CUT)
    c = of_tile(given, tile, FORMS)
    affine = norm_constants(norm, c.eps, c.bn_scale, tile)
    own = ()
    if OWN is not None:
        own = own_constants(own_ptr, c, tile, C, OWN)
    state = states(inputs.v_init, inputs.m_init, c.v_start, tile, tile.inside, step, OWN)
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
            if FORTH is not None:
                s, after, _ = FORTH(current, state, own)
            else:
                s, v = settle(charge(state[0], current, c, RULES), c, RULES)
                after = (v,)
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
                tl.store(kept_at(out.saved, k, tile, step, RULES) + i * step, state[i], mask=kept)
    store_states(out.v_last, out.m_last, state, tile, step, OWN)


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
def kept_at(saved_ptr, k, tile, step, RULES: tl.constexpr):
    """Where the first state after chunk k is kept; each other one follows, a step further."""
    return saved_ptr + k * RULES.states * step + tile.offs
