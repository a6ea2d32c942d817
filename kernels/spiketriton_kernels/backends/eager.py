"""The kernels' algorithm in eager PyTorch: any device, any floating dtype, one step at a time.

Used where neither Triton nor a C++ compiler serves: float64 on a GPU, machines without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..arguments import along_channels
from ..neuron import Gradients, Inputs, Neuron, Outputs, Running, Upstream, membrane_dtype
from ..surrogate import REACH, unit_primitive, unit_slope


def _channels_last_dim(step: torch.Tensor) -> list[int]:
    """The dimensions of one time step [B, C, ...] that a sum over a channel's elements runs over."""
    return [d for d in range(step.dim()) if d != 1]


def _current(
    x: torch.Tensor, residual: torch.Tensor | None, neuron: Neuron
) -> Callable[[int], tuple[Any, Any, Any]]:
    """A function of t giving (current, z, xhat) of one step: z is the normalised current before gain and residual."""
    wide = membrane_dtype(x.dtype)
    channel: Callable[[Any], Any] = lambda p: along_channels(p, x, wide)  # noqa: E731
    if neuron.has_norm:
        mean = channel(neuron.mean)
        rstd = torch.rsqrt(channel(neuron.var) + neuron.eps)
        weight = channel(neuron.weight) if neuron.weight is not None else 1.0
        bias = channel(neuron.bias) if neuron.bias is not None else 0.0
        scale = weight * neuron.bn_scale * rstd

    def at(t: int) -> tuple[Any, Any, Any]:
        current = z = x[t].to(wide)
        xhat = None
        if neuron.has_norm:
            centred = current - mean
            xhat = centred * rstd
            current = z = centred * scale + bias
            if neuron.step_gain is not None:
                current = neuron.step_gain[t] * current
        if residual is not None:
            current = current + residual[t].to(wide)
        return current, z, xhat

    return at


def _start(x: torch.Tensor, v_init: torch.Tensor | None, neuron: Neuron) -> torch.Tensor:
    wide = membrane_dtype(x.dtype)
    return torch.full_like(x[0], neuron.v_start, dtype=wide) if v_init is None else v_init.to(wide)


def _charge(v: torch.Tensor, current: torch.Tensor, decay: Any, neuron: Neuron) -> torch.Tensor:
    if neuron.leaks_to_reset:
        return v + neuron.gain * current - (1 - decay) * (v - neuron.v_reset)
    return decay * v + neuron.gain * current


def _discharge(
    h: torch.Tensor, fired: torch.Tensor, threshold: Any, neuron: Neuron
) -> torch.Tensor:
    if neuron.reset == "hard":
        return torch.where(fired, neuron.v_reset, h)
    return h - threshold * fired.to(h.dtype) if neuron.reset == "soft" else h


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """``saved`` stays as it is: the walk back replays the whole window."""
    x, v_init, _, residual, spike_add = inputs
    spikes, v_last, _, _, _, current = out
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    wide = membrane_dtype(x.dtype)
    decay, threshold = (
        along_channels(neuron.decay, x, wide),
        along_channels(neuron.threshold, x, wide),
    )
    at, v = _current(x, residual, neuron), _start(x, v_init, neuron)
    for t in range(x.shape[0]):
        charge = at(t)[0]
        if current is not None:
            current[t] = charge
        h = _charge(v, charge, decay, neuron)
        fired = h >= threshold
        v = _discharge(h, fired, threshold, neuron)
        spikes[t] = fired if spike_add is None else fired + spike_add[t].to(wide)
    if v_last is not None:
        v_last.copy_(v)


def backward(
    upstream: Upstream,
    inputs: Inputs,
    saved: torch.Tensor | None,
    neuron: Neuron,
    count: float,
    sums: torch.Tensor | None,
    out: Gradients,
) -> None:
    """Replay the membrane, walk back, fill what ``out`` holds tensors for."""
    grad_s, grad_v_last, _, _, grad_current = upstream
    x, v_init, _, residual, _ = inputs
    wide = membrane_dtype(x.dtype)
    T = x.shape[0]
    decay, threshold, width = (along_channels(p, x, wide) for p in neuron.parameters[:3])
    at, v = _current(x, residual, neuron), _start(x, v_init, neuron)
    before, potentials = [], []
    for t in range(T):
        before.append(v)
        h = _charge(v, at(t)[0], decay, neuron)
        potentials.append(h)
        v = _discharge(h, h >= threshold, threshold, neuron)

    for total in (out.sums, out.parameters):
        if total is not None:
            total.zero_()
    second_pass = out.dy is not None and count > 0 and sums is None
    kept = out.dy if second_pass and out.dx is None else out.dx
    dy = None if second_pass else out.dy
    if dy is not None:
        channel: Callable[[Any], Any] = lambda p: along_channels(p, x, wide)  # noqa: E731
        rstd = torch.rsqrt(channel(neuron.var) + neuron.eps)
        scale = (
            (channel(neuron.weight) if neuron.weight is not None else 1.0) * neuron.bn_scale * rstd
        )
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
        unit = unit_slope(neuron.shape, u / width)
        slope = neuron.height * unit
        grad = grad_s[t].to(wide)
        if neuron.reset == "hard":
            dv_dh = 1 - fired.to(wide)
            if not neuron.detach_reset:
                dv_dh = dv_dh + (neuron.v_reset - h) * slope
        else:
            dv_dh = torch.ones_like(h)
            if neuron.reset == "soft" and not neuron.detach_reset:
                dv_dh = dv_dh - threshold * slope
        dh = grad * slope + carry * dv_dh
        dx = own = neuron.gain * dh
        if grad_current is not None:
            dx = own + grad_current[t].to(wide)
        dz = dx if neuron.step_gain is None else neuron.step_gain[t] * dx
        if kept is not None:
            kept[t] = dx
        if dy is not None:
            dy[t] = scale * (dz - mean_dz - xhat * mean_dz_xhat)
        if out.sums is not None:
            out.sums[0] += per_channel(dz)
            out.sums[1] += per_channel(dz * xhat)
        if out.step_gain is not None:
            out.step_gain[t] = (dx * z).sum()
        if out.probe is not None:
            fields = (
                grad.square().sum(),
                own.square().sum(),
                carry.square().sum(),
                (decay * dv_dh).abs().sum(),
                (unit < REACH).sum(),
                fired.sum(),
                own.abs().nan_to_num(0.0, 0.0).max() if own.numel() else 0.0,
                (~torch.isfinite(own)).sum(),
            )
            out.probe[t] = torch.stack(
                [torch.as_tensor(f, dtype=torch.float32, device=x.device) for f in fields]
            )
        if out.parameters is not None:
            z_u = u / width
            d_width = neuron.height * (unit_primitive(neuron.shape, z_u) - z_u * unit)
            through_s = grad
            through_v = torch.zeros_like(h)  # dv/dthreshold apart from the path through s
            if neuron.reset == "soft":
                through_v = -fired.to(wide)
                if not neuron.detach_reset:
                    through_s = grad - carry * threshold
            elif neuron.reset == "hard" and not neuron.detach_reset:
                through_s = grad + carry * (neuron.v_reset - h)
            terms = (
                dh * (before[t] - neuron.v_reset if neuron.leaks_to_reset else before[t]),
                carry * through_v - through_s * slope,
                through_s * d_width,
            )
            for row, term in zip(out.parameters, terms, strict=True):
                row += per_channel(term) if row.numel() > 1 else term.sum()
        carry = decay * dh
    if out.v_init is not None:
        out.v_init.copy_(carry)
    if second_pass:
        norm_backward(kept, x, neuron, out.sums, count, out.dy)


def norm_backward(dx, y, neuron: Neuron, sums, count, dy) -> None:
    """Fill dy, which may be dx itself, with dL/dy of batch norm from dL/dx and the channel sums."""
    mean, var, weight, _, step_gain = neuron.norm
    wide = membrane_dtype(y.dtype)
    channel = lambda p: along_channels(p, y, wide)  # noqa: E731
    rstd = torch.rsqrt(channel(var) + neuron.eps)
    scale = (channel(weight) if weight is not None else 1.0) * neuron.bn_scale * rstd
    dz = dx.to(wide)
    if step_gain is not None:
        dz = step_gain.view(-1, *[1] * (y.dim() - 1)) * dz
    xhat = (y.to(wide) - channel(mean)) * rstd
    dy.copy_(scale * (dz - channel(sums[0] / count) - xhat * channel(sums[1] / count)))


def channel_statistics(
    y: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, running: Running | None
) -> None:
    """Fill mean and biased variance of each channel of y [T, B, C, ...]; running statistics move towards them."""
    dims = [d for d in range(y.dim()) if d != 2]
    found = torch.var_mean(y.to(membrane_dtype(y.dtype)), dim=dims, correction=0)
    var.copy_(found[0])
    mean.copy_(found[1])
    if running is not None:
        update_running(mean, var, y.numel() // y.shape[2], running)


def update_running(mean: torch.Tensor, var: torch.Tensor, count: int, running: Running) -> None:
    """As torch's batch norm does it: the running variance is the unbiased one. ``count``: elements a channel."""
    running_mean, running_var, momentum = running
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
