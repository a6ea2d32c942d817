"""The Triton kernels and their launches: one that fires, one that walks back, three for batch norm around them.

A time step is a gapless block of N elements. Without per-channel values it is one row of N columns; channels_last it is
R rows of C channels; contiguous it is, for each channel, R samples of S pixels, C * S apart. A program owns a tile
[BLOCK_R, BLOCK_L] of neurons and walks its whole window with the membranes in registers:

    BY_COLUMN   element (r, l) at r * L + l, channel l              (channels_last; R = 1, L = N without channels)
    else        element (r, l) at (r * C + c) * L + l, channel c    (contiguous; a program stays in one channel c)

Bytes per element and step, e per element of the I/O dtype: fire 2e; walk back 3e, or 2e when it only sums; replaying
the membrane costs arithmetic, which is free here. Arithmetic is float32, never contracted into fused multiply-adds
(``enable_fp_fusion=False``; but in the statistics), in the order of the reference, so forward and replay agree with it
bit for bit.
Windows longer than a chunk keep one float32 membrane per chunk: 8 / CHUNK bytes more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..arguments import PROBE_FIELDS
from ..layout import channel_axis, chunk_length
from ..neuron import Emit, Gradients, Neuron, membrane_dtype
from ..surrogate import REACH, phi, primitive
from ..triton_import import tl, triton

FLOAT, SCALAR, PER_CHANNEL = 1, 2, 3

_FLOATS = ["decay", "leak", "gain", "threshold", "v_reset", "v_start", "eps", "bn_scale"]


@triton.jit
def _blocks(n, BLOCK: tl.constexpr):
    """Blocks that hold n >= 1 elements. Not ``tl.cdiv``: n + BLOCK - 1 leaves int32 where n is near its end."""
    return (n - 1) // BLOCK + 1


@triton.jit
def _parameter(ptr, value, channel, valid, KIND: tl.constexpr):
    """A float argument, a tensor of one element, or a value per channel."""
    if KIND == 1:
        result = value
    elif KIND == 2:
        result = tl.load(ptr)
    else:
        result = tl.load(ptr + channel, mask=valid, other=1.0)
    return result


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
def _current(
    x,
    residual,
    mean,
    scale,
    bias,
    step_gain,
    NORM: tl.constexpr,
    STEP_GAIN: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """The neuron's input current from what memory holds; the same operations in the same order in every kernel."""
    current = x.to(tl.float32)
    if NORM:
        current = (current - mean) * scale + bias
        if STEP_GAIN:
            current = step_gain * current
    if RESIDUAL:
        current = current + residual.to(tl.float32)
    return current


@triton.jit
def _tile(pid, R, C, L, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BY_COLUMN: tl.constexpr):
    """(row, column) blocks of a program and its channel; programs run over columns first, then channels, then rows."""
    columns = _blocks(L, BLOCK_L)
    column = pid % columns
    if BY_COLUMN:
        channel = 0
        row = pid // columns
    else:
        channel = (pid // columns) % C
        row = pid // columns // C
    return row, column, channel


@triton.jit
def _elements(
    row,
    column,
    channel,
    R,
    C,
    L,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
):
    """Offsets [BLOCK_R, BLOCK_L] within a time step, their mask, and each column's channel [1, BLOCK_L] and mask."""
    r = row * BLOCK_R + tl.arange(0, BLOCK_R)
    l = column * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = (r < R)[:, None] & (l < L)[None, :]
    wide = r.to(tl.int64)
    if BY_COLUMN:
        offsets = (wide * L)[:, None] + l[None, :]
        channels = l[None, :]
        valid = (l < L)[None, :]
    else:
        offsets = ((wide * C + channel) * L)[:, None] + l[None, :]
        channels = tl.full([1, 1], 0, tl.int32) + channel
        valid = channels >= 0
    return offsets, inside, channels, valid


@triton.jit
def _where(inside, index, end):
    """The mask, where the scalar index < end: written as a tile because the interpreter widens scalar booleans."""
    return inside & (tl.full([1, 1], 0, tl.int32) + index < end)


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
    L,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    RESET: tl.constexpr,
    LEAKS_TO_RESET: tl.constexpr,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    STEP_GAIN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SPIKE_ADD: tl.constexpr,
    V_INIT: tl.constexpr,
    V_LAST: tl.constexpr,
    SAVE: tl.constexpr,
):
    row, column, channel = _tile(tl.program_id(0), R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = _elements(
        row, column, channel, R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    if BY_COLUMN:
        step = tl.cast(R, tl.int64) * L
    else:
        step = tl.cast(R, tl.int64) * C * L
    decays = _parameter(decay_ptr, decay, channels, valid, DECAY)
    thresholds = _parameter(threshold_ptr, threshold, channels, valid, THRESHOLD)
    leaks = leak
    if DECAY != 1:
        leaks = 1.0 - decays
    mean = 0.0
    scale = 1.0
    bias = 0.0
    if NORM:
        mean = tl.load(mean_ptr + channels, mask=valid, other=0.0)
        scale = 1.0 / tl.sqrt(tl.load(var_ptr + channels, mask=valid, other=1.0) + eps)
        if WEIGHT:
            scale = (tl.load(weight_ptr + channels, mask=valid, other=1.0) * bn_scale) * scale
        else:
            scale = bn_scale * scale
        if BIAS:
            bias = tl.load(bias_ptr + channels, mask=valid, other=0.0)
    v = tl.full([BLOCK_R, BLOCK_L], v_start, tl.float32)
    if V_INIT:
        v = tl.load(v_init_ptr + offs, mask=inside, other=0.0).to(tl.float32)

    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    for chunk in range(CHUNKS):
        k = tl.cast(chunk, tl.int32)
        for j in tl.static_range(CHUNK):
            t = k * CHUNK + j
            at = t * step + offs
            here = inside
            if T % CHUNK != 0:
                here = _where(inside, t, T)
            x = tl.load(x_ptr + at, mask=here, other=0.0)
            residual = x
            if RESIDUAL:
                residual = tl.load(residual_ptr + at, mask=here, other=0.0)
            gain_t = 1.0
            if STEP_GAIN:
                gain_t = tl.load(step_gain_ptr + t, mask=t < T, other=0.0)
            current = _current(x, residual, mean, scale, bias, gain_t, NORM, STEP_GAIN, RESIDUAL)
            h = _charge(v, current, decays, leaks, gain, v_reset, LEAKS_TO_RESET)
            fired = h >= thresholds
            s = tl.where(fired, 1.0, 0.0)
            if SPIKE_ADD:
                s = s + tl.load(spike_add_ptr + at, mask=here, other=0.0).to(tl.float32)
            tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=here)
            after = _discharge(h, fired, thresholds, v_reset, RESET)
            if T % CHUNK != 0:
                after = tl.where(t < T, after, v)
            v = after
        if SAVE:
            tl.store(saved_ptr + k * step + offs, v, mask=_where(inside, k, CHUNKS - 1))
    if V_LAST:
        tl.store(v_last_ptr + offs, v, mask=inside)


@triton.jit
def _total(tile):
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit(do_not_specialize=[*_FLOATS, "height", "width", "count"])
def walk_kernel(
    grad_s_ptr,  # [T, N]
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
    partial_sums_ptr,  # [2, programs, C] out, float32
    partial_parameters_ptr,  # [3, programs, C or 1] out, float32
    partial_step_gain_ptr,  # [tiles, T] out, float32
    partial_probe_ptr,  # [tiles, T, 8] out, float32
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
    L,
    programs,  # row programs; each walks every programs-th row tile
    T: tl.constexpr,
    CHUNK: tl.constexpr,
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
    NORM: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    STEP_GAIN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    V_INIT: tl.constexpr,
    GRAD_V_LAST: tl.constexpr,
    BATCH: tl.constexpr,  # dy takes the gradient through the batch's statistics
    DX: tl.constexpr,
    DY: tl.constexpr,
    SUMS: tl.constexpr,
    DV_INIT: tl.constexpr,
    PARAMETERS: tl.constexpr,  # 0: none, 1: one sum a program, 2: one a channel
    D_STEP_GAIN: tl.constexpr,
    PROBE: tl.constexpr,
):
    first, column, channel = _tile(tl.program_id(0), R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN)
    columns = _blocks(L, BLOCK_L)
    if BY_COLUMN:
        step = tl.cast(R, tl.int64) * L
    else:
        step = tl.cast(R, tl.int64) * C * L
    offs, inside, channels, valid = _elements(
        first, column, channel, R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    decays = _parameter(decay_ptr, decay, channels, valid, DECAY)
    thresholds = _parameter(threshold_ptr, threshold, channels, valid, THRESHOLD)
    widths = _parameter(width_ptr, width, channels, valid, WIDTH)
    inverse_width = 1.0 / widths
    leaks = leak
    if DECAY != 1:
        leaks = 1.0 - decays
    mean = 0.0
    rstd = 1.0
    scale = 1.0
    bias = 0.0
    affine = 1.0
    mean_dz = 0.0
    mean_dz_xhat = 0.0
    if NORM:
        mean = tl.load(mean_ptr + channels, mask=valid, other=0.0)
        rstd = 1.0 / tl.sqrt(tl.load(var_ptr + channels, mask=valid, other=1.0) + eps)
        if WEIGHT:
            affine = tl.load(weight_ptr + channels, mask=valid, other=1.0) * bn_scale
        else:
            affine = bn_scale
        scale = affine * rstd
        if BIAS:
            bias = tl.load(bias_ptr + channels, mask=valid, other=0.0)
        if BATCH and DY:
            mean_dz = tl.load(sums_ptr + channels, mask=valid, other=0.0) / count
            mean_dz_xhat = tl.load(sums_ptr + C + channels, mask=valid, other=0.0) / count
    sum_dz = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    sum_dz_xhat = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    d_decay = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    d_threshold = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    d_width = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)

    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    for row in range(first, _blocks(R, BLOCK_R), programs):
        offs, inside, channels, valid = _elements(
            row, column, channel, R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN
        )
        if BY_COLUMN:
            tile = row * columns + column
        else:
            tile = (row * C + channel) * columns + column
        carry = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        if GRAD_V_LAST:
            carry = tl.load(grad_v_last_ptr + offs, mask=inside, other=0.0).to(tl.float32)
        for back in range(CHUNKS):
            k = tl.cast(CHUNKS - 1 - back, tl.int32)
            is_first = k == 0
            v = tl.full([BLOCK_R, BLOCK_L], v_start, tl.float32)
            if V_INIT:
                v = tl.load(v_init_ptr + offs, mask=_where(inside, k, 1), other=0.0).to(tl.float32)
            if CHUNKS > 1:
                checkpoint = tl.load(
                    saved_ptr + (k - 1) * step + offs, mask=_where(inside, -k, 0), other=0.0
                )
                v = tl.where(is_first, v, checkpoint)

            # Forward through the chunk again. What the walk back needs stays in registers: the potentials, and with
            # batch norm what was read.
            start = v
            potentials = ()
            inputs = ()
            for j in tl.static_range(CHUNK):
                t = k * CHUNK + j
                at = t * step + offs
                here = inside
                if T % CHUNK != 0:
                    here = _where(inside, t, T)
                x = tl.load(x_ptr + at, mask=here, other=0.0)
                residual = x
                if RESIDUAL:
                    residual = tl.load(residual_ptr + at, mask=here, other=0.0)
                gain_t = 1.0
                if STEP_GAIN:
                    gain_t = tl.load(step_gain_ptr + t, mask=t < T, other=0.0)
                current = _current(
                    x, residual, mean, scale, bias, gain_t, NORM, STEP_GAIN, RESIDUAL
                )
                h = _charge(v, current, decays, leaks, gain, v_reset, LEAKS_TO_RESET)
                potentials = potentials + (h,)  # type: ignore[assignment]
                if NORM:
                    inputs = inputs + (x,)  # type: ignore[assignment]
                v = _discharge(h, h >= thresholds, thresholds, v_reset, RESET)

            for j in tl.static_range(CHUNK - 1, -1, -1):
                t = k * CHUNK + j
                at = t * step + offs
                here = inside
                if T % CHUNK != 0:
                    here = _where(inside, t, T)
                h = potentials[j]
                u = h - thresholds
                fired = h >= thresholds
                grad_s = tl.load(grad_s_ptr + at, mask=here, other=0.0).to(tl.float32)
                if SHAPE == "rectangle":
                    unit = tl.where(tl.abs(u) < widths, 1.0, 0.0)
                else:
                    unit = phi(u * inverse_width, SHAPE)
                slope = height * unit
                if RESET == "hard":
                    jump = tl.where(fired, 0.0, 1.0)
                    if not DETACH:
                        jump = jump + (v_reset - h) * slope
                else:
                    jump = tl.full([BLOCK_R, BLOCK_L], 1.0, tl.float32)
                    if RESET == "soft" and not DETACH:
                        jump = jump - thresholds * slope
                dh = grad_s * slope + carry * jump
                dx = gain * dh
                if DX:
                    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=here)
                if PARAMETERS:
                    through_s = grad_s
                    through_v = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
                    if RESET == "soft":
                        through_v = tl.where(fired, -1.0, 0.0)
                        if not DETACH:
                            through_s = grad_s - carry * thresholds
                    if RESET == "hard" and not DETACH:
                        through_s = grad_s + carry * (v_reset - h)
                    if DECAY != 1:
                        from_v = start
                        if j > 0:
                            last = potentials[j - 1]  # type: ignore[var-annotated]
                            from_v = _discharge(
                                last, last >= thresholds, thresholds, v_reset, RESET
                            )
                        if LEAKS_TO_RESET:
                            from_v = from_v - v_reset
                        d_decay += tl.where(here, dh * from_v, 0.0)
                    if THRESHOLD != 1:
                        d_threshold += tl.where(here, carry * through_v - through_s * slope, 0.0)
                    if WIDTH != 1:
                        z = u * inverse_width
                        d_width += tl.where(
                            here, through_s * height * (primitive(z, SHAPE) - z * unit), 0.0
                        )
                if PROBE:
                    row_ptr = partial_probe_ptr + (tl.cast(tile, tl.int64) * T + t) * 8
                    kept = t < T
                    counted = tl.where(here, 1.0, 0.0)
                    finite = tl.abs(dx) < float("inf")
                    tl.store(row_ptr, _total(counted * grad_s * grad_s), mask=kept)
                    tl.store(row_ptr + 1, _total(tl.where(here, dx * dx, 0.0)), mask=kept)
                    tl.store(row_ptr + 2, _total(tl.where(here, carry * carry, 0.0)), mask=kept)
                    tl.store(
                        row_ptr + 3, _total(tl.where(here, tl.abs(decays * jump), 0.0)), mask=kept
                    )
                    tl.store(
                        row_ptr + 4, _total(tl.where(here & (unit < REACH), 1.0, 0.0)), mask=kept
                    )
                    tl.store(row_ptr + 5, _total(tl.where(here & fired, 1.0, 0.0)), mask=kept)
                    largest = tl.max(
                        tl.max(tl.where(here & finite, tl.abs(dx), 0.0), axis=1), axis=0
                    )
                    tl.store(row_ptr + 6, largest, mask=kept)
                    tl.store(
                        row_ptr + 7, _total(tl.where(here & (finite == 0), 1.0, 0.0)), mask=kept
                    )
                if NORM:
                    xhat = (inputs[j].to(tl.float32) - mean) * rstd
                    if D_STEP_GAIN:
                        share = _total(tl.where(here, dx * (xhat * affine + bias), 0.0))
                        tl.store(
                            partial_step_gain_ptr + tl.cast(tile, tl.int64) * T + t,
                            share,
                            mask=t < T,
                        )
                    dz = dx
                    if STEP_GAIN:
                        dz = tl.load(step_gain_ptr + t, mask=t < T, other=0.0) * dx
                    if SUMS:
                        sum_dz += tl.where(here, dz, 0.0)
                        sum_dz_xhat += tl.where(here, dz * xhat, 0.0)
                    if DY:
                        if BATCH:
                            dz = dz - mean_dz - xhat * mean_dz_xhat
                        tl.store(dy_ptr + at, (scale * dz).to(dy_ptr.dtype.element_ty), mask=here)
                earlier = decays * dh
                if T % CHUNK != 0:
                    earlier = tl.where(t < T, earlier, carry)
                carry = earlier
        if DV_INIT:
            tl.store(dv_init_ptr + offs, carry, mask=inside)

    # One partial sum per program and channel; the host joins them in a fixed order.
    if SUMS or PARAMETERS == 2:
        if BY_COLUMN:
            place = tl.cast(first, tl.int64) * C + column * BLOCK_L + tl.arange(0, BLOCK_L)
            keep = column * BLOCK_L + tl.arange(0, BLOCK_L) < L
            rows = tl.cast(programs, tl.int64) * C
        else:
            place = (tl.cast(first, tl.int64) * columns + column) * C + channel
            keep = channel >= 0
            rows = tl.cast(programs, tl.int64) * columns * C
        if SUMS:
            if BY_COLUMN:
                tl.store(partial_sums_ptr + place, tl.sum(sum_dz, axis=0), mask=keep)
                tl.store(partial_sums_ptr + rows + place, tl.sum(sum_dz_xhat, axis=0), mask=keep)
            else:
                tl.store(partial_sums_ptr + place, _total(sum_dz), mask=keep)
                tl.store(partial_sums_ptr + rows + place, _total(sum_dz_xhat), mask=keep)
        if PARAMETERS == 2:
            if BY_COLUMN:
                tl.store(partial_parameters_ptr + place, tl.sum(d_decay, axis=0), mask=keep)
                tl.store(
                    partial_parameters_ptr + rows + place, tl.sum(d_threshold, axis=0), mask=keep
                )
                tl.store(
                    partial_parameters_ptr + 2 * rows + place, tl.sum(d_width, axis=0), mask=keep
                )
            else:
                tl.store(partial_parameters_ptr + place, _total(d_decay), mask=keep)
                tl.store(partial_parameters_ptr + rows + place, _total(d_threshold), mask=keep)
                tl.store(partial_parameters_ptr + 2 * rows + place, _total(d_width), mask=keep)
    if PARAMETERS == 1:
        pid = tl.program_id(0)
        stride = tl.num_programs(0)
        tl.store(partial_parameters_ptr + pid, _total(d_decay))
        tl.store(partial_parameters_ptr + stride + pid, _total(d_threshold))
        tl.store(partial_parameters_ptr + 2 * stride + pid, _total(d_width))


@triton.jit
def _over_channel(tile, BY_COLUMN: tl.constexpr):
    """The sum of a tile over what its channels own: [1, BLOCK_L] by column, else [1, 1]."""
    if not BY_COLUMN:
        tile = tl.sum(tile, axis=1, keep_dims=True)
    return tl.sum(tile, axis=0, keep_dims=True)


@triton.jit
def statistics_kernel(
    y_ptr,  # [T * R, C] channels_last, [T * R, C, L] contiguous
    partial_ptr,  # [3, programs (* columns), C] out, float32: number, mean, squared deviations from it
    R,  # rows, time included
    C,
    L,
    programs,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
):
    """Moments of each channel's share. Every lane follows its own mean (Welford 1962), so that neither a far mean nor
    a far first element loses digits; the lanes' moments then join (Chan et al. 1979)."""
    first, column, channel = _tile(tl.program_id(0), R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = _elements(
        first, column, channel, R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    mean = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    spread = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    k = 0.0
    for row in range(first, _blocks(R, BLOCK_R), programs):
        offs, inside, channels, valid = _elements(
            row, column, channel, R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN
        )
        y = tl.load(y_ptr + offs, mask=inside, other=0.0).to(tl.float32)
        k += 1.0
        weight = tl.where(k > 1.0, 1.0 / k, 1.0)
        d = y - mean
        mean += d * tl.where(inside, weight, 0.0)
        spread += d * (d * tl.where(inside, 1.0 - weight, 0.0))
    # Only the last visit can leave out a row that the others reach.
    visits = tl.cdiv(_blocks(R, BLOCK_R) - first, programs)
    last = (first + (visits - 1) * programs) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    number = tl.where(last < R, visits, visits - 1).to(tl.float32)
    if not BY_COLUMN:
        number = tl.where(column * BLOCK_L + tl.arange(0, BLOCK_L)[None, :] < L, number, 0.0)
    count = _over_channel(number, BY_COLUMN)
    joined = _over_channel(number * mean, BY_COLUMN) / count
    joined += _over_channel(number * (mean - joined), BY_COLUMN) / count  # what rounding took
    away = mean - joined
    spread = _over_channel(spread + number * away * away, BY_COLUMN)
    part = tl.cast(first, tl.int64)
    parts = tl.cast(programs, tl.int64)
    if not BY_COLUMN:
        part = part * _blocks(L, BLOCK_L) + column
        parts = parts * _blocks(L, BLOCK_L)
    place = partial_ptr + part * C + channels
    tl.store(place, count, mask=valid)
    tl.store(place + parts * C, joined, mask=valid)
    tl.store(place + 2 * parts * C, spread, mask=valid)


@triton.jit(do_not_specialize=["count"])
def join_statistics_kernel(
    partial_ptr,  # [3, parts, C]
    mean_ptr,  # [C] out
    var_ptr,  # [C] out
    parts,
    C,
    count,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and biased variance of each channel from its parts, joined in a fixed order."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    p = tl.arange(0, BLOCK_P)[:, None]
    at = partial_ptr + p * C + c
    plane = tl.cast(parts, tl.int64) * C
    base = tl.load(partial_ptr + plane + c, mask=c < C, other=0.0)  # the first part's mean
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, parts, BLOCK_P):
        here = (start + p < parts) & (c < C)
        number = tl.load(at + start * C, mask=here, other=0.0)
        mean = tl.load(at + plane + start * C, mask=here, other=0.0)
        total += number * (mean - base)
    joined = base + tl.sum(total, axis=0, keep_dims=True) / count
    spread = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, parts, BLOCK_P):
        here = (start + p < parts) & (c < C)
        number = tl.load(at + start * C, mask=here, other=0.0)
        away = tl.load(at + plane + start * C, mask=here, other=0.0) - joined
        spread += tl.load(at + 2 * plane + start * C, mask=here, other=0.0) + number * away * away
    tl.store(mean_ptr + c, joined, mask=c < C)
    tl.store(var_ptr + c, tl.sum(spread, axis=0, keep_dims=True) / count, mask=c < C)


@triton.jit(do_not_specialize=["eps", "bn_scale", "count"])
def norm_backward_kernel(
    dx_ptr,  # [T, N]
    y_ptr,  # [T, N]
    mean_ptr,  # [C]
    var_ptr,  # [C]
    weight_ptr,  # [C]
    step_gain_ptr,  # [T]
    sums_ptr,  # [2, C]
    dy_ptr,  # [T, N] out
    eps,
    bn_scale,
    count,
    R,
    C,
    L,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    WEIGHT: tl.constexpr,
    STEP_GAIN: tl.constexpr,
):
    """dy = scale * (dz - mean(dz) - xhat * mean(dz * xhat)) from the stored dx."""
    row, column, channel = _tile(tl.program_id(0), R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = _elements(
        row, column, channel, R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    if BY_COLUMN:
        step = tl.cast(R, tl.int64) * L
    else:
        step = tl.cast(R, tl.int64) * C * L
    mean = tl.load(mean_ptr + channels, mask=valid, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + channels, mask=valid, other=1.0) + eps)
    scale = bn_scale * rstd
    if WEIGHT:
        scale = (tl.load(weight_ptr + channels, mask=valid, other=1.0) * bn_scale) * rstd
    mean_dz = tl.load(sums_ptr + channels, mask=valid, other=0.0) / count
    mean_dz_xhat = tl.load(sums_ptr + C + channels, mask=valid, other=0.0) / count
    for chunk in range((T + CHUNK - 1) // CHUNK):
        k = tl.cast(chunk, tl.int32)
        for j in tl.static_range(CHUNK):
            t = k * CHUNK + j
            at = t * step + offs
            here = inside
            if T % CHUNK != 0:
                here = _where(inside, t, T)
            dz = tl.load(dx_ptr + at, mask=here, other=0.0).to(tl.float32)
            if STEP_GAIN:
                dz = tl.load(step_gain_ptr + t, mask=t < T, other=0.0) * dz
            xhat = (tl.load(y_ptr + at, mask=here, other=0.0).to(tl.float32) - mean) * rstd
            dy = scale * (dz - mean_dz - xhat * mean_dz_xhat)
            tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=here)


# ---- launches -----------------------------------------------------------------------------------------------------

WARPS = 4
JOIN_PARTS, JOIN_CHANNELS = 64, 8  # of one tile; 8 float32 fill a sector of memory


@dataclass(frozen=True)
class Tiling:
    """How a launch cuts a time step into tiles; see the module's docstring."""

    R: int
    C: int
    L: int
    block_r: int
    block_l: int
    by_column: bool

    @property
    def row_tiles(self) -> int:
        return -(-self.R // self.block_r)

    @property
    def columns(self) -> int:
        return -(-self.L // self.block_l)

    @property
    def lanes(self) -> int:
        """Tiles side by side of one row of tiles."""
        return self.columns if self.by_column else self.columns * self.C

    def programs(self, walking: bool) -> int:
        """Row programs of a launch: one a tile, or, where sums are kept, few enough that their partials are small."""
        return min(self.row_tiles, max(1, 1024 // self.lanes)) if walking else self.row_tiles


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def tiling(x: torch.Tensor, per_channel: bool, vector: int) -> Tiling:
    """Cut a time step of x [T, B, C, ...] so that a thread owns ``vector`` neighbouring elements."""
    block = 32 * WARPS * vector
    neurons = x[0].numel()
    channels, inner = channel_axis(x)
    if not per_channel or channels == 1:
        return (
            Tiling(1, 1, neurons, 1, block, True)
            if not per_channel
            else _rows(neurons, 1, neurons, block)
        )
    if inner == 1:
        block_l = min(_power_of_2(channels), 128)
        return Tiling(neurons // channels, channels, channels, block // block_l, block_l, True)
    return _rows(neurons, channels, inner, block)


def _rows(neurons: int, channels: int, inner: int, block: int) -> Tiling:
    block_l = min(_power_of_2(inner), block)
    return Tiling(neurons // (channels * inner), channels, inner, block // block_l, block_l, False)


def vector_width(x: torch.Tensor) -> int:
    """Neighbouring elements a thread owns: 16 bytes."""
    return 16 // x.element_size()


def _walk_width(x: torch.Tensor, neuron: Neuron, emit: Emit) -> int:
    """``vector_width`` of a walk back.

    Where it holds more than h of a whole chunk, beyond 4 steps: 4 elements (8 bytes in half precision, still whole
    cache lines a warp) with batch norm or a learnt decay or threshold, 2 with a learnt width, whose slopes take much
    arithmetic. More would take all registers or spill (profiling/LOG.md).
    """
    widest = vector_width(x)
    if x.shape[0] <= 4:
        return widest
    if emit.parameters and isinstance(neuron.width, torch.Tensor):
        return 2
    return min(widest, 4) if emit.parameters or neuron.has_norm else widest


def _kind(value: float | torch.Tensor) -> tuple[torch.Tensor | None, float, int]:
    """(pointer, float, KIND) of a parameter."""
    if isinstance(value, torch.Tensor):
        return value, 0.0, SCALAR if value.numel() == 1 else PER_CHANNEL
    return None, value, FLOAT


def _device(x: torch.Tensor):
    return torch.cuda.device_of(x)


def forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    spike_add: torch.Tensor | None,
    neuron: Neuron,
    spikes: torch.Tensor,
    v_last: torch.Tensor | None,
    saved: torch.Tensor,
) -> None:
    """Fill spikes, v_last and the membrane checkpoints."""
    tiles = tiling(x, neuron.per_channel, vector_width(x))
    decay, f_decay, decay_kind = _kind(neuron.decay)
    threshold, f_threshold, threshold_kind = _kind(neuron.threshold)
    with _device(x):
        fire_kernel[(tiles.row_tiles * tiles.lanes,)](
            x, residual, spike_add, v_init, decay, threshold, neuron.mean, neuron.var, neuron.weight, neuron.bias,
            neuron.step_gain, spikes, v_last, saved,
            f_decay, 1.0 - f_decay, neuron.gain, f_threshold, neuron.v_reset, neuron.v_start,
            neuron.eps, neuron.bn_scale, tiles.R, tiles.C, tiles.L,
            T=x.shape[0], CHUNK=chunk_length(x.shape[0], neuron.has_norm),
            BLOCK_R=tiles.block_r, BLOCK_L=tiles.block_l, BY_COLUMN=tiles.by_column,
            RESET=neuron.reset, LEAKS_TO_RESET=neuron.leaks_to_reset, DECAY=decay_kind, THRESHOLD=threshold_kind,
            NORM=neuron.has_norm, WEIGHT=neuron.weight is not None, BIAS=neuron.bias is not None,
            STEP_GAIN=neuron.step_gain is not None, RESIDUAL=residual is not None, SPIKE_ADD=spike_add is not None,
            V_INIT=v_init is not None, V_LAST=v_last is not None, SAVE=saved.shape[0] > 0,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def backward(
    grad_s: torch.Tensor,
    grad_v_last: torch.Tensor | None,
    x: torch.Tensor,
    saved: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    neuron: Neuron,
    emit: Emit,
    sums: torch.Tensor | None,
    count: float,
    out: Gradients,
) -> None:
    """Fill what ``out`` holds tensors for: one launch, and one small sum for each kind of partial."""
    T = x.shape[0]
    tiles = tiling(x, neuron.per_channel, _walk_width(x, neuron, emit))
    walking = emit.sums or emit.parameters
    programs = tiles.programs(walking)
    parts = programs * (1 if tiles.by_column else tiles.columns)
    new = lambda *shape: x.new_empty(shape, dtype=torch.float32)  # noqa: E731
    parameters = 0 if out.parameters is None else 2 if out.parameters.shape[1] > 1 else 1
    partial_sums = new(2, parts, tiles.C) if emit.sums else None
    partial_parameters = (
        new(3, programs * tiles.lanes, 1)
        if parameters == 1
        else new(3, parts, tiles.C)
        if parameters
        else None
    )
    every_tile = tiles.row_tiles * tiles.lanes
    partial_step_gain = new(every_tile, T) if emit.step_gain else None
    partial_probe = new(every_tile, T, len(PROBE_FIELDS)) if emit.probe else None
    decay, f_decay, decay_kind = _kind(neuron.decay)
    threshold, f_threshold, threshold_kind = _kind(neuron.threshold)
    width, f_width, width_kind = _kind(neuron.width)
    # Left alone, ptxas holds a long replay to 168 registers, for a third program on a processor, and spills for it.
    chunked = chunk_length(T, neuron.has_norm) < T
    registers = {"maxnreg": 255} if emit.dy and chunked and not torch.version.hip else {}
    with _device(x):
        walk_kernel[(programs * tiles.lanes,)](
            grad_s, x, residual, saved, v_init, grad_v_last, decay, threshold, width,
            neuron.mean, neuron.var, neuron.weight, neuron.bias, neuron.step_gain, sums,
            out.dx, out.dy, out.v_init, partial_sums, partial_parameters, partial_step_gain, partial_probe,
            f_decay, 1.0 - f_decay, neuron.gain, f_threshold, neuron.v_reset, neuron.v_start, neuron.height, f_width,
            neuron.eps, neuron.bn_scale, count, tiles.R, tiles.C, tiles.L, programs,
            T=T, CHUNK=chunk_length(T, neuron.has_norm),
            BLOCK_R=tiles.block_r, BLOCK_L=tiles.block_l, BY_COLUMN=tiles.by_column,
            RESET=neuron.reset, DETACH=neuron.detach_reset, LEAKS_TO_RESET=neuron.leaks_to_reset,
            SHAPE=neuron.shape, REACH=REACH, DECAY=decay_kind, THRESHOLD=threshold_kind, WIDTH=width_kind,
            NORM=neuron.has_norm, WEIGHT=neuron.weight is not None, BIAS=neuron.bias is not None,
            STEP_GAIN=neuron.step_gain is not None, RESIDUAL=residual is not None,
            V_INIT=v_init is not None, GRAD_V_LAST=grad_v_last is not None, BATCH=sums is not None,
            DX=emit.dx, DY=emit.dy, SUMS=emit.sums, DV_INIT=emit.v_init, PARAMETERS=parameters,
            D_STEP_GAIN=emit.step_gain, PROBE=emit.probe,
            num_warps=WARPS, enable_fp_fusion=False, **registers,
        )  # fmt: skip
    if partial_sums is not None:
        torch.sum(partial_sums, 1, out=out.sums)
    if partial_parameters is not None:
        torch.sum(partial_parameters, 1, out=out.parameters)
    if partial_step_gain is not None:
        torch.sum(partial_step_gain, 0, out=out.step_gain)
    if partial_probe is not None and out.probe is not None:
        torch.sum(partial_probe, 0, out=out.probe)
        largest = PROBE_FIELDS.index("grad_input_max")
        out.probe[:, largest] = partial_probe[:, :, largest].amax(0)


def norm_backward(dx, y, mean, var, weight, step_gain, sums, eps, bn_scale, count, dy) -> None:
    """Fill dy, which may be dx itself, with dL/dy of batch norm from dL/dx and the channel sums."""
    tiles = tiling(y, True, vector_width(y))
    with _device(y):
        norm_backward_kernel[(tiles.row_tiles * tiles.lanes,)](
            dx, y, mean, var, weight, step_gain, sums, dy, eps, bn_scale, count, tiles.R, tiles.C, tiles.L,
            T=y.shape[0], CHUNK=min(y.shape[0], 4),  # steps under way at once; more would spill
            BLOCK_R=tiles.block_r, BLOCK_L=tiles.block_l, BY_COLUMN=tiles.by_column,
            WEIGHT=weight is not None, STEP_GAIN=step_gain is not None,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def channel_statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel of y [T, B, C, ...], [C] each."""
    step = tiling(y, True, vector_width(y))
    tiles = Tiling(step.R * y.shape[0], step.C, step.L, step.block_r, step.block_l, step.by_column)
    programs = tiles.programs(walking=True)
    parts = programs * (1 if tiles.by_column else tiles.columns)
    partial = y.new_empty((3, parts, tiles.C), dtype=torch.float32)
    mean, var = (y.new_empty(tiles.C, dtype=membrane_dtype(y.dtype)) for _ in range(2))
    with _device(y):
        statistics_kernel[(programs * tiles.lanes,)](
            y, partial, tiles.R, tiles.C, tiles.L, programs,
            BLOCK_R=tiles.block_r, BLOCK_L=tiles.block_l, BY_COLUMN=tiles.by_column, num_warps=WARPS,
            enable_fp_fusion=True,
        )  # fmt: skip
        join_statistics_kernel[(-(-tiles.C // JOIN_CHANNELS),)](
            partial, mean, var, parts, tiles.C, float(y.numel() // tiles.C),
            BLOCK_P=JOIN_PARTS, BLOCK_C=JOIN_CHANNELS, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return mean, var
