"""The neuron in Triton: one kernel that fires, one that walks back, and their launches. Tiles: see triton_tiles.

Bytes per element and step, e per element of the I/O dtype: fire 2e; walk back 3e, or 2e when it only sums; replaying
the membrane costs arithmetic, which is free here. Arithmetic is float32. The membrane's is never contracted into fused
multiply-adds (``enable_fp_fusion=False``) and in the order of the reference, so forward and replay agree with it bit
for bit; the gradient's takes them where they are written out.
AHEAD: so many steps are read before the step at work stores. The numbers are those that keep most bytes under way in a
processor without a program fewer on it (``profiling/run.py compiled``, profiling/LOG.md).
Windows longer than a chunk keep one float32 membrane per chunk: 8 / CHUNK bytes more.

A pointer is None for what a call does not have or want; the kernel is then compiled without it.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..arguments import PROBE_FIELDS
from ..layout import chunk_length
from ..neuron import Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..surrogate import REACH, phi, primitive
from ..triton_import import tl, triton
from .triton_norm import channel_means, channel_statistics, norm_backward, norm_constants
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

_FLOATS = ["decay", "leak", "gain", "threshold", "v_reset", "v_start", "eps", "bn_scale"]

PROBE_WIDTH = tl.constexpr(len(PROBE_FIELDS))
GRAD_SPIKE_SQ = tl.constexpr(PROBE_FIELDS.index("grad_spike_sq"))
GRAD_INPUT_SQ = tl.constexpr(PROBE_FIELDS.index("grad_input_sq"))
GRAD_CARRY_SQ = tl.constexpr(PROBE_FIELDS.index("grad_carry_sq"))
TIME_FACTOR = tl.constexpr(PROBE_FIELDS.index("time_factor"))
OUTSIDE = tl.constexpr(PROBE_FIELDS.index("outside"))
SPIKES = tl.constexpr(PROBE_FIELDS.index("spikes"))
GRAD_INPUT_MAX = tl.constexpr(PROBE_FIELDS.index("grad_input_max"))
NONFINITE = tl.constexpr(PROBE_FIELDS.index("nonfinite"))


@triton.jit
def _parameter(ptr, value, channels, valid, KIND: tl.constexpr):
    """A parameter that is a float, a tensor of one element (scalar), or one value per channel."""
    if KIND == "float":
        result = value
    elif KIND == "scalar":
        result = tl.load(ptr)
    else:
        result = tl.load(ptr + channels, mask=valid, other=1.0)
    return result


@triton.jit
def _current(
    x, residual, step_gain_ptr, t, mean, scale, bias, T: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """The neuron's input current: the same operations in the same order in every kernel."""
    current = x.to(tl.float32)
    if NORM:
        current = (current - mean) * scale + bias
        if step_gain_ptr is not None:
            current = tl.load(step_gain_ptr + t, mask=t < T, other=0.0) * current
    if residual is not None:
        current = current + residual.to(tl.float32)
    return current


@triton.jit
def _charge(v, current, decay, leak, gain, v_reset, LEAKS_TO_RESET: tl.constexpr):
    if LEAKS_TO_RESET:
        h = v + gain * current - leak * (v - v_reset)
    else:
        h = decay * v + gain * current
    return h


@triton.jit
def _discharge(h, fired, threshold, v_reset, RESET: tl.constexpr):
    if RESET == "hard":
        v = tl.where(fired, v_reset, h)
    elif RESET == "soft":
        v = tl.where(fired, h - threshold, h)
    else:
        v = h
    return v


@triton.jit
def _step_back(
    h,
    fired,
    grad_s,
    carry,
    threshold,
    width,
    inverse_width,
    v_reset,
    height,
    RESET: tl.constexpr,
    DETACH: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """(dL/dh, dv/dh, phi, slope) of one step; ``carry`` is dL/dv of it."""
    u = h - threshold
    if SHAPE == "rectangle":
        unit = tl.where(tl.abs(u) < width, 1.0, 0.0)
    else:
        unit = phi(u * inverse_width, SHAPE)
    slope = height * unit
    if RESET == "hard":
        jump = tl.where(fired, 0.0, 1.0)
        if not DETACH:
            jump = jump + (v_reset - h) * slope
    else:
        jump = tl.full(h.shape, 1.0, tl.float32)
        if RESET == "soft" and not DETACH:
            jump = jump - threshold * slope
    return tl.fma(grad_s, slope, carry * jump), jump, unit, slope


@triton.jit
def _parts_of_reset(
    h, fired, grad_s, carry, threshold, v_reset, RESET: tl.constexpr, DETACH: tl.constexpr
):
    """(dL/ds with what comes through the reset, dv/dthreshold apart from it)."""
    through_s = grad_s
    through_v = tl.zeros(h.shape, tl.float32)
    if RESET == "soft":
        through_v = tl.where(fired, -1.0, 0.0)
        if not DETACH:
            through_s = grad_s - carry * threshold
    if RESET == "hard" and not DETACH:
        through_s = grad_s + carry * (v_reset - h)
    return through_s, through_v


@triton.jit
def _observe(
    share_ptr, here, kept, grad_s, dx, carry, decay, jump, unit, fired, REACH: tl.constexpr
):  # fmt: skip
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
    tl.store(share_ptr + SPIKES * GROUP, total(tl.where(here & fired, 1.0, 0.0)), mask=kept)
    largest = tl.max(tl.max(tl.where(here & finite, tl.abs(dx), 0.0), axis=1), axis=0)
    tl.store(share_ptr + GRAD_INPUT_MAX * GROUP, largest, mask=kept)
    tl.store(
        share_ptr + NONFINITE * GROUP, total(tl.where(here & (finite == 0), 1.0, 0.0)), mask=kept
    )


@triton.jit(do_not_specialize=_FLOATS)
def fire_kernel(
    x_ptr,  # [T, N]
    residual_ptr,  # [T, N]
    spike_add_ptr,  # [T, N]
    v_init_ptr,  # [N] float32 or the dtype of x
    decay_ptr,  # () or [C]
    threshold_ptr,  # () or [C]
    mean_ptr,  # [C]
    var_ptr,  # [C]
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    step_gain_ptr,  # [T]
    s_ptr,  # [T, N] out
    v_last_ptr,  # [N] out, float32
    saved_ptr,  # [chunks - 1, N] out, float32: the membrane between chunks
    current_ptr,  # [T, N] out
    decay,
    leak,
    gain,
    threshold,
    v_reset,
    v_start,
    eps,
    bn_scale,
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
    RESET: tl.constexpr,
    LEAKS_TO_RESET: tl.constexpr,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
):
    L = units * ALIGN
    row, column, channel = own_tile(tl.program_id(0), C, L, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = elements(
        row, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    step = step_size(R, C, L, BY_COLUMN)
    NORM: tl.constexpr = mean_ptr is not None
    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    decays = _parameter(decay_ptr, decay, channels, valid, DECAY)
    thresholds = _parameter(threshold_ptr, threshold, channels, valid, THRESHOLD)
    leaks = leak
    if DECAY != "float":
        leaks = 1.0 - decays
    mean, rstd, affine, bias = norm_constants(
        mean_ptr, var_ptr, weight_ptr, bias_ptr, eps, bn_scale, channels, valid
    )
    scale = affine * rstd
    v = tl.full([BLOCK_R, BLOCK_L], v_start, tl.float32)
    if v_init_ptr is not None:
        v = tl.load(v_init_ptr + offs, mask=inside, other=0.0).to(tl.float32)
    for chunk in range(CHUNKS):
        k = tl.cast(chunk, tl.int32)
        inputs = ()
        residuals = ()
        additions = ()
        for n in tl.static_range(AHEAD):
            inputs = read_ahead(inputs, x_ptr, n, k, offs, inside, step, T, CHUNK, False)
            residuals = read_ahead(
                residuals, residual_ptr, n, k, offs, inside, step, T, CHUNK, False
            )
            additions = read_ahead(
                additions, spike_add_ptr, n, k, offs, inside, step, T, CHUNK, False
            )
        for j in tl.static_range(CHUNK):
            inputs = read_ahead(inputs, x_ptr, j + AHEAD, k, offs, inside, step, T, CHUNK, False)
            residuals = read_ahead(
                residuals, residual_ptr, j + AHEAD, k, offs, inside, step, T, CHUNK, False
            )
            additions = read_ahead(
                additions, spike_add_ptr, j + AHEAD, k, offs, inside, step, T, CHUNK, False
            )
            t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
            residual = None
            if residual_ptr is not None:
                residual = residuals[j]
            current = _current(inputs[j], residual, step_gain_ptr, t, mean, scale, bias, T, NORM)
            if current_ptr is not None:
                tl.store(current_ptr + at, current.to(current_ptr.dtype.element_ty), mask=here)
            h = _charge(v, current, decays, leaks, gain, v_reset, LEAKS_TO_RESET)
            fired = h >= thresholds
            s = tl.where(fired, 1.0, 0.0)
            if spike_add_ptr is not None:
                s = s + additions[j].to(tl.float32)
            tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=here)
            after = _discharge(h, fired, thresholds, v_reset, RESET)
            if T % CHUNK != 0:
                after = tl.where(t < T, after, v)
            v = after
        if saved_ptr is not None:
            tl.store(saved_ptr + k * step + offs, v, mask=where_below(inside, k, CHUNKS - 1))
    if v_last_ptr is not None:
        tl.store(v_last_ptr + offs, v, mask=inside)


@triton.jit(do_not_specialize=[*_FLOATS, "height", "width", "count"])
def walk_kernel(
    grad_s_ptr,  # [T, N]
    grad_current_ptr,  # [T, N]
    x_ptr,  # [T, N]
    residual_ptr,  # [T, N]
    saved_ptr,  # [chunks - 1, N] float32
    v_init_ptr,  # [N]
    grad_v_last_ptr,  # [N]
    decay_ptr,  # () or [C]
    threshold_ptr,  # () or [C]
    width_ptr,  # () or [C]
    mean_ptr,  # [C]
    var_ptr,  # [C]
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    step_gain_ptr,  # [T]
    sums_ptr,  # [2, C]: sum of dz, sum of dz * xhat over the channel
    dx_ptr,  # [T, N] out
    dy_ptr,  # [T, N] out
    dv_init_ptr,  # [N] out, float32
    partial_sums_ptr,  # [2, parts, L or C] out, float32
    partial_parameters_ptr,  # [3, parts, L or C] or [groups, 3, GROUP] out, float32
    partial_step_gain_ptr,  # [groups, T, GROUP] out, float32
    partial_probe_ptr,  # [groups, T, 8, GROUP] out, float32
    decay,
    leak,
    gain,
    threshold,
    v_reset,
    v_start,
    height,
    width,
    eps,
    bn_scale,
    count,
    R,
    C,
    units,
    S,
    programs,  # row programs; each walks every programs-th row tile
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    RESET: tl.constexpr,
    DETACH: tl.constexpr,
    LEAKS_TO_RESET: tl.constexpr,
    SHAPE: tl.constexpr,
    REACH: tl.constexpr,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WIDTH: tl.constexpr,
):
    L = units * ALIGN
    first, column, channel = own_tile(tl.program_id(0), C, L, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = elements(
        first, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    step = step_size(R, C, L, BY_COLUMN)
    NORM: tl.constexpr = mean_ptr is not None
    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    decays = _parameter(decay_ptr, decay, channels, valid, DECAY)
    thresholds = _parameter(threshold_ptr, threshold, channels, valid, THRESHOLD)
    widths = _parameter(width_ptr, width, channels, valid, WIDTH)
    inverse_width = 1.0 / widths
    leaks = leak
    if DECAY != "float":
        leaks = 1.0 - decays
    mean, rstd, affine, bias = norm_constants(
        mean_ptr, var_ptr, weight_ptr, bias_ptr, eps, bn_scale, channels, valid
    )
    scale = affine * rstd
    if sums_ptr is not None:
        mean_dz, mean_dz_xhat = channel_means(sums_ptr, C, count, channels, valid)
    sum_dz = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    sum_dz_xhat = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    d_decay = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    d_threshold = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    d_width = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    columns = blocks(L, BLOCK_L)
    for row in range(first, blocks(R, BLOCK_R), programs):
        offs, inside, channels, valid = elements(
            row, column, channel, R, C, L, S, BLOCK_R, BLOCK_L, BY_COLUMN
        )
        if BY_COLUMN:
            tile = row * columns + column
        else:
            tile = (row * C + channel) * columns + column
        carry = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        if grad_v_last_ptr is not None:
            carry = tl.load(grad_v_last_ptr + offs, mask=inside, other=0.0).to(tl.float32)
        for back in range(CHUNKS):
            k = tl.cast(CHUNKS - 1 - back, tl.int32)
            start = tl.full([BLOCK_R, BLOCK_L], v_start, tl.float32)
            if v_init_ptr is not None:
                first_chunk = where_below(inside, k, 1)
                start = tl.load(v_init_ptr + offs, mask=first_chunk, other=0.0).to(tl.float32)
            if CHUNKS > 1:
                later_chunk = where_below(inside, -k, 0)
                saved = tl.load(saved_ptr + (k - 1) * step + offs, mask=later_chunk, other=0.0)
                start = tl.where(k == 0, start, saved)

            # Forward through the chunk again. What the walk back needs stays in registers: the potentials, and with
            # batch norm what was read.
            v = start
            potentials = ()
            inputs = ()
            for j in tl.static_range(CHUNK):
                t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
                x = tl.load(x_ptr + at, mask=here, other=0.0)
                residual = None
                if residual_ptr is not None:
                    residual = tl.load(residual_ptr + at, mask=here, other=0.0)
                current = _current(x, residual, step_gain_ptr, t, mean, scale, bias, T, NORM)
                h = _charge(v, current, decays, leaks, gain, v_reset, LEAKS_TO_RESET)
                potentials = potentials + (h,)  # type: ignore[assignment]
                if NORM:
                    inputs = inputs + (x,)  # type: ignore[assignment]
                v = _discharge(h, h >= thresholds, thresholds, v_reset, RESET)

            grads = ()
            through = ()
            for n in tl.static_range(AHEAD):
                grads = read_ahead(grads, grad_s_ptr, n, k, offs, inside, step, T, CHUNK, True)
                through = read_ahead(
                    through, grad_current_ptr, n, k, offs, inside, step, T, CHUNK, True
                )
            for j in tl.static_range(CHUNK - 1, -1, -1):
                grads = read_ahead(
                    grads, grad_s_ptr, CHUNK - 1 - j + AHEAD, k, offs, inside, step, T, CHUNK, True
                )
                through = read_ahead(
                    through,
                    grad_current_ptr,
                    CHUNK - 1 - j + AHEAD,
                    k,
                    offs,
                    inside,
                    step,
                    T,
                    CHUNK,
                    True,
                )
                t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
                h = potentials[j]
                fired = h >= thresholds
                grad_s = grads[CHUNK - 1 - j].to(tl.float32)
                dh, jump, unit, slope = _step_back(
                    h, fired, grad_s, carry, thresholds, widths, inverse_width, v_reset, height, RESET, DETACH, SHAPE
                )  # fmt: skip
                own = gain * dh  # what comes through the neuron; a probe measures that alone
                dx = own
                if grad_current_ptr is not None:
                    dx = own + through[CHUNK - 1 - j].to(tl.float32)
                if dx_ptr is not None:
                    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=here)
                if partial_parameters_ptr is not None:
                    through_s, through_v = _parts_of_reset(
                        h, fired, grad_s, carry, thresholds, v_reset, RESET, DETACH
                    )
                    if DECAY != "float":
                        before = start
                        if j > 0:
                            last = potentials[j - 1]  # type: ignore[var-annotated]
                            before = _discharge(
                                last, last >= thresholds, thresholds, v_reset, RESET
                            )
                        if LEAKS_TO_RESET:
                            before = before - v_reset
                        d_decay += tl.where(here, dh * before, 0.0)
                    if THRESHOLD != "float":
                        d_threshold += tl.where(here, carry * through_v - through_s * slope, 0.0)
                    if WIDTH != "float":
                        z = (h - thresholds) * inverse_width
                        by_width = through_s * height * (primitive(z, SHAPE) - z * unit)
                        d_width += tl.where(here, by_width, 0.0)
                if partial_probe_ptr is not None:
                    share_ptr = partial_probe_ptr + in_group(tile, T * PROBE_WIDTH)
                    share_ptr += t * PROBE_WIDTH * GROUP
                    _observe(
                        share_ptr, here, t < T, grad_s, own, carry, decays, jump, unit, fired, REACH
                    )
                if NORM:
                    xhat = (inputs[j].to(tl.float32) - mean) * rstd
                    if partial_step_gain_ptr is not None:
                        share_ptr = partial_step_gain_ptr + in_group(tile, T) + t * GROUP
                        share = total(tl.where(here, dx * (xhat * affine + bias), 0.0))
                        tl.store(share_ptr, share, mask=t < T)
                    dz = dx
                    if step_gain_ptr is not None:
                        dz = tl.load(step_gain_ptr + t, mask=t < T, other=0.0) * dx
                    if partial_sums_ptr is not None:
                        if (
                            T % CHUNK != 0
                        ):  # beyond the window dz is no gradient; beyond the tensor it is 0
                            dz = tl.where(here, dz, 0.0)
                        sum_dz += dz
                        sum_dz_xhat = tl.fma(dz, xhat, sum_dz_xhat)
                    if dy_ptr is not None:
                        if sums_ptr is not None:
                            dz = tl.fma(-mean_dz_xhat, xhat, dz - mean_dz)
                        tl.store(dy_ptr + at, (scale * dz).to(dy_ptr.dtype.element_ty), mask=here)
                earlier = decays * dh
                if T % CHUNK != 0:
                    earlier = tl.where(t < T, earlier, carry)
                carry = earlier
        if dv_init_ptr is not None:
            tl.store(dv_init_ptr + offs, carry, mask=inside)

    # One partial sum per program and channel; the host joins them in a fixed order.
    place, keep, plane = partial_place(first, column, channel, programs, C, L, BLOCK_L, BY_COLUMN)
    if partial_sums_ptr is not None:
        at = partial_sums_ptr + place
        tl.store(at, over_owned(sum_dz, BY_COLUMN), mask=keep)
        tl.store(at + plane, over_owned(sum_dz_xhat, BY_COLUMN), mask=keep)
    if partial_parameters_ptr is not None:
        if (DECAY == "channel" or THRESHOLD == "channel") or WIDTH == "channel":
            at = partial_parameters_ptr + place
            tl.store(at, over_owned(d_decay, BY_COLUMN), mask=keep)
            tl.store(at + plane, over_owned(d_threshold, BY_COLUMN), mask=keep)
            tl.store(at + 2 * plane, over_owned(d_width, BY_COLUMN), mask=keep)
        else:
            at = partial_parameters_ptr + in_group(tl.program_id(0), 3)
            tl.store(at, total(d_decay))
            tl.store(at + GROUP, total(d_threshold))
            tl.store(at + 2 * GROUP, total(d_width))


def _walk_width(x: torch.Tensor, neuron: Neuron, out: Gradients) -> int:
    """``vector_width`` of a walk back.

    Where it holds more than h of a whole chunk, beyond 4 steps: 4 elements (8 bytes in half precision, still whole
    cache lines a warp) with batch norm or a learnt decay or threshold, 2 with a learnt width, whose slopes take much
    arithmetic. More would take all registers or spill (profiling/LOG.md).
    """
    widest = vector_width(x)
    if x.shape[0] <= 4:
        return widest
    learns = out.parameters is not None
    if learns and isinstance(neuron.width, torch.Tensor):
        return 2
    return min(widest, 4) if learns or neuron.has_norm else widest


def _kind(value: float | torch.Tensor) -> tuple[torch.Tensor | None, float, str]:
    """(pointer, float, KIND) of a parameter."""
    if isinstance(value, torch.Tensor):
        return value, 0.0, "scalar" if value.numel() == 1 else "channel"
    return None, value, "float"


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """Fill what ``out`` holds tensors for."""
    x, v_init, _, residual, spike_add = inputs
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    tiles = tiling(x, neuron.per_channel, vector_width(x))
    decay, f_decay, decay_kind = _kind(neuron.decay)
    threshold, f_threshold, threshold_kind = _kind(neuron.threshold)
    with torch.cuda.device_of(x):
        fire_kernel[(tiles.row_tiles * tiles.lanes,)](
            x, residual, spike_add, v_init, decay, threshold, neuron.mean, neuron.var, neuron.weight, neuron.bias,
            neuron.step_gain, out.spikes, out.v_last, out.saved, out.current,
            f_decay, 1.0 - f_decay, neuron.gain, f_threshold, neuron.v_reset, neuron.v_start,
            neuron.eps, neuron.bn_scale,
            T=x.shape[0], CHUNK=chunk_length(x.shape[0], neuron.holds_more), AHEAD=2 if neuron.has_norm else 1,
            **tiles.geometry,
            RESET=neuron.reset, LEAKS_TO_RESET=neuron.leaks_to_reset, DECAY=decay_kind, THRESHOLD=threshold_kind,
            num_warps=WARPS, enable_fp_fusion=False,
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
    grad_s, grad_v_last, _, _, grad_current = upstream
    x, v_init, _, residual, _ = inputs
    T = x.shape[0]
    tiles = tiling(x, neuron.per_channel, _walk_width(x, neuron, out))
    walking = out.sums is not None or out.parameters is not None
    programs = tiles.programs(WALKS * processors(x.device)) if walking else tiles.row_tiles
    launched, every_tile = programs * tiles.lanes, tiles.row_tiles * tiles.lanes
    partial_sums = tiles.partial(x, 2, programs) if out.sums is not None else None
    partial_parameters = partial_step_gain = partial_probe = None
    one = False  # a program leaves one sum of each, or one per channel
    if out.parameters is not None:
        one = neuron.parameter_size == 1
        partial_parameters = grouped(x, launched, 3) if one else tiles.partial(x, 3, programs)
    if out.step_gain is not None:
        partial_step_gain = grouped(x, every_tile, T)
    if out.probe is not None:
        partial_probe = grouped(x, every_tile, T * len(PROBE_FIELDS))
    decay, f_decay, decay_kind = _kind(neuron.decay)
    threshold, f_threshold, threshold_kind = _kind(neuron.threshold)
    width, f_width, width_kind = _kind(neuron.width)
    # Left alone, ptxas holds a long replay to 168 registers, for a third program on a processor, and spills for it.
    chunk = chunk_length(T, neuron.holds_more)
    registers = (
        {"maxnreg": 255} if out.dy is not None and chunk < T and not torch.version.hip else {}
    )
    # A gradient of the current is read ahead too: four steps of both would spill in a long chunk. So would two steps of
    # a neuron alone in float32, or where the slope takes most registers.
    ahead = 4 if neuron.has_norm and (grad_current is None or chunk <= 10) else 2
    costly = x.element_size() == 4 or neuron.shape == "triangle"
    if not neuron.has_norm and costly and chunk > 12:
        ahead = 1
    with torch.cuda.device_of(x):
        walk_kernel[(launched,)](
            grad_s, grad_current, x, residual, saved, v_init, grad_v_last, decay, threshold, width,
            neuron.mean, neuron.var, neuron.weight, neuron.bias, neuron.step_gain, sums,
            out.dx, out.dy, out.v_init, partial_sums, partial_parameters, partial_step_gain, partial_probe,
            f_decay, 1.0 - f_decay, neuron.gain, f_threshold, neuron.v_reset, neuron.v_start, neuron.height, f_width,
            neuron.eps, neuron.bn_scale, count,
            T=T, CHUNK=chunk, AHEAD=ahead,
            programs=programs, **tiles.geometry,
            RESET=neuron.reset, DETACH=neuron.detach_reset, LEAKS_TO_RESET=neuron.leaks_to_reset,
            SHAPE=neuron.shape, REACH=REACH, DECAY=decay_kind, THRESHOLD=threshold_kind, WIDTH=width_kind,
            num_warps=WARPS, enable_fp_fusion=False, **registers,
        )  # fmt: skip
    if partial_sums is not None and out.sums is not None:
        tiles.join(partial_sums, out.sums)
    if partial_parameters is not None and out.parameters is not None:
        if one:
            join_groups(partial_parameters, out.parameters, launched)
        else:
            tiles.join(partial_parameters, out.parameters)
    if partial_step_gain is not None and out.step_gain is not None:
        join_groups(partial_step_gain, out.step_gain, every_tile)
    if partial_probe is not None and out.probe is not None:
        largest = PROBE_FIELDS.index("grad_input_max")
        join_groups(partial_probe, out.probe, every_tile, len(PROBE_FIELDS), largest)
