"""The kernels' work in eager PyTorch: the definition's steps forth, and autograd through them back.

Used where neither Triton nor a C++ compiler serves: float64 on a GPU, machines without a compiler, surrogates of one's
own. The norm's gradients, and a probe's sums, follow from those by the current as ``backends`` says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..arguments import along_channels
from ..definition import Constants, begin, charge, discharge
from ..neuron import (
    PARAMETERS,
    Gradients,
    Inputs,
    Neuron,
    Outputs,
    Running,
    Upstream,
    membrane_dtype,
)
from ..steps.step import Step
from ..surrogate import REACH, unit_slope


class _Norm:
    """What the neuron reads: ``current`` [T, B, C, ...], with ``z`` and ``xhat`` of the norm, where there is one."""

    def __init__(self, inputs: Inputs, neuron: Neuron) -> None:
        x = inputs.x
        self.x, self.wide = x, membrane_dtype(x.dtype)
        self.current = self.z = x.to(self.wide)
        self.step_gain: Any = 1.0
        self.xhat: Any = None
        if neuron.has_norm:
            rstd = torch.rsqrt(self.of_channels(neuron.var) + neuron.eps)
            weight = self.of_channels(neuron.weight) if neuron.weight is not None else 1.0
            self.scale = weight * neuron.bn_scale * rstd
            centred = self.current - self.of_channels(neuron.mean)
            self.xhat = centred * rstd
            self.current = self.z = centred * self.scale
            if neuron.bias is not None:
                self.current = self.z = self.z + self.of_channels(neuron.bias)
            if neuron.step_gain is not None:
                self.step_gain = neuron.step_gain.view(-1, *[1] * (x.dim() - 1))
                self.current = self.step_gain * self.z
        if inputs.residual is not None:
            self.current = self.current + inputs.residual.to(self.wide)

    def of_channels(self, value: Any) -> Any:
        return along_channels(value, self.x, self.wide)

    def sums(self, dx: Tensor) -> Tensor:
        """[2, C]: sum of dz, sum of dz * xhat."""
        dims = [d for d in range(dx.dim()) if d != 2]
        dz = self.step_gain * dx
        return torch.stack([dz.sum(dims), (dz * self.xhat).sum(dims)])

    def back(self, dx: Tensor, sums: Tensor, count: float) -> Tensor:
        """dL/dy, ``count`` elements a channel; 0: the statistics were given."""
        dz = self.step_gain * dx
        if count:
            mean_dz, mean_dz_xhat = (self.of_channels(total / count) for total in sums)
            dz = dz - mean_dz - self.xhat * mean_dz_xhat
        return self.scale * dz


@contextlib.contextmanager
def _autograd() -> Iterator[None]:
    """Autograd, also within an operator, whose own one has put it aside."""
    aside = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    include, exclude = (
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )
    with torch._C._ForceDispatchKeyGuard(include, exclude - aside), torch.enable_grad():
        yield


@torch.no_grad()
def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """``saved`` stays as it is: the walk back replays the whole window."""
    x, add = inputs.x, inputs.spike_add
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    current = _Norm(inputs, neuron).current
    if out.current is not None:
        out.current.copy_(current)
    if neuron.own is not None:
        return _own_forward(current, inputs, neuron, neuron.own, out)
    c, (v, m) = Constants.of(neuron, x), begin(inputs, neuron)
    for t, x_t in enumerate(current):
        h, m = charge(x_t, v, m, c, neuron)
        s, v, m = discharge(h, m, c, neuron)
        out.spikes[t] = s if add is None else s + add[t].to(s.dtype)
        if out.trace is not None:
            out.trace[t] = v
    if out.v_last is not None:
        out.v_last.copy_(v)
    if out.m_last is not None:
        out.m_last.copy_(m)


@torch.no_grad()
def backward(
    upstream: Upstream,
    inputs: Inputs,
    saved: Tensor | None,
    neuron: Neuron,
    count: float,
    sums: Tensor | None,
    out: Gradients,
) -> None:
    """Replay the window, walk back, fill what ``out`` holds tensors for."""
    norm = _Norm(inputs, neuron)
    if neuron.own is not None:
        own = _own_backward(norm, upstream, inputs, neuron, neuron.own, out)
        return _behind(norm, own, upstream, count, sums, out)
    current, probed = norm.current, out.probe is not None
    # what is added to v has its gradient, step by step
    carried = current.new_zeros(current.shape if probed else len(current))
    learnt = {name: value.expand(neuron.parameter_size) for name, value in neuron.given().items()}
    leaves = [
        leaf.detach().requires_grad_()
        for leaf in (current, *begin(inputs, neuron), carried, *learnt.values())
    ]
    with _autograd():
        current, v, m, carried, *values = leaves
        given: dict[str, Any] = dict(zip(learnt, values, strict=True))
        learning = neuron._replace(**given)
        c, steps = Constants.of(learning, current), []
        for x_t, nothing in zip(current, carried, strict=True):
            h, before = charge(x_t, v, m, c, learning)
            s, v, m = discharge(h, before, c, learning)
            v = v + nothing
            steps.append((s, v, h, before))
        spikes, trace, h, before = map(torch.stack, zip(*steps, strict=True))
        found = spikes, v, m, trace
    grad = upstream.spikes.to(norm.wide)
    grads = (grad, upstream.v_last, upstream.m_last, upstream.trace)
    asked = [torch.zeros_like(f) if g is None else g for f, g in zip(found, grads, strict=True)]
    own, by_v, by_m, carry, *by_learnt = torch.autograd.grad(
        found, leaves, asked, materialize_grads=True
    )
    for field, value in ((out.v_init, by_v), (out.m_init, by_m)):
        if field is not None:
            field.copy_(value)
    if out.parameters is not None:
        by_name = dict(zip(learnt, by_learnt, strict=True))
        for row, name in zip(out.parameters, PARAMETERS, strict=False):
            row.copy_(by_name.get(name, row))
    if out.probe is not None:
        out.probe.copy_(_observed(grad, own, carry, h, before, neuron))
    _behind(norm, own, upstream, count, sums, out)


def _behind(
    norm: _Norm, own: Tensor, upstream: Upstream, count: float, sums: Tensor | None, out: Gradients
) -> None:
    """What follows from the gradient through the neuron."""
    dx = own if upstream.current is None else own + upstream.current.to(norm.wide)
    if out.dx is not None:
        out.dx.copy_(dx)
    if norm.xhat is not None:
        walked = norm.sums(dx)
        if out.sums is not None:
            out.sums.copy_(walked)
        if out.dy is not None:
            out.dy.copy_(norm.back(dx, walked if sums is None else sums, count))
    if out.step_gain is not None:
        out.step_gain.copy_((dx * norm.z).flatten(1).sum(1))


def _begun(inputs: Inputs, current: Tensor, step: Step) -> list[Tensor]:
    """The states before the window."""
    if inputs.v_init is not None:
        return list(inputs.v_init.to(current.dtype))
    return [torch.full_like(current[0], start) for start in step.starts]


def _constants(neuron: Neuron, step: Step, current: Tensor) -> list[Tensor]:
    if neuron.constants is None:
        return []
    rows = neuron.constants.view(len(step.constants), -1)
    return [along_channels(row if len(row) > 1 else row[0], current, current.dtype) for row in rows]  # type: ignore[misc]


def _own_forward(current: Tensor, inputs: Inputs, neuron: Neuron, step: Step, out: Outputs) -> None:
    add, constants = inputs.spike_add, _constants(neuron, step, current)
    states = _begun(inputs, current, step)
    for t, x_t in enumerate(current):
        s, states = step.forth(x_t, states, constants)
        out.spikes[t] = s if add is None else s + add[t].to(s.dtype)
        if out.trace is not None:
            out.trace[t] = states[0]
    if out.v_last is not None:
        out.v_last.copy_(torch.stack(states))


def _own_backward(
    norm: _Norm, upstream: Upstream, inputs: Inputs, neuron: Neuron, step: Step, out: Gradients
) -> Tensor:
    """The gradient by the current; what else there is of the walk back is filled in."""
    current, constants = norm.current, _constants(neuron, step, norm.current)
    before = [_begun(inputs, current, step)]
    for x_t in current[:-1]:
        before.append(step.forth(x_t, before[-1], constants)[1])
    grad = upstream.spikes.to(norm.wide)
    last = upstream.v_last
    by = [torch.zeros_like(v) for v in before[0]] if last is None else list(last.to(norm.wide))
    own = torch.empty_like(current)
    learnt = torch.zeros(neuron.rows, neuron.parameter_size, dtype=norm.wide, device=current.device)
    others = [d for d in range(current.dim() - 1) if d != 1]  # all but channels
    for t in reversed(range(len(current))):
        if upstream.trace is not None:
            by[0] = by[0] + upstream.trace[t]
        walked = step.back(current[t], before[t], constants, (grad[t], *by))
        if out.probe is not None:
            fields = (
                grad[t].square(), walked.x.square(), by[0].square(), walked.jump.abs(), walked.unit < REACH,
                walked.spikes, ~walked.x.isfinite(),
            )  # fmt: skip
            *totals, nonfinite = [field.to(norm.wide).sum() for field in fields]
            largest = walked.x.abs().nan_to_num(0.0, 0.0).amax()
            out.probe[t] = torch.stack([*totals, largest, nonfinite])
        for row, by_constant in zip(learnt, walked.constants, strict=True):
            row += by_constant.sum(others if len(row) > 1 else None)
        own[t], by = walked.x, list(walked.states)
    if out.v_init is not None:
        out.v_init.copy_(torch.stack(by))
    if out.parameters is not None:
        out.parameters.copy_(learnt)
    return own


def _observed(
    grad: Tensor, own: Tensor, carry: Tensor, h: Tensor, m: Tensor, neuron: Neuron
) -> Tensor:
    """A probe, in the columns of ``arguments.PROBE_FIELDS``."""
    c, h = Constants.of(neuron, h), h.detach().requires_grad_()
    with _autograd():
        s, v, _ = discharge(h, m, c, neuron)
    (jump,) = torch.autograd.grad(v, h, torch.ones_like(v))
    if neuron.reset == "delayed_hard":  # this step's reset, which the next one applies
        jump = 1 - s
    if not neuron.is_binary:
        z = h / c.threshold
        outside = (z < 0) | (z > neuron.levels)
    else:
        outside = unit_slope(neuron.shape, (h - c.level(m, neuron)) / c.width) < REACH
    fields = grad.square(), own.square(), carry.square(), (c.decay * jump).abs(), outside, s
    sums = [field.to(h.dtype).flatten(1).sum(1) for field in (*fields, ~own.isfinite())]
    largest = own.abs().nan_to_num(0.0, 0.0).flatten(1).amax(1)
    return torch.stack([*sums[:-1], largest, sums[-1]], 1)


def channel_statistics(y: Tensor, mean: Tensor, var: Tensor, running: Running | None) -> None:
    """Fill mean and biased variance of each channel of y [T, B, C, ...]; running statistics move towards them."""
    dims = [d for d in range(y.dim()) if d != 2]
    found = torch.var_mean(y.to(membrane_dtype(y.dtype)), dim=dims, correction=0)
    var.copy_(found[0])
    mean.copy_(found[1])
    if running is not None:
        update_running(mean, var, y.numel() // y.shape[2], running)


def update_running(mean: Tensor, var: Tensor, count: int, running: Running) -> None:
    """As torch's batch norm does it: the running variance is the unbiased one. ``count``: elements a channel."""
    running_mean, running_var, momentum = running
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
