"""Neurons beyond LIF in Triton: one kernel that fires, one that walks back, for all of ``state_neuron.KINDS``.

As in triton_neuron: 2e bytes per element and step forward, 3e back, membranes and second states in float32 registers,
replayed on the way back, arithmetic in the order of the definition. Windows longer than a chunk keep two float32
states per chunk.
"""

from __future__ import annotations

import torch

from ..layout import chunk_length
from ..state_neuron import StateNeuron
from ..surrogate import own_slope, phi
from ..triton_import import tl, triton
from .triton_neuron import _kind, _parameter
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
    step_size,
    tiling,
    time_step,
    total,
    vector_width,
    where_below,
)

_FLOATS = ["decay", "leak", "threshold", "rho", "beta", "gain", "v_reset"]


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _level(z, LEVELS: tl.constexpr):
    """round(clamp(z, 0, LEVELS)), ties to even: adding 1.5 * 2^23 leaves no bits behind the point. A NaN stays one."""
    top = tl.minimum(z, LEVELS * 1.0, propagate_nan=tl.PropagateNan.ALL)
    clamped = tl.maximum(top, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return (clamped + 12582912.0) - 12582912.0


@triton.jit
def _charge(v, x, decay, leak, threshold, gain, v_reset, RESET: tl.constexpr, LEAKS: tl.constexpr):
    """h of a step from the membrane before it; a delayed reset comes first."""
    if LEAKS:
        h = v + gain * x - leak * (v - v_reset)
    elif RESET == "delayed soft":
        h = decay * v + gain * x - tl.where(v >= threshold, threshold, 0.0)
    elif RESET == "delayed hard":
        h = decay * tl.where(v >= threshold, 0.0, v) + gain * x
    else:
        h = decay * v + gain * x
    return h


@triton.jit
def _settle(
    h, m, leak, threshold, rho, beta, v_reset, KIND: tl.constexpr, RESET: tl.constexpr, LEVELS: tl.constexpr
):  # fmt: skip
    """(spikes, membrane, second state) after a step with the potential h and the second state m before it."""
    if KIND == "integer":
        s = _level(tl.div_rn(h, threshold + tl.zeros(h.shape, tl.float32)), LEVELS)
        v = h - threshold * s
    elif KIND == "complementary":
        s = tl.where(h >= threshold, 1.0, 0.0)
        m = m * _sigmoid(leak * h) + s
        v = h - s * (threshold + _sigmoid(m))
    else:
        level = threshold
        if KIND == "adaptive":
            level = threshold + beta * m
        fired = h >= level
        s = tl.where(fired, 1.0, 0.0)
        if KIND == "adaptive":
            m = rho * m + (1.0 - rho) * s
        v = h
        if RESET == "soft":
            v = h - level * s
        if RESET == "hard":
            v = tl.where(fired, v_reset, h)
    return s, v, m


@triton.jit
def _back(
    h, m, grad_s, by_v, by_m, leak, threshold, width, inverse_width, height, rho, beta, v_reset,
    KIND: tl.constexpr, RESET: tl.constexpr, DETACH: tl.constexpr, SHAPE: tl.constexpr, LEVELS: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """Gradients (h, m before, decay through the second state, threshold, rho, beta) of one step.

    ``by_v`` and ``by_m`` are dL/dv and dL/dm after it.
    """
    s, _, after = _settle(h, m, leak, threshold, rho, beta, v_reset, KIND, RESET, LEVELS)
    zero = tl.zeros(h.shape, tl.float32)
    before, by_decay, by_rho, by_beta = zero, zero, zero, zero
    if KIND == "integer":
        z = tl.div_rn(h, threshold + zero)
        slope = tl.where((z >= 0.0) & (z <= LEVELS * 1.0), 1.0 / threshold, 0.0)
        through = grad_s
        if not DETACH:
            through = grad_s - by_v * threshold
        by_h = through * slope + by_v
        by_threshold = -(through * slope * z) - by_v * s
    else:
        level = threshold
        if KIND == "adaptive":
            level = threshold + beta * m
        u = h - level
        if OWN is not None:
            slope = height * OWN(u * inverse_width)
        elif SHAPE == "rectangle":
            slope = tl.where(tl.abs(u) < width, height, 0.0)
        else:
            slope = height * phi(u * inverse_width, SHAPE)
        if KIND == "complementary":
            g = _sigmoid(after)
            by_m = by_m - by_v * s * g * (1.0 - g)
            through = grad_s + by_m
            if not DETACH:
                through = through - by_v * (threshold + g)
            q = _sigmoid(leak * h)
            bend = by_m * m * q * (1.0 - q)
            by_h = through * slope + by_v + bend * leak
            by_decay = -bend * h
            before = by_m * q
            by_threshold = -through * slope - by_v * s
        else:
            through = grad_s
            if KIND == "adaptive":
                through = grad_s + (1.0 - rho) * by_m
            kept = by_v
            by_threshold = zero
            if RESET == "soft":
                by_threshold = -by_v * s
                if not DETACH:
                    through = through - by_v * level
            if RESET == "hard":
                kept = by_v * (1.0 - s)
                if not DETACH:
                    through = through + by_v * (v_reset - h)
            by_h = through * slope + kept
            by_threshold = by_threshold - through * slope
            if KIND == "adaptive":
                before = rho * by_m + beta * by_threshold
                by_rho = by_m * (m - s)
                by_beta = by_threshold * m
    return by_h, before, by_decay, by_threshold, by_rho, by_beta


@triton.jit(do_not_specialize=_FLOATS)
def fire_states_kernel(
    x_ptr,  # [T, N]
    v_init_ptr,  # [N] float32
    m_init_ptr,  # [N] float32
    decay_ptr,  # () or [C], and so the next four
    threshold_ptr,
    rho_ptr,
    beta_ptr,
    gain_ptr,
    s_ptr,  # [T, N] out
    v_last_ptr,  # [N] out, float32
    m_last_ptr,  # [N] out, float32
    trace_ptr,  # [T, N] out, float32: the membrane after each step
    saved_ptr,  # [chunks - 1, 2, N] out, float32: both states between chunks
    decay,
    leak,
    threshold,
    rho,
    beta,
    gain,
    v_reset,
    v_start,
    R,
    C,
    units,
    S,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    KIND: tl.constexpr,
    RESET: tl.constexpr,
    LEVELS: tl.constexpr,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    RHO: tl.constexpr,
    BETA: tl.constexpr,
    GAIN: tl.constexpr,
    LEAKS: tl.constexpr,
):
    L = units * ALIGN
    row, column, channel = own_tile(tl.program_id(0), C, L, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = elements(
        row, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    step = step_size(R, C, L, BY_COLUMN)
    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    decays = _parameter(decay_ptr, decay, channels, valid, DECAY)
    thresholds = _parameter(threshold_ptr, threshold, channels, valid, THRESHOLD)
    rhos = _parameter(rho_ptr, rho, channels, valid, RHO)
    betas = _parameter(beta_ptr, beta, channels, valid, BETA)
    gains = _parameter(gain_ptr, gain, channels, valid, GAIN)
    leaks = leak
    if DECAY != "float":
        leaks = 1.0 - decays
    v = tl.full([BLOCK_R, BLOCK_L], v_start, tl.float32)
    m = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    if v_init_ptr is not None:
        v = tl.load(v_init_ptr + offs, mask=inside, other=0.0)
    if m_init_ptr is not None:
        m = tl.load(m_init_ptr + offs, mask=inside, other=0.0)
    for chunk in range(CHUNKS):
        k = tl.cast(chunk, tl.int32)
        for j in tl.static_range(CHUNK):
            t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
            x = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
            h = _charge(v, x, decays, leaks, thresholds, gains, v_reset, RESET, LEAKS)
            s, v_after, m_after = _settle(
                h, m, leaks, thresholds, rhos, betas, v_reset, KIND, RESET, LEVELS
            )
            tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=here)
            if trace_ptr is not None:
                tl.store(trace_ptr + at, v_after, mask=here)
            if T % CHUNK != 0:
                v_after = tl.where(t < T, v_after, v)
                m_after = tl.where(t < T, m_after, m)
            v = v_after
            m = m_after
        if saved_ptr is not None:
            keep = where_below(inside, k, CHUNKS - 1)
            tl.store(saved_ptr + 2 * k * step + offs, v, mask=keep)
            if KIND == "complementary" or KIND == "adaptive":
                tl.store(saved_ptr + (2 * k + 1) * step + offs, m, mask=keep)
    if v_last_ptr is not None:
        tl.store(v_last_ptr + offs, v, mask=inside)
        tl.store(m_last_ptr + offs, m, mask=inside)


@triton.jit(do_not_specialize=[*_FLOATS, "height", "width"])
def walk_states_kernel(
    grad_s_ptr,  # [T, N]
    x_ptr,  # [T, N]
    saved_ptr,  # [chunks - 1, 2, N] float32
    v_init_ptr,  # [N] float32
    m_init_ptr,  # [N] float32
    grad_v_ptr,  # [N] float32: dL/dv[T-1]
    grad_m_ptr,  # [N] float32: dL/dm[T-1]
    grad_trace_ptr,  # [T, N] float32
    decay_ptr,  # () or [C], and so the next four
    threshold_ptr,
    rho_ptr,
    beta_ptr,
    gain_ptr,
    dx_ptr,  # [T, N] out
    dv_init_ptr,  # [N] out, float32
    dm_init_ptr,  # [N] out, float32
    partial_ptr,  # [5, parts, L or C] or [groups, 5, GROUP] out, float32
    decay,
    leak,
    threshold,
    rho,
    beta,
    gain,
    v_reset,
    v_start,
    height,
    width,
    R,
    C,
    units,
    S,
    programs,  # row programs; each walks every programs-th row tile
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    KIND: tl.constexpr,
    RESET: tl.constexpr,
    DETACH: tl.constexpr,
    SHAPE: tl.constexpr,
    LEVELS: tl.constexpr,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    RHO: tl.constexpr,
    BETA: tl.constexpr,
    GAIN: tl.constexpr,
    LEAKS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    OWN: tl.constexpr,
):
    L = units * ALIGN
    first, column, channel = own_tile(tl.program_id(0), C, L, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = elements(
        first, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    step = step_size(R, C, L, BY_COLUMN)
    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    decays = _parameter(decay_ptr, decay, channels, valid, DECAY)
    thresholds = _parameter(threshold_ptr, threshold, channels, valid, THRESHOLD)
    rhos = _parameter(rho_ptr, rho, channels, valid, RHO)
    betas = _parameter(beta_ptr, beta, channels, valid, BETA)
    gains = _parameter(gain_ptr, gain, channels, valid, GAIN)
    leaks = leak
    if DECAY != "float":
        leaks = 1.0 - decays
    inverse_width = 1.0 / width
    zero = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    d_decay, d_threshold, d_rho, d_beta, d_gain = zero, zero, zero, zero, zero
    for row in range(first, blocks(R, BLOCK_R), programs):
        offs, inside, channels, valid = elements(
            row, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
        )
        by_v = zero
        by_m = zero
        if grad_v_ptr is not None:
            by_v = tl.load(grad_v_ptr + offs, mask=inside, other=0.0)
        if grad_m_ptr is not None:
            by_m = tl.load(grad_m_ptr + offs, mask=inside, other=0.0)
        for back in range(CHUNKS):
            k = tl.cast(CHUNKS - 1 - back, tl.int32)
            v = zero + v_start
            m = zero
            first_chunk = where_below(inside, k, 1)
            if v_init_ptr is not None:
                v = tl.load(v_init_ptr + offs, mask=first_chunk, other=0.0)
            if m_init_ptr is not None:
                m = tl.load(m_init_ptr + offs, mask=first_chunk, other=0.0)
            if CHUNKS > 1:
                later = where_below(inside, -k, 0)
                saved_v = tl.load(saved_ptr + (2 * k - 2) * step + offs, mask=later, other=0.0)
                saved_m = tl.load(saved_ptr + (2 * k - 1) * step + offs, mask=later, other=0.0)
                v = tl.where(k == 0, v, saved_v)
                m = tl.where(k == 0, m, saved_m)
            start = v

            # Forward through the chunk again: potentials and the second states before each step stay in registers.
            potentials = ()
            seconds = ()
            for j in tl.static_range(CHUNK):
                t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
                x = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
                h = _charge(v, x, decays, leaks, thresholds, gains, v_reset, RESET, LEAKS)
                potentials = potentials + (h,)  # type: ignore[assignment]
                seconds = seconds + (m,)  # type: ignore[assignment]
                _, v, m = _settle(
                    h, m, leaks, thresholds, rhos, betas, v_reset, KIND, RESET, LEVELS
                )

            for j in tl.static_range(CHUNK - 1, -1, -1):
                t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
                grad_s = tl.load(grad_s_ptr + at, mask=here, other=0.0).to(tl.float32)
                if grad_trace_ptr is not None:
                    by_v += tl.load(grad_trace_ptr + at, mask=here, other=0.0)
                by_h, before, by_decay, by_threshold, by_rho, by_beta = _back(
                    potentials[j], seconds[j], grad_s, by_v, by_m, leaks, thresholds, width, inverse_width, height,
                    rhos, betas, v_reset, KIND, RESET, DETACH, SHAPE, LEVELS, OWN,
                )  # fmt: skip
                tl.store(dx_ptr + at, (gains * by_h).to(dx_ptr.dtype.element_ty), mask=here)
                earlier = decays * by_h
                if partial_ptr is not None or RESET == "delayed hard":
                    v_before = start
                    if j > 0:
                        _, v_before, _ = _settle(
                            potentials[j - 1], seconds[j - 1], leaks, thresholds, rhos, betas, v_reset,
                            KIND, RESET, LEVELS,
                        )  # fmt: skip
                    if RESET == "delayed hard":
                        earlier = tl.where(v_before >= thresholds, 0.0, earlier)
                if partial_ptr is not None:
                    if RESET == "delayed soft":
                        by_threshold = by_threshold - tl.where(v_before >= thresholds, by_h, 0.0)
                    if RESET == "delayed hard":
                        v_before = tl.where(v_before >= thresholds, 0.0, v_before)
                    if LEAKS:
                        v_before = v_before - v_reset
                    if DECAY != "float":
                        d_decay += tl.where(here, by_h * v_before + by_decay, 0.0)
                    if THRESHOLD != "float":
                        d_threshold += tl.where(here, by_threshold, 0.0)
                    if RHO != "float":
                        d_rho += tl.where(here, by_rho, 0.0)
                    if BETA != "float":
                        d_beta += tl.where(here, by_beta, 0.0)
                    if GAIN != "float":  # x once more: held, it would take a register a step
                        again = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
                        d_gain += tl.where(here, by_h * again, 0.0)
                if T % CHUNK != 0:
                    earlier = tl.where(t < T, earlier, by_v)
                    before = tl.where(t < T, before, by_m)
                by_v = earlier
                by_m = before
        if dv_init_ptr is not None:
            tl.store(dv_init_ptr + offs, by_v, mask=inside)
        if dm_init_ptr is not None:
            tl.store(dm_init_ptr + offs, by_m, mask=inside)

    if partial_ptr is not None:
        if PER_CHANNEL:
            place, keep, plane = partial_place(
                first, column, channel, programs, C, L, BLOCK_L, BY_COLUMN
            )
            at = partial_ptr + place
            tl.store(at, over_owned(d_decay, BY_COLUMN), mask=keep)
            tl.store(at + plane, over_owned(d_threshold, BY_COLUMN), mask=keep)
            tl.store(at + 2 * plane, over_owned(d_rho, BY_COLUMN), mask=keep)
            tl.store(at + 3 * plane, over_owned(d_beta, BY_COLUMN), mask=keep)
            tl.store(at + 4 * plane, over_owned(d_gain, BY_COLUMN), mask=keep)
        else:
            at = partial_ptr + in_group(tl.program_id(0), 5)
            tl.store(at, total(d_decay))
            tl.store(at + GROUP, total(d_threshold))
            tl.store(at + 2 * GROUP, total(d_rho))
            tl.store(at + 3 * GROUP, total(d_beta))
            tl.store(at + 4 * GROUP, total(d_gain))


def _width(x: torch.Tensor, neuron: StateNeuron) -> int:
    """Elements a thread, which holds both states of a whole chunk: 4 at most beyond 4 steps, CLIF 2 beyond 8.

    More would spill.
    """
    widest, steps = vector_width(x), x.shape[0]
    if neuron.kind == "complementary" and steps > 8:
        return 2
    return widest if steps <= 4 else min(widest, 4)


def forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    neuron: StateNeuron,
    spikes: torch.Tensor,
    v_last: torch.Tensor | None,
    m_last: torch.Tensor | None,
    trace: torch.Tensor | None,
    saved: torch.Tensor,
) -> None:
    """Fill spikes, both last states and the states between chunks."""
    tiles = tiling(x, neuron.parameter_size > 1, vector_width(x))
    pointers, values, kinds = zip(*map(_kind, neuron.parameters), strict=True)
    with torch.cuda.device_of(x):
        fire_states_kernel[(tiles.row_tiles * tiles.lanes,)](
            x, v_init, m_init, *pointers, spikes, v_last, m_last, trace, saved if saved.numel() else None,
            values[0], 1.0 - values[0], *values[1:], neuron.v_reset, neuron.v_start,
            T=x.shape[0], CHUNK=chunk_length(x.shape[0], True),
            **tiles.geometry,
            KIND=neuron.kind, RESET=neuron.reset, LEVELS=neuron.levels,
            DECAY=kinds[0], THRESHOLD=kinds[1], RHO=kinds[2], BETA=kinds[3], GAIN=kinds[4],
            LEAKS=neuron.leaks_to_reset, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def backward(
    grad_s: torch.Tensor,
    grad_v: torch.Tensor | None,
    grad_m: torch.Tensor | None,
    grad_trace: torch.Tensor | None,
    x: torch.Tensor,
    saved: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    neuron: StateNeuron,
    dx: torch.Tensor,
    dv_init: torch.Tensor | None,
    dm_init: torch.Tensor | None,
    parameters: torch.Tensor | None,
) -> None:
    """Fill dx and what else is not None; ``parameters`` is [5, C or 1]."""
    T = x.shape[0]
    tiles = tiling(x, neuron.parameter_size > 1, _width(x, neuron))
    programs = tiles.row_tiles
    partial = None
    if parameters is not None:
        programs = tiles.programs(WALKS * processors(x.device))
        if neuron.parameter_size == 1:
            partial = grouped(x, programs * tiles.lanes, 5)
        else:
            partial = tiles.partial(x, 5, programs)
    pointers, values, kinds = zip(*map(_kind, neuron.parameters), strict=True)
    with torch.cuda.device_of(x):
        walk_states_kernel[(programs * tiles.lanes,)](
            grad_s, x, saved if saved.numel() else None, v_init, m_init, grad_v, grad_m, grad_trace, *pointers,
            dx, dv_init, dm_init, partial,
            values[0], 1.0 - values[0], *values[1:], neuron.v_reset, neuron.v_start, neuron.height, neuron.width,
            T=T, CHUNK=chunk_length(T, True),
            programs=programs, **tiles.geometry,
            KIND=neuron.kind, RESET=neuron.reset, DETACH=neuron.detach_reset, SHAPE=neuron.shape,
            LEVELS=neuron.levels, DECAY=kinds[0], THRESHOLD=kinds[1], RHO=kinds[2], BETA=kinds[3], GAIN=kinds[4],
            LEAKS=neuron.leaks_to_reset, PER_CHANNEL=neuron.parameter_size > 1, OWN=own_slope(neuron.shape),
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    if partial is not None and parameters is not None:
        if neuron.parameter_size == 1:
            join_groups(partial, parameters, programs * tiles.lanes)
        else:
            tiles.join(partial, parameters)
