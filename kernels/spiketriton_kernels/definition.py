"""The neurons, and the norm in front, by plain PyTorch and its autograd, one time step after the other: what the
passes are held to.

Equations as in ``lif`` and ``states``. In float64 these are the numbers that every other dtype approximates.
"""

from __future__ import annotations

import torch

from .arguments import along_channels, check_call
from .neuron import Call, Neuron, Norm, Outputs, membrane_dtype
from .surrogate import unit_primitive


class _WithGradientOf(torch.autograd.Function):
    """The value of the first argument, the gradient of the second."""

    @staticmethod
    def forward(ctx, value, carrier):
        return value.to(carrier.dtype)

    @staticmethod
    def backward(ctx, grad):
        return None, grad


def define(
    x: torch.Tensor,
    neuron: Neuron,
    call: Call,
    norm: Norm | None = None,
    *,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    spike_add: torch.Tensor | None = None,
    probe: torch.Tensor | None = None,
    smooth: bool = False,
) -> Outputs:
    """What ``fire`` returns, of the same arguments but for the probe and the process group.

    ``smooth=True`` replaces each spike by the surrogate's primitive, and leaves out I-LIF's rounding. The result is
    differentiable in the ordinary sense, its exact gradient is what the surrogate gradient stands for, and gradcheck
    holds.
    """
    group = None if norm is None else norm.process_group
    for name, value in (("probe", probe), ("process_group", group)):
        if value is not None:
            raise TypeError(f"{name} is given to a definition, which has none; accepted: None")
    check_call(x, neuron.given(), norm, v_init, m_init, residual, spike_add)
    dtype, wide = x.dtype, membrane_dtype(x.dtype)
    x = x.to(wide) if norm is None else normalised(x, norm)
    if residual is not None:
        x = x + residual.to(wide)
    decay, threshold, width, gain, rho, beta = (
        along_channels(p, x, wide) for p in neuron.parameters
    )
    v = torch.full_like(x[0], neuron.v_start, dtype=wide) if v_init is None else v_init.to(wide)
    m = torch.zeros_like(x[0], dtype=wide) if m_init is None else m_init.to(wide)
    spikes, trace = [], []
    for x_t in x.unbind(0):
        if neuron.kind == "cuba":
            m = x_t = rho * m + x_t
        if neuron.leaks_to_reset:
            h = v + gain * x_t - (1 - decay) * (v - neuron.v_reset)
        elif neuron.reset == "delayed_soft":
            h = decay * v + gain * x_t - threshold * (v >= threshold).to(wide)
        elif neuron.reset == "delayed_hard":
            h = decay * torch.where(v >= threshold, 0.0, v) + gain * x_t
        else:
            h = decay * v + gain * x_t
        level = threshold + beta * m if neuron.kind == "alif" else threshold
        if neuron.kind == "ilif":
            # by a tensor: a GPU multiplies by the reciprocal of a number, which moves ties
            relaxed = (h / (threshold + torch.zeros_like(h))).clamp(0, neuron.levels)
            fired = torch.round(relaxed)
        else:
            relaxed = neuron.height * width * unit_primitive(neuron.shape, (h - level) / width)
            fired = h >= level
        s = relaxed if smooth else _WithGradientOf.apply(fired, relaxed)
        s_reset = s.detach() if neuron.detach_reset else s
        v = h
        if neuron.kind == "clif":
            m = m * torch.sigmoid((1 - decay) * h) + s
            v = h - s_reset * (threshold + torch.sigmoid(m))
        elif neuron.reset == "soft":
            v = h - level * s_reset
        elif neuron.reset == "hard":
            v = (1 - s_reset) * h + s_reset * neuron.v_reset
            if not smooth:  # the same number, but exact, and free of 0 * inf
                v = _WithGradientOf.apply(torch.where(fired, neuron.v_reset, h), v)
        if neuron.kind == "alif":
            m = rho * m + (1 - rho) * s
        spikes.append(s)
        trace.append(v)
    added = torch.stack(spikes)
    return Outputs(
        (added if spike_add is None else added + spike_add).to(dtype),
        v if call.return_v else None,
        m if call.return_m else None,
        torch.stack(trace) if call.return_trace else None,
        current=x.to(dtype) if call.return_current else None,
    )


def normalised(y: torch.Tensor, norm: Norm) -> torch.Tensor:
    """y behind the norm, in the membrane's dtype: torch's batch_norm on the folded tensor."""
    wide = membrane_dtype(y.dtype)
    weight = None if norm.weight is None else norm.weight.to(wide) * norm.scale
    if weight is None and norm.scale != 1.0:
        weight = torch.full(y.shape[2:3], norm.scale, dtype=wide, device=y.device)
    bias = None if norm.bias is None else norm.bias.to(wide)
    z = torch.nn.functional.batch_norm(
        y.to(wide).flatten(0, 1), norm.running_mean, norm.running_var, weight, bias, norm.training,
        norm.momentum, norm.eps,
    ).unflatten(0, y.shape[:2])  # fmt: skip
    if norm.step_gain is not None:
        z = z * norm.step_gain.to(wide).view(-1, *[1] * (y.dim() - 1))
    return z
