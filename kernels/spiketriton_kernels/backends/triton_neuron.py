"""The neuron in Triton: one kernel that fires, one that walks back, and their launches. Steps: triton_step; tiles:
triton_tiles.

Bytes per element and step, e per element of the I/O dtype: fire 2e; walk back 3e, or 2e when it only sums; replaying
the states costs arithmetic, which is free here. The membrane's is never contracted into fused multiply-adds
(``enable_fp_fusion=False``), so forward and replay agree with the reference bit for bit.
AHEAD: so many steps are read before the step at work stores. The numbers are those that keep most bytes under way in a
processor without a program fewer on it (``profiling/run.py compiled``, profiling/LOG.md).
What was read last is read first, while a GPU's cache still has it: a pass behind another one (fire, dy) takes the tiles
from the last to the first.
Windows longer than a chunk keep the float32 states between chunks: 8 / CHUNK bytes more for each.

A pointer is None for what a call does not have or want, FORMS and RULES are constants; the kernel is then compiled
without what it does not need.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from ..arguments import PROBE_FIELDS
from ..layout import chunk_length
from ..neuron import NORM, Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..surrogate import REACH as _REACH
from ..surrogate import own_surrogate
from ..triton_import import tl, triton
from .triton_launch import launch, repeat
from .triton_norm import (
    Norm,
    by_norm_input,
    channel_means,
    channel_statistics,
    norm_backward,
    norm_constants,
)
from .triton_step import (
    Constants,
    Forms,
    Rules,
    by_width,
    charge,
    filtered,
    gate,
    of_tile,
    settle,
    spike,
    step_back,
)
from .triton_tiles import (
    GROUP,
    SIZES,
    WALKS,
    Size,
    Window,
    blocks,
    grouped,
    in_group,
    join_groups,
    over_owned,
    own_tile,
    partial_place,
    processors,
    read_ahead,
    step_size,
    tile_at,
    tile_number,
    tiling,
    time_step,
    total,
    vector_width,
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
SHARED = 0 if torch.version.hip else 64 * 1024  # bytes of a program's tile


class Written(NamedTuple):
    """Of ``Gradients``, what is as large as the input or a step of it."""

    dx: Any
    dy: Any
    v_init: Any
    m_init: Any


class Partial(NamedTuple):
    """What the programs of a walk back sum, float32."""

    sums: Any  # [2, parts, L or C]
    parameters: Any  # [rows, parts, L or C] or [groups, rows, GROUP]
    step_gain: Any  # [groups, T, GROUP]
    probe: Any  # [groups, T, 8, GROUP]


@triton.jit
def _current(queues, j: tl.constexpr, inputs, norm, affine, now, WINDOW: tl.constexpr):
    """The neuron's input current, of what was read: the same operations in the same order in every kernel."""
    current = queues[0][j].to(tl.float32)
    if norm.mean is not None:
        current = (current - affine.mean) * affine.scale + affine.bias
        current = _amplified(current, norm, now, WINDOW)
    if inputs.residual is not None:
        current = current + queues[1][j].to(tl.float32)
    return current


@triton.jit
def _amplified(value, norm, now, WINDOW: tl.constexpr):
    """Times the gain of the step."""
    if norm.step_gain is not None:
        value = tl.load(norm.step_gain + now.t, mask=now.t < WINDOW.steps, other=0.0) * value
    return value


@triton.jit
def _visit(
    queues, pointers, n: tl.constexpr, k, tile, step, WINDOW: tl.constexpr, BACK: tl.constexpr
):
    """``read_ahead`` of three tensors, some of them None."""
    return (
        read_ahead(queues[0], pointers[0], n, k, tile, step, WINDOW, BACK),
        read_ahead(queues[1], pointers[1], n, k, tile, step, WINDOW, BACK),
        read_ahead(queues[2], pointers[2], n, k, tile, step, WINDOW, BACK),
    )


@triton.jit
def _states(v_ptr, m_ptr, v_start, tile, inside):
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
    v, m = _states(inputs.v_init, inputs.m_init, c.v_start, tile, tile.inside)
    read = (inputs.x, inputs.residual, inputs.spike_add)
    for chunk in range(CHUNKS):
        k = tl.cast(chunk, tl.int32)
        queues = ((), (), ())
        for n in tl.static_range(AHEAD):
            queues = _visit(queues, read, n, k, tile, step, WINDOW, False)
        for j in tl.static_range(CHUNK):
            queues = _visit(queues, read, j + AHEAD, k, tile, step, WINDOW, False)
            now = time_step(k, j, tile, step, WINDOW)
            current = _current(queues, j, inputs, norm, affine, now, WINDOW)
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
            v, m = _within(now, v_after, m_after, v, m, WINDOW)
        if out.saved is not None:
            kept = where_below(tile.inside, k, CHUNKS - 1)
            tl.store(_kept_at(out.saved, k, tile, step, RULES), v, mask=kept)
            if RULES.has_m:
                tl.store(_kept_at(out.saved, k, tile, step, RULES) + step, m, mask=kept)
    if out.v_last is not None:
        tl.store(out.v_last + tile.offs, v, mask=tile.inside)
    if out.m_last is not None:
        tl.store(out.m_last + tile.offs, m, mask=tile.inside)


@triton.jit
def _within(now, v, m, v_before, m_before, WINDOW: tl.constexpr):
    """v and m of a step; beyond the window those before it."""
    if WINDOW.steps % WINDOW.chunk != 0:
        v = tl.where(now.t < WINDOW.steps, v, v_before)
        m = tl.where(now.t < WINDOW.steps, m, m_before)
    return v, m


@triton.jit
def _kept_at(saved_ptr, k, tile, step, RULES: tl.constexpr):
    """Where the membrane after chunk k is kept; the second state follows, a step further."""
    if RULES.has_m:
        k = 2 * k
    return saved_ptr + k * step + tile.offs


@triton.jit
def _start_of_chunk(k, inputs, saved_ptr, c, tile, step, WINDOW: tl.constexpr, RULES: tl.constexpr):
    """Membrane and second state before chunk k: the given ones, or those that the forward pass kept."""
    first_chunk = where_below(tile.inside, k, 1)
    v, m = _states(inputs.v_init, inputs.m_init, c.v_start, tile, first_chunk)
    if WINDOW.steps > WINDOW.chunk:
        later_chunk = where_below(tile.inside, -k, 0)
        kept_ptr = _kept_at(saved_ptr, k - 1, tile, step, RULES)
        v = tl.where(k == 0, v, tl.load(kept_ptr, mask=later_chunk, other=0.0))
        if RULES.has_m:
            m = tl.where(k == 0, m, tl.load(kept_ptr + step, mask=later_chunk, other=0.0))
    return v, m


class Replayed(NamedTuple):
    """Of each step of a chunk: x, h, m before it and what its gate kept. What of it is needed stays in registers."""

    x: Any
    h: Any
    m: Any
    kept: Any
    v_start: Any


@triton.jit
def _replay(
    k, inputs, saved_ptr, norm, affine, c, tile, step, WINDOW: tl.constexpr, RULES: tl.constexpr
):  # fmt: skip
    """Forward through chunk k again."""
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.replay_ahead
    v, m = _start_of_chunk(k, inputs, saved_ptr, c, tile, step, WINDOW, RULES)
    v_start = v
    potentials = ()
    seconds = ()
    gates = ()
    queues = ((), (), ())
    asked = (inputs.x, inputs.residual, None)
    for n in tl.static_range(AHEAD):
        queues = _visit(queues, asked, n, k, tile, step, WINDOW, False)
    for j in tl.static_range(CHUNK):
        queues = _visit(queues, asked, j + AHEAD, k, tile, step, WINDOW, False)
        now = time_step(k, j, tile, step, WINDOW)
        current = _current(queues, j, inputs, norm, affine, now, WINDOW)
        seconds = seconds + (m,)  # type: ignore[assignment]
        charging, m = filtered(current, m, c, RULES)
        h = charge(v, charging, c, RULES)
        kept = gate(h, c, RULES)
        potentials = potentials + (h,)  # type: ignore[assignment]
        gates = gates + (kept,)  # type: ignore[assignment]
        v, m = settle(h, m, spike(h, m, c, RULES), kept, c, RULES)
    return Replayed(queues[0], potentials, seconds, gates, v_start)


@triton.jit
def _before(replayed, j: tl.constexpr, c, RULES: tl.constexpr):
    """The membrane before step j of a chunk."""
    v = replayed.v_start
    if j > 0:
        h = replayed.h[j - 1]
        m = replayed.m[j - 1]
        v, _ = settle(h, m, spike(h, m, c, RULES), replayed.kept[j - 1], c, RULES)
    return v


@triton.jit
def _observe(probe_ptr, number, now, grad_s, dx, carry, back, c, WINDOW: tl.constexpr):
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
    passed = tl.abs(c.decay * back.jump)
    tl.store(at + TIME_FACTOR * GROUP, total(tl.where(here, passed, 0.0)), mask=kept)
    outside = here & (back.unit < REACH)
    tl.store(at + OUTSIDE * GROUP, total(tl.where(outside, 1.0, 0.0)), mask=kept)
    tl.store(at + SPIKES * GROUP, total(tl.where(here, back.s, 0.0)), mask=kept)
    largest = tl.max(tl.max(tl.where(here & finite, tl.abs(dx), 0.0), axis=1), axis=0)
    tl.store(at + GRAD_INPUT_MAX * GROUP, largest, mask=kept)
    tl.store(at + NONFINITE * GROUP, total(tl.where(here & (finite == 0), 1.0, 0.0)), mask=kept)


@triton.jit
def _learn(
    sums, h, m, v_before, current, back, now, c,
    RULES: tl.constexpr, FORMS: tl.constexpr, OWN_AREA: tl.constexpr,
):  # fmt: skip
    """The sums of the gradients by ``Forms``, with this step's. Those of floats stay as they are."""
    decay, threshold, width, gain, rho, beta = sums
    by_threshold = back.by_threshold
    if RULES.reset == "delayed_soft":
        by_threshold = by_threshold - tl.where(v_before >= c.threshold, back.by_h, 0.0)
    if FORMS.decay != "float":
        if RULES.leaks_to_reset:
            v_before = v_before - c.v_reset
        if RULES.reset == "delayed_hard":
            v_before = tl.where(v_before >= c.threshold, 0.0, v_before)
        share = back.by_h * v_before
        if RULES.kind == "clif":
            share = share + back.by_decay
        decay += tl.where(now.inside, share, 0.0)
    if FORMS.threshold != "float":
        threshold += tl.where(now.inside, by_threshold, 0.0)
    if FORMS.width != "float":
        width += tl.where(now.inside, by_width(h, m, back, c, RULES, OWN_AREA), 0.0)
    if FORMS.gain != "float":
        gain += tl.where(now.inside, back.by_h * current, 0.0)
    if FORMS.rho != "float":
        rho += tl.where(now.inside, back.by_rho, 0.0)
    if FORMS.beta != "float":
        beta += tl.where(now.inside, back.by_beta, 0.0)
    return decay, threshold, width, gain, rho, beta


@triton.jit
def _current_again(inputs, norm, affine, now, WINDOW: tl.constexpr):
    """The current of a step, read once more: held since the replay it would take a register a step."""
    x = tl.load(inputs.x + now.at, mask=now.inside, other=0.0)
    read = ((x,), ())
    if inputs.residual is not None:
        read = ((x,), (tl.load(inputs.residual + now.at, mask=now.inside, other=0.0),))  # type: ignore[assignment]
    return _current(read, 0, inputs, norm, affine, now, WINDOW)


@triton.jit
def _through_norm(
    sums, dx, x, norm, affine, means, out, partial, number, now, WINDOW: tl.constexpr
):
    """One step through batch norm: dL/dy is stored, and the sums are those before with this step's."""
    sum_dz, sum_dz_xhat = sums
    xhat = (x.to(tl.float32) - affine.mean) * affine.rstd
    if partial.step_gain is not None:
        share = tl.where(now.inside, dx * (xhat * affine.weight + affine.bias), 0.0)
        at = partial.step_gain + in_group(number, WINDOW.steps) + now.t * GROUP
        tl.store(at, total(share), mask=now.t < WINDOW.steps)
    dz = _amplified(dx, norm, now, WINDOW)
    if partial.sums is not None:
        # beyond the window dz is no gradient; beyond the tensor it is 0
        if WINDOW.steps % WINDOW.chunk != 0:
            dz = tl.where(now.inside, dz, 0.0)
        sum_dz += dz
        sum_dz_xhat = tl.fma(dz, xhat, sum_dz_xhat)
    if out.dy is not None:
        dy = affine.scale * dz
        if means is not None:
            dy = by_norm_input(dz, xhat, means, affine)
        tl.store(out.dy + now.at, dy.to(out.dy.dtype.element_ty), mask=now.inside)
    return sum_dz, sum_dz_xhat


@triton.jit(**SIZES)
def walk_kernel(
    upstream,  # Upstream
    inputs,  # Inputs
    saved_ptr,  # [chunks - 1, N] or [chunks - 1, 2, N] float32
    norm,  # Norm
    sums_ptr,  # [2, C]: sum of dz, sum of dz * xhat over the channel
    out,  # Written
    partial,  # Partial
    given,  # Constants
    count,
    R,
    C,
    units,
    S,
    programs,  # row programs; each walks every programs-th row tile
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
    FORMS: tl.constexpr,
    RULES: tl.constexpr,
    ROWS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    STAGES: tl.constexpr,
    OWN_SLOPE: tl.constexpr,
    OWN_AREA: tl.constexpr,
):
    CHUNK: tl.constexpr = WINDOW.chunk
    AHEAD: tl.constexpr = WINDOW.ahead
    CHUNKS: tl.constexpr = (WINDOW.steps + CHUNK - 1) // CHUNK
    size = Size(R, C, units * CUT.align, S)
    first, column, channel = own_tile(tl.program_id(0), size, CUT)
    lane = tile_at(first, column, channel, size, CUT)
    step = step_size(size, CUT)
    c = of_tile(given, lane, FORMS)
    affine = norm_constants(norm, c.eps, c.bn_scale, lane)
    means = None
    if sums_ptr is not None:
        means = channel_means(sums_ptr, C, count, lane)
    zero = tl.zeros(lane.offs.shape, tl.float32)
    sums = (zero, zero)
    learnt = (zero, zero, zero, zero, zero, zero)
    asked = (upstream.spikes, upstream.current, upstream.trace)
    for visited in tl.range(first, blocks(R, CUT.block_r), programs, num_stages=STAGES):
        row = visited
        if sums_ptr is not None:
            row = blocks(R, CUT.block_r) - 1 - visited
        tile = tile_at(row, column, channel, size, CUT)
        number = tile_number(row, column, channel, size, CUT)
        by_v, by_m = _states(upstream.v_last, upstream.m_last, 0.0, tile, tile.inside)
        for back in range(CHUNKS):
            k = tl.cast(CHUNKS - 1 - back, tl.int32)
            replayed = _replay(k, inputs, saved_ptr, norm, affine, c, tile, step, WINDOW, RULES)
            queues = ((), (), ())
            for n in tl.static_range(AHEAD):
                queues = _visit(queues, asked, n, k, tile, step, WINDOW, True)
            for j in tl.static_range(CHUNK - 1, -1, -1):
                queues = _visit(queues, asked, CHUNK - 1 - j + AHEAD, k, tile, step, WINDOW, True)
                now = time_step(k, j, tile, step, WINDOW)
                grad_s = queues[0][CHUNK - 1 - j].to(tl.float32)
                if upstream.trace is not None:
                    by_v += queues[2][CHUNK - 1 - j]
                h = replayed.h[j]
                m = replayed.m[j]
                step_of = step_back(h, m, replayed.kept[j], grad_s, by_v, by_m, c, RULES, OWN_SLOPE)
                own = (
                    c.gain * step_of.by_h
                )  # what comes through the neuron; a probe measures that alone
                if RULES.kind == "cuba":
                    own = own + by_m
                dx = own
                if upstream.current is not None:
                    dx = own + queues[1][CHUNK - 1 - j].to(tl.float32)
                if out.dx is not None:
                    tl.store(out.dx + now.at, dx.to(out.dx.dtype.element_ty), mask=now.inside)
                v_before = _before(replayed, j, c, RULES)
                if partial.parameters is not None:
                    current = h
                    if FORMS.gain != "float":
                        current = _current_again(inputs, norm, affine, now, WINDOW)
                        current, _ = filtered(current, m, c, RULES)
                    learnt = _learn(
                        learnt, h, m, v_before, current, step_of, now, c, RULES, FORMS, OWN_AREA
                    )
                if partial.probe is not None:
                    _observe(partial.probe, number, now, grad_s, own, by_v, step_of, c, WINDOW)
                if norm.mean is not None:
                    sums = _through_norm(
                        sums, dx, replayed.x[j], norm, affine, means, out, partial, number, now, WINDOW
                    )  # fmt: skip
                earlier = c.decay * step_of.by_h
                if RULES.reset == "delayed_hard":
                    earlier = tl.where(v_before >= c.threshold, 0.0, earlier)
                by_v, by_m = _within(now, earlier, step_of.by_m, by_v, by_m, WINDOW)
        if out.v_init is not None:
            tl.store(out.v_init + tile.offs, by_v, mask=tile.inside)
        if out.m_init is not None:
            tl.store(out.m_init + tile.offs, by_m, mask=tile.inside)

    # One partial sum per program and channel; the host joins them in a fixed order.
    place, keep, plane = partial_place(first, column, channel, programs, size, CUT)
    if partial.sums is not None:
        at = partial.sums + place
        tl.store(at, over_owned(sums[0], CUT), mask=keep)
        tl.store(at + plane, over_owned(sums[1], CUT), mask=keep)
    if partial.parameters is not None:
        for i in tl.static_range(ROWS):
            if PER_CHANNEL:
                at = partial.parameters + place + i * plane
                tl.store(at, over_owned(learnt[i], CUT), mask=keep)
            else:
                at = partial.parameters + in_group(tl.program_id(0), ROWS) + i * GROUP
                tl.store(at, total(learnt[i]))


def _walk_width(x: torch.Tensor, neuron: Neuron, out: Gradients) -> int:
    """``vector_width`` of a walk back.

    Where it holds more than h of a chunk: 4 elements (8 bytes in half precision, still whole cache lines a warp) with
    batch norm, a learnt parameter or a kind other than LIF; at T <= 4 they would fit, but twice as many warps run with
    half as many. Beyond that 2 with a learnt width, whose slopes take much arithmetic, and for CLIF beyond 8 steps.
    More would take all registers or spill (profiling/LOG.md).
    """
    widest, steps = vector_width(x), x.shape[0]
    learns = out.parameters is not None
    if neuron.kind == "lif" and not learns and not neuron.has_norm:
        return widest
    if steps > 8 and neuron.kind == "clif":
        return 2
    if steps > 4 and learns and isinstance(neuron.width, torch.Tensor):
        return 2
    return min(widest, 4)


def _form(value: float | torch.Tensor) -> str:
    if isinstance(value, torch.Tensor):
        return "scalar" if value.numel() == 1 else "channel"
    return "float"


def _compiled(neuron: Neuron, back: bool) -> tuple[Constants, dict[str, Any]]:
    """A neuron's constants as a kernel takes them, and what it is compiled for."""
    given = *neuron[:_OWN], neuron.eps, neuron.bn_scale, back
    return (_of_record if _learns(neuron) else _remembered)(*given)


def _apart(neuron: Neuron) -> tuple[Sequence[Any], Sequence[Any]]:
    """What launches depend on: constants, and tensors, whose number of values is a constant."""
    own = own_surrogate(neuron.shape)
    functions = None if own is None else (own.slope.fn, own.primitive.fn)  # type: ignore[attr-defined]
    constants = *neuron[:_OWN], functions, neuron.eps, neuron.bn_scale
    if not _learns(neuron):
        return constants, neuron.norm
    learnt = [value for value in neuron.parameters if isinstance(value, torch.Tensor)]
    sizes = [(v.numel(),) if isinstance(v, torch.Tensor) else v for v in constants]
    return sizes, (*neuron.norm, *learnt)


def _learns(neuron: Neuron) -> bool:
    """Whether a constant is a tensor."""
    kinds = [*map(type, neuron.parameters)]
    return torch.Tensor in kinds or torch.nn.Parameter in kinds


_OWN = Neuron._fields.index(NORM[0])
_fields = attrgetter(*Gradients.__slots__)


def _of_record(*given: Any) -> tuple[Constants, dict[str, Any]]:
    *fields, eps, bn_scale, back = given
    neuron = Neuron(*fields)
    parameters = [p if isinstance(p, torch.Tensor) else float(p) for p in neuron.parameters]
    decay, threshold, width, gain, rho, beta = parameters
    adapts = neuron.kind == "alif"
    constants = Constants(
        decay, None if isinstance(decay, torch.Tensor) else 1.0 - decay, gain, threshold,
        rho if adapts or neuron.kind == "cuba" else None,
        1.0 - rho if adapts and not isinstance(rho, torch.Tensor) else None, beta if adapts else None,
        float(neuron.v_reset), float(neuron.v_start),
        float(neuron.height) if back else None, width if back else None, None, float(eps), float(bn_scale),
    )  # fmt: skip
    rules = Rules(
        neuron.kind, neuron.reset, neuron.leaks_to_reset, neuron.detach_reset, neuron.shape, neuron.levels, neuron.has_m
    )  # fmt: skip
    return constants, dict(FORMS=Forms(*map(_form, parameters)), RULES=rules)


_remembered = functools.lru_cache(maxsize=256)(_of_record)
"""Of a record without tensors, as most have."""


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """Fill what ``out`` holds tensors for."""
    constants, learnt = _apart(neuron)
    *moved, momentum = (None, None, None) if running is None else running
    repeat(
        _forward, (inputs, neuron, out, measures, running), (*constants, measures, momentum),
        (*inputs, *out, *moved, *learnt),
    )  # fmt: skip


def _forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    x, T = inputs.x, inputs.x.shape[0]
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    tiles = tiling(x, neuron.per_channel, vector_width(x))
    given, compiled = _compiled(neuron, back=False)
    window = Window(T, chunk_length(T, neuron.holds_more), 2 if neuron.has_norm else 1)
    launch(
        fire_kernel, (tiles.row_tiles * tiles.lanes,), x, inputs, Norm(*neuron.norm), out, given,
        WINDOW=window, **tiles.geometry, **compiled,
    )  # fmt: skip


def backward(
    upstream: Upstream,
    inputs: Inputs,
    saved: torch.Tensor | None,
    neuron: Neuron,
    count: float,
    sums: torch.Tensor | None,
    out: Gradients,
) -> None:
    """Fill what ``out`` holds tensors for."""
    constants, learnt = _apart(neuron)
    repeat(
        _backward, (upstream, inputs, saved, neuron, count, sums, out), (*constants, count),
        (*inputs, *upstream, saved, sums, *_fields(out), *learnt),
    )  # fmt: skip


def _backward(
    upstream: Upstream,
    inputs: Inputs,
    saved: torch.Tensor | None,
    neuron: Neuron,
    count: float,
    sums: torch.Tensor | None,
    out: Gradients,
) -> None:
    given = (upstream, inputs, saved, neuron, count)
    if out.dy is None or count == 0 or sums is not None:
        return _walk_back(*given, sums, out)
    first, dy = replace(out, dy=None), out.dy
    _walk_back(*given, None, first)
    if out.dx is None:  # replaying once more reads less than storing and reading dL/dx
        return _walk_back(*given, out.sums, Gradients(dy=dy))
    norm_backward(out.dx, inputs.x, neuron, out.sums, count, dy)


def _walk_back(
    upstream: Upstream,
    inputs: Inputs,
    saved: torch.Tensor | None,
    neuron: Neuron,
    count: float,
    sums: torch.Tensor | None,
    out: Gradients,
) -> None:
    """One launch, and one small sum for each kind of partial."""
    x, T, rows = inputs.x, inputs.x.shape[0], neuron.rows
    tiles = tiling(x, neuron.per_channel, _walk_width(x, neuron, out))
    # A norm's constants, and sums, are worth fetching and leaving once for many tiles. At T <= 4 up to 8 programs run
    # at once on a processor, beyond that 2, 3, 4 or 6: these are whole waves.
    walking = neuron.has_norm or out.parameters is not None
    waves = (2 * WALKS if T <= 4 else WALKS) * processors(x.device)
    programs = tiles.programs(waves) if walking else tiles.row_tiles
    launched, every_tile = programs * tiles.lanes, tiles.row_tiles * tiles.lanes
    one = (
        neuron.parameter_size == 1
    )  # a program leaves one sum of each parameter, or one per channel
    partial_parameters = None
    if out.parameters is not None:
        partial_parameters = grouped(x, launched, rows) if one else tiles.partial(x, rows, programs)
    partial = Partial(
        tiles.partial(x, 2, programs) if out.sums is not None else None,
        partial_parameters,
        grouped(x, every_tile, T) if out.step_gain is not None else None,
        grouped(x, every_tile, T * len(PROBE_FIELDS)) if out.probe is not None else None,
    )
    # Left alone, ptxas holds a long replay to 168 registers, for a third program on a processor, and spills for it.
    chunk = chunk_length(T, neuron.holds_more)
    most = 255 if out.dy is not None and chunk < T and not torch.version.hip else None
    # A gradient of the current is read ahead too: four steps of both would spill in a long chunk. So would two steps of
    # a neuron alone in float32, or where the slope takes most registers.
    ahead = 4 if neuron.has_norm and (upstream.current is None or chunk <= 10) else 2
    costly = x.element_size() == 4 or neuron.shape == "triangle"
    if not neuron.has_norm and costly and chunk > 12:
        ahead = 1
    # A replay stores nothing, so that its loads need no queue; but ptxas moves none over CLIF's exponentials and few
    # over I-LIF's divisions.
    replay_ahead = chunk if neuron.kind in ("clif", "ilif") else 0
    # Behind batch norm a program walks many tiles: meanwhile the next one is copied into shared memory, where it fits.
    read = sum([tensor is not None for tensor in (x, inputs.residual, *upstream)])
    copied = read * T * tiles.block_r * tiles.block_l * x.element_size()
    stages = 1
    if neuron.has_norm and neuron.kind == "lif" and chunk == T and copied <= SHARED:
        stages, ahead = 2, 1
    given, compiled = _compiled(neuron, back=True)
    own = own_surrogate(neuron.shape)
    launch(
        walk_kernel, (launched,), x,
        upstream, inputs, saved, Norm(*neuron.norm), sums, Written(out.dx, out.dy, out.v_init, out.m_init), partial,
        given, float(count), programs=programs, **tiles.geometry, **compiled,
        WINDOW=Window(T, chunk, ahead, replay_ahead), ROWS=rows, PER_CHANNEL=not one, STAGES=stages,
        OWN_SLOPE=None if own is None else own.slope, OWN_AREA=None if own is None else own.primitive, maxnreg=most,
    )  # fmt: skip
    if partial.sums is not None and out.sums is not None:
        tiles.join(partial.sums, out.sums)
    if partial.parameters is not None and out.parameters is not None:
        if one:
            join_groups(partial.parameters, out.parameters, launched)
        else:
            tiles.join(partial.parameters, out.parameters)
    if partial.step_gain is not None and out.step_gain is not None:
        join_groups(partial.step_gain, out.step_gain, every_tile)
    if partial.probe is not None and out.probe is not None:
        largest = PROBE_FIELDS.index("grad_input_max")
        join_groups(partial.probe, out.probe, every_tile, len(PROBE_FIELDS), largest)
