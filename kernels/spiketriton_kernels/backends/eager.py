"""The kernels' algorithm in eager PyTorch: any device, any floating dtype, one step at a time.

Used where neither Triton nor a C++ compiler serves: float64 on a GPU, machines without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..arguments import PROBE_FIELDS, along_channels, membrane_dtype
from ..surrogate import REACH, unit_primitive, unit_slope
from .cell import Cell, Emit, Gradients


def _channels_last_dim(step: torch.Tensor) -> list[int]:
    """The dimensions of one time step [B, C, ...] that a sum over a channel's elements runs over."""
    return [d for d in range(step.dim()) if d != 1]


def _current(
    x: torch.Tensor, residual: torch.Tensor | None, cell: Cell
) -> Callable[[int], tuple[Any, Any, Any]]:
    """A function of t giving (current, z, xhat) of one step: z is the normalised current before gain and residual."""
    wide = membrane_dtype(x.dtype)
    channel: Callable[[Any], Any] = lambda p: along_channels(p, x, wide)  # noqa: E731
    if cell.has_norm:
        mean = channel(cell.mean)
        rstd = torch.rsqrt(channel(cell.var) + cell.eps)
        weight = channel(cell.weight) if cell.weight is not None else 1.0
        bias = channel(cell.bias) if cell.bias is not None else 0.0
        scale = weight * cell.bn_scale * rstd

    def at(t: int) -> tuple[Any, Any, Any]:
        current = z = x[t].to(wide)
        xhat = None
        if cell.has_norm:
            centred = current - mean
            xhat = centred * rstd
            current = z = centred * scale + bias
            if cell.step_gain is not None:
                current = cell.step_gain[t] * current
        if residual is not None:
            current = current + residual[t].to(wide)
        return current, z, xhat

    return at


def _start(x: torch.Tensor, v_init: torch.Tensor | None, cell: Cell) -> torch.Tensor:
    wide = membrane_dtype(x.dtype)
    return torch.full_like(x[0], cell.v_start, dtype=wide) if v_init is None else v_init.to(wide)


def _charge(v: torch.Tensor, current: torch.Tensor, decay: Any, cell: Cell) -> torch.Tensor:
    if cell.leaks_to_reset:
        return v + cell.gain * current - (1 - decay) * (v - cell.v_reset)
    return decay * v + cell.gain * current


def _discharge(h: torch.Tensor, fired: torch.Tensor, threshold: Any, cell: Cell) -> torch.Tensor:
    if cell.reset == "hard":
        return torch.where(fired, cell.v_reset, h)
    return h - threshold * fired.to(h.dtype) if cell.reset == "soft" else h


def forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    spike_add: torch.Tensor | None,
    cell: Cell,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes in the dtype and layout of x, and the last membrane."""
    wide = membrane_dtype(x.dtype)
    decay, threshold = along_channels(cell.decay, x, wide), along_channels(cell.threshold, x, wide)
    at, v = _current(x, residual, cell), _start(x, v_init, cell)
    spikes = torch.empty_like(x)
    for t in range(x.shape[0]):
        h = _charge(v, at(t)[0], decay, cell)
        fired = h >= threshold
        v = _discharge(h, fired, threshold, cell)
        spikes[t] = fired if spike_add is None else fired + spike_add[t].to(wide)
    return spikes, v


def backward(
    grad_s: torch.Tensor,
    grad_v_last: torch.Tensor | None,
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    cell: Cell,
    emit: Emit,
    sums: torch.Tensor | None,
    count: float,
) -> Gradients:
    """Replay the membrane, walk back. ``sums`` and ``count`` are the channel sums that dy needs (None: frozen norm)."""
    wide = membrane_dtype(x.dtype)
    T = x.shape[0]
    decay, threshold, width = (along_channels(p, x, wide) for p in cell.parameters)
    at, v = _current(x, residual, cell), _start(x, v_init, cell)
    before, potentials = [], []
    for t in range(T):
        before.append(v)
        h = _charge(v, at(t)[0], decay, cell)
        potentials.append(h)
        v = _discharge(h, h >= threshold, threshold, cell)

    out = Gradients()
    out.dx = torch.empty_like(x) if emit.dx else None
    out.dy = torch.empty_like(x) if emit.dy else None
    channels = x.shape[2] if x.dim() > 2 else 1
    if emit.sums:
        out.sums = torch.zeros(2, channels, dtype=wide, device=x.device)
    if emit.parameters:
        size = max(p.numel() if isinstance(p, torch.Tensor) else 1 for p in cell.parameters)
        out.parameters = torch.zeros(3, size, dtype=wide, device=x.device)
    if emit.step_gain:
        out.step_gain = torch.zeros(T, dtype=wide, device=x.device)
    if emit.probe:
        out.probe = torch.zeros(T, len(PROBE_FIELDS), dtype=torch.float32, device=x.device)
    if emit.dy:
        channel: Callable[[Any], Any] = lambda p: along_channels(p, x, wide)  # noqa: E731
        rstd = torch.rsqrt(channel(cell.var) + cell.eps)
        scale = (channel(cell.weight) if cell.weight is not None else 1.0) * cell.bn_scale * rstd
        mean_dz, mean_dz_xhat = (
            (channel(s / count) for s in sums) if sums is not None else (0.0, 0.0)
        )

    def per_channel(value: torch.Tensor) -> torch.Tensor:
        return value.sum(_channels_last_dim(value)) if value.dim() > 1 else value.sum().view(1)

    carry = torch.zeros_like(v) if grad_v_last is None else grad_v_last.to(wide)
    for t in range(T - 1, -1, -1):
        _, z, xhat = at(t)
        h = potentials[t]
        u = h - threshold
        fired = h >= threshold
        unit = unit_slope(cell.shape, u / width)
        slope = cell.height * unit
        grad = grad_s[t].to(wide)
        if cell.reset == "hard":
            dv_dh = 1 - fired.to(wide)
            if not cell.detach_reset:
                dv_dh = dv_dh + (cell.v_reset - h) * slope
        else:
            dv_dh = torch.ones_like(h)
            if cell.reset == "soft" and not cell.detach_reset:
                dv_dh = dv_dh - threshold * slope
        dh = grad * slope + carry * dv_dh
        dx = cell.gain * dh
        dz = dx if cell.step_gain is None else cell.step_gain[t] * dx
        if out.dx is not None:
            out.dx[t] = dx
        if out.dy is not None:
            out.dy[t] = scale * (dz - mean_dz - xhat * mean_dz_xhat)
        if out.sums is not None:
            out.sums[0] += per_channel(dz)
            out.sums[1] += per_channel(dz * xhat)
        if out.step_gain is not None:
            out.step_gain[t] = (dx * z).sum()
        if out.probe is not None:
            fields = (
                grad.square().sum(),
                dx.square().sum(),
                carry.square().sum(),
                (decay * dv_dh).abs().sum(),
                (unit < REACH).sum(),
                fired.sum(),
                dx.abs().nan_to_num(0.0, 0.0).max() if dx.numel() else 0.0,
                (~torch.isfinite(dx)).sum(),
            )
            out.probe[t] = torch.stack(
                [torch.as_tensor(f, dtype=torch.float32, device=x.device) for f in fields]
            )
        if out.parameters is not None:
            z_u = u / width
            d_width = cell.height * (unit_primitive(cell.shape, z_u) - z_u * unit)
            through_s = grad
            through_v = torch.zeros_like(h)  # dv/dthreshold beside the path through s
            if cell.reset == "soft":
                through_v = -fired.to(wide)
                if not cell.detach_reset:
                    through_s = grad - carry * threshold
            elif cell.reset == "hard" and not cell.detach_reset:
                through_s = grad + carry * (cell.v_reset - h)
            terms = (
                dh * (before[t] - cell.v_reset if cell.leaks_to_reset else before[t]),
                carry * through_v - through_s * slope,
                through_s * d_width,
            )
            for row, term in zip(out.parameters, terms, strict=True):
                row += per_channel(term) if row.numel() > 1 else term.sum()
        carry = decay * dh
    if emit.v_init:
        out.v_init = carry
    return out


def norm_backward(dx, y, mean, var, weight, step_gain, sums, eps, bn_scale, count, dy) -> None:
    """Fill dy, which may be dx itself, with dL/dy of batch norm from dL/dx and the channel sums."""
    wide = membrane_dtype(y.dtype)
    channel = lambda p: along_channels(p, y, wide)  # noqa: E731
    rstd = torch.rsqrt(channel(var) + eps)
    scale = (channel(weight) if weight is not None else 1.0) * bn_scale * rstd
    dz = dx.to(wide)
    if step_gain is not None:
        dz = step_gain.view(-1, *[1] * (y.dim() - 1)) * dz
    xhat = (y.to(wide) - channel(mean)) * rstd
    dy.copy_(scale * (dz - channel(sums[0] / count) - xhat * channel(sums[1] / count)))


def channel_statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel of y [T, B, C, ...], [C] each."""
    dims = [d for d in range(y.dim()) if d != 2]
    var, mean = torch.var_mean(y.to(membrane_dtype(y.dtype)), dim=dims, correction=0)
    return mean, var
