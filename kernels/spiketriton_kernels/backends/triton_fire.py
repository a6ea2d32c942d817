"""The forward pass of the neuron in Triton, and what a walk back (triton_walk) has to do again as it does.

The membrane's arithmetic is never contracted into fused multiply-adds (``enable_fp_fusion=False``), so forward and
replay agree with the reference bit for bit. A pointer is None for what a call does not have or want, FORMS and RULES
are constants; a kernel is then compiled without what it does not need.
"""

from __future__ import annotations

from ..triton_import import tl, triton
from .triton_norm import norm_constants
from .triton_step import charge, filtered, gate, of_tile, settle, spike
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


@triton.jit
def states(v_ptr, m_ptr, v_start, tile, inside):
    """Membrane and second state of a tile: the given ones, or v_start and 0."""
    v = tl.full(tile.offs.shape, v_start, tl.float32)
    m = tl.zeros(tile.offs.shape, tl.float32)
    if v_ptr is not None:
        v = tl.load(v_ptr + tile.offs, mask=inside, other=0.0)
    if m_ptr is not None:
        m = tl.load(m_ptr + tile.offs, mask=inside, other=0.0)
    return v, m


@triton.jit(**SIZES)
def fire_kernel(
    inputs,  # Inputs
    norm,  # Norm
    out,  # Outputs
    given,  # Constants
    R,
    C,
    units,
    S,
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
    FORMS: tl.constexpr,
    RULES: tl.constexpr,
):
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.ahead
    CHUNKS: tl.constexpr = (WINDOW.steps + CHUNK - 1) // CHUNK
    size = Size(R, C, units * CUT.align, S)
    row, column, channel = own_tile(tl.num_programs(0) - 1 - tl.program_id(0), size, CUT)
    tile = tile_at(row, column, channel, size, CUT)
    step = step_size(size, CUT)
    c = of_tile(given, tile, FORMS)
    affine = norm_constants(norm, c.eps, c.bn_scale, tile)
    v, m = states(inputs.v_init, inputs.m_init, c.v_start, tile, tile.inside)
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
            charging, m_before = filtered(current, m, c, RULES)
            h = charge(v, charging, c, RULES)
            s = spike(h, m_before, c, RULES)
            emitted = s
            if inputs.spike_add is not None:
                emitted = s + queues[2][j].to(tl.float32)
            tl.store(out.spikes + now.at, emitted.to(out.spikes.dtype.element_ty), mask=now.inside)
            v_after, m_after = settle(h, m_before, s, gate(h, c, RULES), c, RULES)
            if out.trace is not None:
                tl.store(out.trace + now.at, v_after, mask=now.inside)
            v, m = within(now, v_after, m_after, v, m, WINDOW)
        if out.saved is not None:
            kept = where_below(tile.inside, k, CHUNKS - 1)
            tl.store(kept_at(out.saved, k, tile, step, RULES), v, mask=kept)
            if RULES.has_m:
                tl.store(kept_at(out.saved, k, tile, step, RULES) + step, m, mask=kept)
    if out.v_last is not None:
        tl.store(out.v_last + tile.offs, v, mask=tile.inside)
    if out.m_last is not None:
        tl.store(out.m_last + tile.offs, m, mask=tile.inside)


@triton.jit
def within(now, v, m, v_before, m_before, WINDOW: tl.constexpr):
    """v and m of a step; beyond the window those before it."""
    if WINDOW.steps % WINDOW.chunk != 0:
        v = tl.where(now.t < WINDOW.steps, v, v_before)
        m = tl.where(now.t < WINDOW.steps, m, m_before)
    return v, m


@triton.jit
def kept_at(saved_ptr, k, tile, step, RULES: tl.constexpr):
    """Where the membrane after chunk k is kept; the second state follows, a step further."""
    if RULES.has_m:
        k = 2 * k
    return saved_ptr + k * step + tile.offs
