"""The walk back of the neuron in Triton: a tile's window is replayed chunk by chunk, and gone through from its end.

Windows longer than a chunk keep the float32 states between chunks: 8 / CHUNK bytes more for each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..arguments import PROBE_FIELDS
from ..surrogate import REACH as _REACH
from ..triton_import import tl, triton
from .triton_fire import (
    amplified,
    constants_of,
    current_of,
    kept_at,
    states,
    store_states,
    visit,
    within,
)
from .triton_norm import by_norm_input, channel_means, norm_constants
from .triton_tiles import (
    GROUP,
    SIZES,
    Size,
    blocks,
    in_group,
    over_owned,
    own_tile,
    partial_place,
    step_size,
    tile_at,
    tile_number,
    time_step,
    total,
    where_below,
)

PROBE_WIDTH = tl.constexpr(len(PROBE_FIELDS))
GRAD_SPIKE_SQ = tl.constexpr(PROBE_FIELDS.index("grad_spike_sq"))
GRAD_INPUT_SQ = tl.constexpr(PROBE_FIELDS.index("grad_input_sq"))
GRAD_CARRY_SQ = tl.constexpr(PROBE_FIELDS.index("grad_carry_sq"))
TIME_FACTOR = tl.constexpr(PROBE_FIELDS.index("time_factor"))
OUTSIDE = tl.constexpr(PROBE_FIELDS.index("outside"))
SPIKES = tl.constexpr(PROBE_FIELDS.index("spikes"))
GRAD_INPUT_MAX = tl.constexpr(PROBE_FIELDS.index("grad_input_max"))
NONFINITE = tl.constexpr(PROBE_FIELDS.index("nonfinite"))
REACH = tl.constexpr(_REACH)


class Written(NamedTuple):
    """Of ``Gradients``, what is as large as the input or a step of it."""

    dx: Any
    dy: Any
    states: Any


class Partial(NamedTuple):
    """What the programs of a walk back sum, float32."""

    sums: Any  # [2, parts, L or C]
    constants: Any  # [rows, parts, L or C] or [groups, rows, GROUP]
    step_gain: Any  # [groups, T, GROUP]
    probe: Any  # [groups, T, 8, GROUP]


@triton.jit
def _start_of_chunk(
    k, inputs, saved_ptr, given, tile, step, WINDOW: tl.constexpr, ABOUT: tl.constexpr
):  # fmt: skip
    """The states before chunk k: the given ones, or those that the forward pass kept."""
    STATES: tl.constexpr = ABOUT.states
    first_chunk = where_below(tile.inside, k, 1)
    state = states(inputs.states, given, tile, first_chunk, step, ABOUT)
    if WINDOW.steps > WINDOW.chunk:
        later_chunk = where_below(tile.inside, -k, 0)
        kept_ptr = kept_at(saved_ptr, k - 1, tile, step, ABOUT)
        found = ()
        for i in tl.static_range(STATES):
            kept = tl.load(kept_ptr + i * step, mask=later_chunk, other=0.0)
            found = found + (tl.where(k == 0, state[i], kept),)  # type: ignore[assignment]
        state = found
    return state


@triton.jit
def _replay(
    k, inputs, saved_ptr, norm, affine, given, c, tile, step, WINDOW: tl.constexpr, ABOUT: tl.constexpr,
    FORTH: tl.constexpr,
):  # fmt: skip
    """Forward through chunk k again: what was read of each step, and all that the step keeps.

    What of it is needed stays in registers."""
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.replay_ahead
    state = _start_of_chunk(k, inputs, saved_ptr, given, tile, step, WINDOW, ABOUT)
    every = ()
    queues = ((), (), ())
    asked = (inputs.x, inputs.residual, None)
    for n in tl.static_range(AHEAD):
        queues = visit(queues, asked, n, k, tile, step, WINDOW, False)
    for j in tl.static_range(CHUNK):
        queues = visit(queues, asked, j + AHEAD, k, tile, step, WINDOW, False)
        now = time_step(k, j, tile, step, WINDOW)
        current = current_of(queues, j, inputs, norm, affine, now, WINDOW)
        _, state, kept = FORTH(current, state, c)
        every = every + (kept,)  # type: ignore[assignment]
    return queues[0], every


@triton.jit
def observe(
    probe_ptr, number, now, grad_s, dx, carry, factor, unit, spikes, WINDOW: tl.constexpr
):  # fmt: skip
    """This tile's share of one step of a probe, whose fields are ``GROUP`` apart."""
    here = now.inside
    finite = tl.abs(dx) < float("inf")
    at = probe_ptr + in_group(number, WINDOW.steps * PROBE_WIDTH) + now.t * PROBE_WIDTH * GROUP
    kept = now.t < WINDOW.steps
    tl.store(
        at + GRAD_SPIKE_SQ * GROUP, total(tl.where(here, 1.0, 0.0) * grad_s * grad_s), mask=kept
    )
    tl.store(at + GRAD_INPUT_SQ * GROUP, total(tl.where(here, dx * dx, 0.0)), mask=kept)
    tl.store(at + GRAD_CARRY_SQ * GROUP, total(tl.where(here, carry * carry, 0.0)), mask=kept)
    passed = tl.abs(factor)
    tl.store(at + TIME_FACTOR * GROUP, total(tl.where(here, passed, 0.0)), mask=kept)
    outside = here & (unit < REACH)
    tl.store(at + OUTSIDE * GROUP, total(tl.where(outside, 1.0, 0.0)), mask=kept)
    tl.store(at + SPIKES * GROUP, total(tl.where(here, spikes, 0.0)), mask=kept)
    largest = tl.max(tl.max(tl.where(here & finite, tl.abs(dx), 0.0), axis=1), axis=0)
    tl.store(at + GRAD_INPUT_MAX * GROUP, largest, mask=kept)
    tl.store(at + NONFINITE * GROUP, total(tl.where(here & (finite == 0), 1.0, 0.0)), mask=kept)


@triton.jit
def with_first(states, first):
    """The states, with another one in the place of the first."""
    found = (first,)
    for i in tl.static_range(1, len(states)):
        found = found + (states[i],)  # type: ignore[assignment]
    return found


@triton.jit
def _added(sums, shares, now, ROWS: tl.constexpr):
    """The sums of the gradients by the constants, with this step's."""
    found = ()
    for i in tl.static_range(ROWS):
        found = found + (sums[i] + tl.where(now.inside, shares[i], 0.0),)  # type: ignore[assignment]
    return found


@triton.jit
def _through_norm(
    sums, dx, x, norm, affine, means, out, partial, number, now, WINDOW: tl.constexpr
):
    """One step through batch norm: dL/dy is stored, and the sums are those before with this step's."""
    sum_dz, sum_dz_centred = sums
    centred = x.to(tl.float32) - affine.mean
    if partial.step_gain is not None:
        share = tl.where(now.inside, dx * (centred * affine.scale + affine.bias), 0.0)
        at = partial.step_gain + in_group(number, WINDOW.steps) + now.t * GROUP
        tl.store(at, total(share), mask=now.t < WINDOW.steps)
    dz = amplified(dx, norm, now, WINDOW)
    if partial.sums is not None:
        # beyond the window dz is no gradient; beyond the tensor it is 0
        if WINDOW.steps % WINDOW.chunk != 0:
            dz = tl.where(now.inside, dz, 0.0)
        sum_dz += dz
        sum_dz_centred = tl.fma(dz, centred, sum_dz_centred)
    if out.dy is not None:
        dy = affine.scale * dz
        if means is not None:
            dy = by_norm_input(dz, centred, means, affine)
        tl.store(out.dy + now.at, dy.to(out.dy.dtype.element_ty), mask=now.inside)
    return sum_dz, sum_dz_centred


@triton.jit(**SIZES)
def walk_kernel(
    upstream,  # Upstream
    inputs,  # Inputs
    saved_ptr,  # [chunks - 1, N] or [chunks - 1, 2, N] float32
    norm,  # Norm
    sums_ptr,  # [2, C]: sum of dz, sum of dz * xhat over the channel
    out,  # Written
    partial,  # Partial
    given,  # the step's constants, then its starts
    count,
    R,
    C,
    units,
    S,
    programs,  # row programs; each walks every programs-th row tile
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
    ABOUT: tl.constexpr,
    OWN_SLOPE: tl.constexpr,  # of a surrogate of one's own, and its primitive
    OWN_AREA: tl.constexpr,
    FORTH: tl.constexpr,  # the printed step, and its way back
    BACK: tl.constexpr,
):
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.ahead
    STAGES: tl.constexpr = WINDOW.stages
    ROWS: tl.constexpr = ABOUT.rows
    CHUNKS: tl.constexpr = (WINDOW.steps + CHUNK - 1) // CHUNK
    size = Size(R, C, units * CUT.align, S)
    first, column, channel = own_tile(tl.program_id(0), size, CUT)
    lane = tile_at(first, column, channel, size, CUT)
    step = step_size(size, CUT)
    c = constants_of(given, lane, ABOUT)
    affine = norm_constants(norm, lane)
    means = None
    if sums_ptr is not None:
        means = channel_means(sums_ptr, C, count, affine, lane)
    zero = tl.zeros(lane.offs.shape, tl.float32)
    sums = (zero, zero)
    learnt = ()
    for _ in tl.static_range(ROWS):
        learnt = learnt + (zero,)  # type: ignore[assignment]
    asked = (upstream.spikes, upstream.current, upstream.trace)
    for visited in tl.range(first, blocks(R, CUT.block_r), programs, num_stages=STAGES):
        row = visited
        if sums_ptr is not None:
            row = blocks(R, CUT.block_r) - 1 - visited
        tile = tile_at(row, column, channel, size, CUT)
        number = tile_number(row, column, channel, size, CUT)
        by = states(upstream.states, None, tile, tile.inside, step, ABOUT)
        for back in range(CHUNKS):
            k = tl.cast(CHUNKS - 1 - back, tl.int32)
            read, kept = _replay(
                k, inputs, saved_ptr, norm, affine, given, c, tile, step, WINDOW, ABOUT, FORTH
            )
            queues = ((), (), ())
            for n in tl.static_range(AHEAD):
                queues = visit(queues, asked, n, k, tile, step, WINDOW, True)
            for j in tl.static_range(CHUNK - 1, -1, -1):
                queues = visit(queues, asked, CHUNK - 1 - j + AHEAD, k, tile, step, WINDOW, True)
                now = time_step(k, j, tile, step, WINDOW)
                grad_s = queues[0][CHUNK - 1 - j].to(tl.float32)
                carry = by[0]
                if upstream.trace is not None:
                    carry += queues[2][CHUNK - 1 - j]
                    by = with_first(by, carry)
                own_dx, earlier, by_constants, factor, unit, s = BACK(
                    kept[j], c, grad_s, by, OWN_SLOPE, OWN_AREA
                )
                # of what a norm makes of a zero beyond the tensor
                if norm.mean is not None and ABOUT.wild:
                    own_dx = tl.where(now.inside, own_dx, 0.0)
                dx = own_dx  # what comes through the neuron; a probe measures that alone
                if upstream.current is not None:
                    dx = own_dx + queues[1][CHUNK - 1 - j].to(tl.float32)
                if out.dx is not None:
                    tl.store(out.dx + now.at, dx.to(out.dx.dtype.element_ty), mask=now.inside)
                if partial.constants is not None:
                    learnt = _added(learnt, by_constants, now, ROWS)
                if partial.probe is not None:
                    observe(
                        partial.probe, number, now, grad_s, own_dx, carry, factor, unit, s, WINDOW
                    )
                if norm.mean is not None:
                    sums = _through_norm(
                        sums, dx, read[j], norm, affine, means, out, partial, number, now, WINDOW
                    )  # fmt: skip
                by = within(now, earlier, by, WINDOW)
        store_states(out.states, by, tile, step, ABOUT)

    # One partial sum per program and channel; the host joins them in a fixed order.
    place, keep, plane = partial_place(first, column, channel, programs, size, CUT)
    if partial.sums is not None:
        at = partial.sums + place
        tl.store(at, over_owned(sums[0], size, CUT), mask=keep)
        tl.store(at + plane, over_owned(sums[1] * affine.rstd, size, CUT), mask=keep)
    if partial.constants is not None:
        for i in tl.static_range(ROWS):
            if ABOUT.per_channel:
                at = partial.constants + place + i * plane
                tl.store(at, over_owned(learnt[i], size, CUT), mask=keep)
            else:
                at = partial.constants + in_group(tl.program_id(0), ROWS) + i * GROUP
                tl.store(at, total(learnt[i]))
