"""The neuron in Triton: one kernel that fires, one that walks back, and their launches. Steps: triton_step; tiles:
triton_tiles.

Bytes per element and step, e per element of the I/O dtype: fire 2e; walk back 3e, or 2e when it only sums; replaying
the states costs arithmetic, which is free here. The membrane's is never contracted into fused multiply-adds
(``enable_fp_fusion=False``), so forward and replay agree with the reference bit for bit.
AHEAD: so many steps are read before the step at work stores. The numbers are those that keep most bytes under way in a
processor without a program fewer on it (``profiling/run.py compiled``, profiling/LOG.md).
Windows longer than a chunk keep the float32 states between chunks: 8 / CHUNK bytes more for each.

A pointer is None for what a call does not have or want, FORMS and RULES are constants; the kernel is then compiled
without what it does not need.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..arguments import PROBE_FIELDS
from ..layout import chunk_length
from ..neuron import Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..surrogate import REACH, own_surrogate
from ..triton_import import tl, triton
from .triton_norm import (
    Norm,
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
    gate,
    of_tile,
    settle,
    spike,
    step_back,
)
from .triton_tiles import (
    GROUP,
    WALKS,
    WARPS,
    blocks,
    elements,
    grouped,
    in_group,
    join_groups,
    over_owned,
    own_tile,
    partial_place,
    processors,
    read_ahead,
    step_size,
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
def _current(x, residual, step_gain_ptr, t, affine, T: tl.constexpr, NORM: tl.constexpr):
    """The neuron's input current: the same operations in the same order in every kernel."""
    current = x.to(tl.float32)
    if NORM:
        current = (current - affine.mean) * affine.scale + affine.bias
        if step_gain_ptr is not None:
            current = tl.load(step_gain_ptr + t, mask=t < T, other=0.0) * current
    if residual is not None:
        current = current + residual.to(tl.float32)
    return current


@triton.jit
def _visit(
    queues, pointers, n: tl.constexpr, k, offs, inside, step, T: tl.constexpr, CHUNK: tl.constexpr, BACK: tl.constexpr
):  # fmt: skip
    """``read_ahead`` of three tensors, some of them None."""
    return (
        read_ahead(queues[0], pointers[0], n, k, offs, inside, step, T, CHUNK, BACK),
        read_ahead(queues[1], pointers[1], n, k, offs, inside, step, T, CHUNK, BACK),
        read_ahead(queues[2], pointers[2], n, k, offs, inside, step, T, CHUNK, BACK),
    )


@triton.jit
def fire_kernel(
    inputs,  # Inputs
    norm,  # Norm
    out,  # Outputs
    given,  # Constants
    R,
    C,
    units,
    S,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    FORMS: tl.constexpr,
    RULES: tl.constexpr,
):
    L = units * ALIGN
    row, column, channel = own_tile(tl.program_id(0), C, L, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = elements(
        row, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    step = step_size(R, C, L, BY_COLUMN)
    NORM: tl.constexpr = norm.mean is not None
    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    HAS_M: tl.constexpr = RULES.kind == "clif" or RULES.kind == "alif"
    c = of_tile(given, channels, valid, FORMS)
    affine = norm_constants(norm, c.eps, c.bn_scale, channels, valid)
    v = tl.full([BLOCK_R, BLOCK_L], given.v_start, tl.float32)
    m = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    if inputs.v_init is not None:
        v = tl.load(inputs.v_init + offs, mask=inside, other=0.0)
    if inputs.m_init is not None:
        m = tl.load(inputs.m_init + offs, mask=inside, other=0.0)
    read = (inputs.x, inputs.residual, inputs.spike_add)
    for chunk in range(CHUNKS):
        k = tl.cast(chunk, tl.int32)
        queues = ((), (), ())
        for n in tl.static_range(AHEAD):
            queues = _visit(queues, read, n, k, offs, inside, step, T, CHUNK, False)
        for j in tl.static_range(CHUNK):
            queues = _visit(queues, read, j + AHEAD, k, offs, inside, step, T, CHUNK, False)
            t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
            residual = None
            if inputs.residual is not None:
                residual = queues[1][j]
            current = _current(queues[0][j], residual, norm.step_gain, t, affine, T, NORM)
            if out.current is not None:
                tl.store(out.current + at, current.to(out.current.dtype.element_ty), mask=here)
            h = charge(v, current, c, RULES)
            s = spike(h, m, c, RULES)
            emitted = s
            if inputs.spike_add is not None:
                emitted = s + queues[2][j].to(tl.float32)
            tl.store(out.spikes + at, emitted.to(out.spikes.dtype.element_ty), mask=here)
            v_after, m_after = settle(h, m, s, gate(h, c, RULES), c, RULES)
            if out.trace is not None:
                tl.store(out.trace + at, v_after, mask=here)
            if T % CHUNK != 0:
                v_after = tl.where(t < T, v_after, v)
                m_after = tl.where(t < T, m_after, m)
            v = v_after
            m = m_after
        if out.saved is not None:
            kept = where_below(inside, k, CHUNKS - 1)
            if HAS_M:
                tl.store(out.saved + 2 * k * step + offs, v, mask=kept)
                tl.store(out.saved + (2 * k + 1) * step + offs, m, mask=kept)
            else:
                tl.store(out.saved + k * step + offs, v, mask=kept)
    if out.v_last is not None:
        tl.store(out.v_last + offs, v, mask=inside)
    if out.m_last is not None:
        tl.store(out.m_last + offs, m, mask=inside)


@triton.jit
def _start_of_chunk(
    k, v_start, inputs, saved_ptr, offs, inside, step, CHUNKS: tl.constexpr, HAS_M: tl.constexpr
):
    """Membrane and second state before chunk k: the given ones, or those that the forward pass kept."""
    v = tl.full(offs.shape, v_start, tl.float32)
    m = tl.zeros(offs.shape, tl.float32)
    first_chunk = where_below(inside, k, 1)
    if inputs.v_init is not None:
        v = tl.load(inputs.v_init + offs, mask=first_chunk, other=0.0)
    if inputs.m_init is not None:
        m = tl.load(inputs.m_init + offs, mask=first_chunk, other=0.0)
    if CHUNKS > 1:
        later_chunk = where_below(inside, -k, 0)
        STATES: tl.constexpr = 2 if HAS_M else 1
        own_ptr = saved_ptr + STATES * (k - 1) * step + offs
        v = tl.where(k == 0, v, tl.load(own_ptr, mask=later_chunk, other=0.0))
        if HAS_M:
            m = tl.where(k == 0, m, tl.load(own_ptr + step, mask=later_chunk, other=0.0))
    return v, m


@triton.jit
def _replay(
    v, m, k, inputs, norm, affine, c, offs, inside, step,
    T: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr, RULES: tl.constexpr,
):  # fmt: skip
    """Forward through a chunk again. Of each step: h, m before it, what its gate kept, x. What of it the walk back
    needs stays in registers."""
    potentials = ()
    seconds = ()
    gates = ()
    queues = ((), (), ())
    asked = (inputs.x, inputs.residual, None)
    for n in tl.static_range(AHEAD):
        queues = _visit(queues, asked, n, k, offs, inside, step, T, CHUNK, False)
    for j in tl.static_range(CHUNK):
        queues = _visit(queues, asked, j + AHEAD, k, offs, inside, step, T, CHUNK, False)
        t, _, _ = time_step(k, j, offs, inside, step, T, CHUNK)
        residual = None
        if inputs.residual is not None:
            residual = queues[1][j]
        current = _current(
            queues[0][j], residual, norm.step_gain, t, affine, T, norm.mean is not None
        )
        h = charge(v, current, c, RULES)
        kept = gate(h, c, RULES)
        potentials = potentials + (h,)  # type: ignore[assignment]
        seconds = seconds + (m,)  # type: ignore[assignment]
        gates = gates + (kept,)  # type: ignore[assignment]
        v, m = settle(h, m, spike(h, m, c, RULES), kept, c, RULES)
    return potentials, seconds, gates, queues[0]


@triton.jit
def _observe(share_ptr, here, kept, grad_s, dx, carry, decay, jump, unit, s, REACH: tl.constexpr):
    """This tile's share of one step of a probe, whose fields are ``GROUP`` apart."""
    counted = tl.where(here, 1.0, 0.0)
    finite = tl.abs(dx) < float("inf")
    tl.store(share_ptr + GRAD_SPIKE_SQ * GROUP, total(counted * grad_s * grad_s), mask=kept)
    tl.store(share_ptr + GRAD_INPUT_SQ * GROUP, total(tl.where(here, dx * dx, 0.0)), mask=kept)
    tl.store(
        share_ptr + GRAD_CARRY_SQ * GROUP, total(tl.where(here, carry * carry, 0.0)), mask=kept
    )
    tl.store(
        share_ptr + TIME_FACTOR * GROUP, total(tl.where(here, tl.abs(decay * jump), 0.0)), mask=kept
    )
    tl.store(
        share_ptr + OUTSIDE * GROUP, total(tl.where(here & (unit < REACH), 1.0, 0.0)), mask=kept
    )
    tl.store(share_ptr + SPIKES * GROUP, total(tl.where(here, s, 0.0)), mask=kept)
    largest = tl.max(tl.max(tl.where(here & finite, tl.abs(dx), 0.0), axis=1), axis=0)
    tl.store(share_ptr + GRAD_INPUT_MAX * GROUP, largest, mask=kept)
    tl.store(
        share_ptr + NONFINITE * GROUP, total(tl.where(here & (finite == 0), 1.0, 0.0)), mask=kept
    )


@triton.jit
def _learn(
    sums, h, m, unit, v_before, by_h, parts, current, here, inverse_width, c,
    RULES: tl.constexpr, FORMS: tl.constexpr, OWN_AREA: tl.constexpr,
):  # fmt: skip
    """The sums of the gradients by ``Forms``, with this step's. Those of floats stay as they are."""
    decay, threshold, width, gain, rho, beta = sums
    through, by_decay, by_threshold, by_rho, by_beta = parts
    if RULES.reset == "delayed_soft":
        by_threshold = by_threshold - tl.where(v_before >= c.threshold, by_h, 0.0)
    if FORMS.decay != "float":
        if RULES.leaks_to_reset:
            v_before = v_before - c.v_reset
        if RULES.reset == "delayed_hard":
            v_before = tl.where(v_before >= c.threshold, 0.0, v_before)
        share = by_h * v_before
        if RULES.kind == "clif":
            share = share + by_decay
        decay += tl.where(here, share, 0.0)
    if FORMS.threshold != "float":
        threshold += tl.where(here, by_threshold, 0.0)
    if FORMS.width != "float":
        width += tl.where(
            here, by_width(h, m, unit, through, inverse_width, c, RULES, OWN_AREA), 0.0
        )
    if FORMS.gain != "float":
        gain += tl.where(here, by_h * current, 0.0)
    if FORMS.rho != "float":
        rho += tl.where(here, by_rho, 0.0)
    if FORMS.beta != "float":
        beta += tl.where(here, by_beta, 0.0)
    return decay, threshold, width, gain, rho, beta


@triton.jit
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
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    REPLAY_AHEAD: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    FORMS: tl.constexpr,
    RULES: tl.constexpr,
    ROWS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    REACH: tl.constexpr,
    OWN_SLOPE: tl.constexpr,
    OWN_AREA: tl.constexpr,
):
    L = units * ALIGN
    first, column, channel = own_tile(tl.program_id(0), C, L, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = elements(
        first, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    step = step_size(R, C, L, BY_COLUMN)
    NORM: tl.constexpr = norm.mean is not None
    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    HAS_M: tl.constexpr = RULES.kind == "clif" or RULES.kind == "alif"
    c = of_tile(given, channels, valid, FORMS)
    inverse_width = 1.0 / c.width
    affine = norm_constants(norm, c.eps, c.bn_scale, channels, valid)
    if sums_ptr is not None:
        mean_dz, mean_dz_xhat = channel_means(sums_ptr, C, count, channels, valid)
    zero = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    sum_dz = zero
    sum_dz_xhat = zero
    learnt = (zero, zero, zero, zero, zero, zero)
    columns = blocks(L, BLOCK_L)
    asked = (upstream.spikes, upstream.current, upstream.trace)
    for row in range(first, blocks(R, BLOCK_R), programs):
        offs, inside, channels, valid = elements(
            row, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
        )
        if BY_COLUMN:
            tile = row * columns + column
        else:
            tile = (row * C + channel) * columns + column
        by_v = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        by_m = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        if upstream.v_last is not None:
            by_v = tl.load(upstream.v_last + offs, mask=inside, other=0.0)
        if upstream.m_last is not None:
            by_m = tl.load(upstream.m_last + offs, mask=inside, other=0.0)
        for back in range(CHUNKS):
            k = tl.cast(CHUNKS - 1 - back, tl.int32)
            start, m_start = _start_of_chunk(
                k, given.v_start, inputs, saved_ptr, offs, inside, step, CHUNKS, HAS_M
            )
            potentials, seconds, gates, read = _replay(
                start,
                m_start,
                k,
                inputs,
                norm,
                affine,
                c,
                offs,
                inside,
                step,
                T,
                CHUNK,
                REPLAY_AHEAD,
                RULES,
            )
            queues = ((), (), ())
            for n in tl.static_range(AHEAD):
                queues = _visit(queues, asked, n, k, offs, inside, step, T, CHUNK, True)
            for j in tl.static_range(CHUNK - 1, -1, -1):
                queues = _visit(
                    queues, asked, CHUNK - 1 - j + AHEAD, k, offs, inside, step, T, CHUNK, True
                )
                t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
                h = potentials[j]
                m = seconds[j]
                grad_s = queues[0][CHUNK - 1 - j].to(tl.float32)
                if upstream.trace is not None:
                    by_v += queues[2][CHUNK - 1 - j]
                by_h, m_earlier, jump, unit, s, parts = step_back(
                    h, m, gates[j], grad_s, by_v, by_m, inverse_width, c, RULES, OWN_SLOPE
                )
                own = c.gain * by_h  # what comes through the neuron; a probe measures that alone
                dx = own
                if upstream.current is not None:
                    dx = own + queues[1][CHUNK - 1 - j].to(tl.float32)
                if out.dx is not None:
                    tl.store(out.dx + at, dx.to(out.dx.dtype.element_ty), mask=here)
                v_before = start
                if j > 0:
                    last = potentials[j - 1]
                    s_before = spike(last, seconds[j - 1], c, RULES)
                    v_before, _ = settle(last, seconds[j - 1], s_before, gates[j - 1], c, RULES)
                if partial.parameters is not None:
                    current = h
                    if (
                        FORMS.gain != "float"
                    ):  # read once more: held, it would take a register a step
                        x = tl.load(inputs.x + at, mask=here, other=0.0)
                        residual = None
                        if inputs.residual is not None:
                            residual = tl.load(inputs.residual + at, mask=here, other=0.0)
                        current = _current(x, residual, norm.step_gain, t, affine, T, NORM)
                    learnt = _learn(
                        learnt, h, m, unit, v_before, by_h, parts, current, here, inverse_width, c,
                        RULES, FORMS, OWN_AREA,
                    )  # fmt: skip
                if partial.probe is not None:
                    share_ptr = partial.probe + in_group(tile, T * PROBE_WIDTH)
                    share_ptr += t * PROBE_WIDTH * GROUP
                    _observe(
                        share_ptr, here, t < T, grad_s, own, by_v, c.decay, jump, unit, s, REACH
                    )
                if NORM:
                    xhat = (read[j].to(tl.float32) - affine.mean) * affine.rstd
                    if partial.step_gain is not None:
                        share_ptr = partial.step_gain + in_group(tile, T) + t * GROUP
                        share = total(
                            tl.where(here, dx * (xhat * affine.weight + affine.bias), 0.0)
                        )
                        tl.store(share_ptr, share, mask=t < T)
                    dz = dx
                    if norm.step_gain is not None:
                        dz = tl.load(norm.step_gain + t, mask=t < T, other=0.0) * dx
                    if partial.sums is not None:
                        if (
                            T % CHUNK != 0
                        ):  # beyond the window dz is no gradient; beyond the tensor it is 0
                            dz = tl.where(here, dz, 0.0)
                        sum_dz += dz
                        sum_dz_xhat = tl.fma(dz, xhat, sum_dz_xhat)
                    if out.dy is not None:
                        if sums_ptr is not None:
                            dz = tl.fma(-mean_dz_xhat, xhat, dz - mean_dz)
                        tl.store(
                            out.dy + at, (affine.scale * dz).to(out.dy.dtype.element_ty), mask=here
                        )
                earlier = c.decay * by_h
                if RULES.reset == "delayed_hard":
                    earlier = tl.where(v_before >= c.threshold, 0.0, earlier)
                if T % CHUNK != 0:
                    earlier = tl.where(t < T, earlier, by_v)
                    m_earlier = tl.where(t < T, m_earlier, by_m)
                by_v = earlier
                by_m = m_earlier
        if out.v_init is not None:
            tl.store(out.v_init + offs, by_v, mask=inside)
        if out.m_init is not None:
            tl.store(out.m_init + offs, by_m, mask=inside)

    # One partial sum per program and channel; the host joins them in a fixed order.
    place, keep, plane = partial_place(first, column, channel, programs, C, L, BLOCK_L, BY_COLUMN)
    if partial.sums is not None:
        at = partial.sums + place
        tl.store(at, over_owned(sum_dz, BY_COLUMN), mask=keep)
        tl.store(at + plane, over_owned(sum_dz_xhat, BY_COLUMN), mask=keep)
    if partial.parameters is not None:
        for i in tl.static_range(ROWS):
            if PER_CHANNEL:
                at = partial.parameters + place + i * plane
                tl.store(at, over_owned(learnt[i], BY_COLUMN), mask=keep)
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
    parameters = [p if isinstance(p, torch.Tensor) else float(p) for p in neuron.parameters]
    decay, threshold, width, gain, rho, beta = parameters
    adapts = neuron.kind == "alif"
    given = Constants(
        decay, None if isinstance(decay, torch.Tensor) else 1.0 - decay, gain, threshold,
        rho if adapts else None, beta if adapts else None, float(neuron.v_reset), float(neuron.v_start),
        float(neuron.height) if back else None, width if back else None, float(neuron.eps), float(neuron.bn_scale),
    )  # fmt: skip
    rules = Rules(
        neuron.kind, neuron.reset, neuron.leaks_to_reset, neuron.detach_reset, neuron.shape, neuron.levels
    )  # fmt: skip
    return given, dict(FORMS=Forms(*map(_form, parameters)), RULES=rules)


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """Fill what ``out`` holds tensors for."""
    x, T = inputs.x, inputs.x.shape[0]
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    tiles = tiling(x, neuron.per_channel, vector_width(x))
    given, compiled = _compiled(neuron, back=False)
    with torch.cuda.device_of(x):
        fire_kernel[(tiles.row_tiles * tiles.lanes,)](
            inputs, Norm(*neuron.norm), out, given,
            T=T, CHUNK=chunk_length(T, neuron.holds_more), AHEAD=2 if neuron.has_norm else 1,
            **tiles.geometry, **compiled, num_warps=WARPS, enable_fp_fusion=False,
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
    registers = (
        {"maxnreg": 255} if out.dy is not None and chunk < T and not torch.version.hip else {}
    )
    # A gradient of the current is read ahead too: four steps of both would spill in a long chunk. So would two steps of
    # a neuron alone in float32, or where the slope takes most registers.
    ahead = 4 if neuron.has_norm and (upstream.current is None or chunk <= 10) else 2
    costly = x.element_size() == 4 or neuron.shape == "triangle"
    if not neuron.has_norm and costly and chunk > 12:
        ahead = 1
    # A replay stores nothing, so that its loads need no queue; but ptxas moves none over CLIF's exponentials.
    replay_ahead = chunk if neuron.kind == "clif" else 0
    given, compiled = _compiled(neuron, back=True)
    own = own_surrogate(neuron.shape)
    with torch.cuda.device_of(x):
        walk_kernel[(launched,)](
            upstream, inputs, saved, Norm(*neuron.norm), sums, Written(out.dx, out.dy, out.v_init, out.m_init), partial,
            given, float(count),
            T=T, CHUNK=chunk, AHEAD=ahead, REPLAY_AHEAD=replay_ahead, programs=programs, **tiles.geometry, **compiled,
            ROWS=rows, PER_CHANNEL=not one, REACH=REACH,
            OWN_SLOPE=None if own is None else own.slope, OWN_AREA=None if own is None else own.primitive,
            num_warps=WARPS, enable_fp_fusion=False, **registers,
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
