"""The kernels' work in eager PyTorch: the step's graph, operation by operation, forward and backward.

Used where neither Triton nor a C++ compiler serves: float64 on a GPU, machines without a compiler. The norm's
gradients, and a probe's sums, follow from those by the current as ``backends`` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arguments import along_channels
from ..neuron import Gradients, Inputs, Neuron, Outputs, Running, Upstream, membrane_dtype
from ..steps.step import Walked
from ..surrogate import REACH


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


@torch.no_grad()
def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """``saved`` stays as it is: the walk back replays the whole window."""
    x, add, step = inputs.x, inputs.spike_add, neuron.step
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    current = _Norm(inputs, neuron).current
    if out.current is not None:
        out.current.copy_(current)
    constants, states = constants_of(neuron, current), _first(inputs, neuron, current)
    for t, x_t in enumerate(current):
        s, states = step.forth(x_t, states, constants)
        out.spikes[t] = s if add is None else s + add[t].to(s.dtype)
        if out.trace is not None:
            out.trace[t] = states[0]
    if out.states is not None:
        out.states.copy_(torch.stack(states))


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
    own = _walked(norm, upstream, inputs, neuron, out)
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


def _first(inputs: Inputs, neuron: Neuron, current: Tensor) -> list[Tensor]:
    """The states before the window."""
    if inputs.states is not None:
        return list(inputs.states.to(current.dtype))
    return [torch.full_like(current[0], start) for start in neuron.starts]


def constants_of(neuron: Neuron, current: Tensor) -> list[Tensor]:
    """As tensors: a GPU multiplies by the reciprocal of a number that it is to divide by, which moves ties."""
    wide, found = current.dtype, []
    for value in neuron.constants:
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=wide, device=current.device)
        found.append(
            along_channels(value if value.numel() > 1 else value.reshape(()), current, wide)
        )
    return found  # type: ignore[return-value]


def _walked(
    norm: _Norm, upstream: Upstream, inputs: Inputs, neuron: Neuron, out: Gradients
) -> Tensor:
    """The gradient by the current; what else there is of the walk back is filled in."""
    current, step, constants = norm.current, neuron.step, constants_of(neuron, norm.current)
    before = [_first(inputs, neuron, current)]
    for x_t in current[:-1]:
        before.append(step.forth(x_t, before[-1], constants)[1])
    grad = upstream.spikes.to(norm.wide)
    last = upstream.states
    by = [torch.zeros_like(v) for v in before[0]] if last is None else list(last.to(norm.wide))
    own = torch.empty_like(current)
    learnt = torch.zeros(neuron.rows, neuron.channels, dtype=norm.wide, device=current.device)
    others = [d for d in range(current.dim() - 1) if d != 1]  # all but channels
    for t in reversed(range(len(current))):
        if upstream.trace is not None:
            by[0] = by[0] + upstream.trace[t]
        walked = step.back(current[t], before[t], constants, (grad[t], *by))
        if out.probe is not None:
            out.probe[t] = observed(walked, grad[t], by[0])
        for row, by_constant in zip(step.rows, walked.constants, strict=True):
            if row >= 0:
                learnt[row] += by_constant.sum(others if neuron.channels > 1 else None)
        own[t], by = walked.x, list(walked.states)
    if out.states is not None:
        out.states.copy_(torch.stack(by))
    if out.constants is not None:
        out.constants.copy_(learnt)
    return own


def observed(walked: Walked, grad: Tensor, carried: Tensor) -> Tensor:
    """A probe's row, from the gradients by a step's spikes and by the first state after it."""
    fields = (
        grad.square(), walked.x.square(), carried.square(), walked.jump.abs(), walked.unit < REACH,
        walked.spikes, ~walked.x.isfinite(),
    )  # fmt: skip
    *totals, nonfinite = [field.to(grad.dtype).sum() for field in fields]
    largest = walked.x.abs().nan_to_num(0.0, 0.0).amax()
    return torch.stack([*totals, largest, nonfinite])


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
