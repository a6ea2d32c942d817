"""The neurons, and the norm in front, by plain PyTorch and its autograd, one time step after the other: what the
passes are held to.

Equations as in ``lif`` and ``states``. In float64 these are the numbers that every other dtype approximates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import along_channels, check_call
from .neuron import PARAMETERS, Call, Inputs, Neuron, Norm, Outputs, membrane_dtype
from .steps.fire import fire, whole
from .surrogate import unit_primitive, unit_slope


class _WithGradientOf(torch.autograd.Function):
    """The value of the first argument, the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.to(carrier.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return None, grad


class _Primitive(torch.autograd.Function):
    """A surrogate's Phi, whose derivative is its phi."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, shape: str) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(z)
        return unit_primitive(shape, z)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grad * unit_slope(ctx.shape, z), None


class Constants(NamedTuple):
    """``PARAMETERS``, shaped to broadcast against a step [B, C, ...]; leak is 1 - decay, rest 1 - rho."""

    decay: Any
    threshold: Any
    width: Any
    gain: Any
    rho: Any
    beta: Any
    leak: Any
    rest: Any
    height: Any

    @staticmethod
    def of(neuron: Neuron, x: Tensor) -> Constants:
        wide = membrane_dtype(x.dtype)
        given = [along_channels(p, x, wide) for p in neuron.parameters]
        decay, _, width, _, rho, _ = given
        if not isinstance(width, Tensor):
            given[PARAMETERS.index("width")] = torch.full((), width, dtype=wide, device=x.device)
        return Constants(*[*given, 1 - decay, 1 - rho, neuron.height])

    def level(self, m: Tensor, neuron: Neuron) -> Any:
        """What h is compared with."""
        return self.threshold + self.beta * m if neuron.kind == "alif" else self.threshold


def begin(inputs: Inputs, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """Both states before the window."""
    x, v, m, *_ = inputs
    wide = membrane_dtype(x.dtype)
    v = torch.full_like(x[0], neuron.v_start, dtype=wide) if v is None else v.to(wide)
    return v, torch.zeros_like(v) if m is None else m.to(wide)


def charge(
    current: Tensor, v: Tensor, m: Tensor, c: Constants, neuron: Neuron
) -> tuple[Tensor, Tensor]:
    """(h, m) of a step, m being what the spike reads."""
    if neuron.kind == "cuba":
        m = current = c.rho * m + current
    if neuron.leaks_to_reset:
        return v + c.gain * current - c.leak * (v - neuron.v_reset), m
    if neuron.reset == "delayed_soft":
        fired = (v >= c.threshold).to(v.dtype)
        return c.decay * v + c.gain * current - c.threshold * fired, m
    if neuron.reset == "delayed_hard":
        v = torch.where(v >= c.threshold, 0.0, v)
    return c.decay * v + c.gain * current, m


def discharge(
    h: Tensor, m: Tensor, c: Constants, neuron: Neuron, smooth: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(spikes, v, m) after a step."""
    level = c.level(m, neuron)
    if neuron.kind == "ilif":
        # by a tensor: a GPU multiplies by the reciprocal of a number, which moves ties
        top = level if isinstance(level, Tensor) else torch.full_like(h, level)
        s = (h / top).clamp(0, neuron.levels) if smooth else whole(h, top, neuron.levels)
    elif smooth:
        s = c.height * c.width * _Primitive.apply((h - level) / c.width, neuron.shape)
    else:
        s = fire(h - level, neuron.shape, c.height, c.width)
    s_reset = s.detach() if neuron.detach_reset else s
    v = h
    if neuron.kind == "clif":
        m = m * torch.sigmoid(c.leak * h) + s
        v = h - s_reset * (c.threshold + torch.sigmoid(m))
    elif neuron.reset == "soft":
        binary = neuron.kind != "ilif"
        v = (
            torch.where(s > 0, h - level, h)
            if neuron.detach_reset and binary
            else h - level * s_reset
        )
    elif neuron.reset == "hard":
        v = (1 - s_reset) * h
        if neuron.v_reset:
            v = v + s_reset * neuron.v_reset
        if not smooth:  # the same number, but exact, and free of 0 * inf
            v = _WithGradientOf.apply(torch.where(s > 0, neuron.v_reset, h), v)
    if neuron.kind == "alif":
        m = c.rho * m + c.rest * s
    return s, v, m


def define(
    inputs: Inputs,
    neuron: Neuron,
    call: Call,
    norm: Norm | None = None,
    probe: Tensor | None = None,
    *,
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
    check_call(inputs, neuron, norm)
    x, *_, residual, spike_add = inputs
    dtype, wide = x.dtype, membrane_dtype(x.dtype)
    x = x.to(wide) if norm is None else normalised(x, norm)
    if residual is not None:
        x = x + residual.to(wide)
    c, (v, m) = Constants.of(neuron, x), begin(inputs, neuron)
    spikes, trace = [], []
    for x_t in x.unbind(0):
        h, m = charge(x_t, v, m, c, neuron)
        s, v, m = discharge(h, m, c, neuron, smooth)
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


def normalised(y: Tensor, norm: Norm) -> Tensor:
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
