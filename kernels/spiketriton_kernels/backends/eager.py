"""The kernels' algorithm in eager PyTorch: any device, any floating dtype, one step at a time.

Used where neither Triton nor a C++ compiler serves: float64 on a GPU, machines without a compiler, surrogates of one's
own. It is the definition of what ``backends`` describes in words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..arguments import along_channels
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
from ..surrogate import REACH, unit_primitive, unit_slope


class _Constants(NamedTuple):
    """``PARAMETERS``, shaped to broadcast against a step."""

    decay: Any
    threshold: Any
    width: Any
    gain: Any
    rho: Any
    beta: Any

    @staticmethod
    def of(neuron: Neuron, x: torch.Tensor) -> _Constants:
        wide = membrane_dtype(x.dtype)
        return _Constants(*[along_channels(p, x, wide) for p in neuron.parameters])


class _Step(NamedTuple):
    """A step of a window: the potential, both states before it, the spikes, the second state after it."""

    h: torch.Tensor
    v: torch.Tensor
    m: torch.Tensor
    s: torch.Tensor
    after: torch.Tensor


class _Back(NamedTuple):
    """The gradients of one step; ``jump`` is dv/dh, ``unit`` the surrogate without its height."""

    h: torch.Tensor
    jump: torch.Tensor
    unit: torch.Tensor
    threshold: Any
    through_s: Any  # all that reaches the spike
    m: Any = 0.0  # by m before the step
    decay: Any = 0.0  # through the second state; the rows of the others likewise
    rho: Any = 0.0
    beta: Any = 0.0


# ---- the current


class _Norm:
    """The batch norm in front, of one step at a time; without one xhat is None."""

    def __init__(self, inputs: Inputs, neuron: Neuron) -> None:
        self.x, self.residual, self.neuron = inputs.x, inputs.residual, neuron
        self.wide = membrane_dtype(self.x.dtype)
        if neuron.has_norm:
            self.mean = self.channel(neuron.mean)
            self.rstd = torch.rsqrt(self.channel(neuron.var) + neuron.eps)
            self.bias = self.channel(neuron.bias) if neuron.bias is not None else 0.0
            weight = self.channel(neuron.weight) if neuron.weight is not None else 1.0
            self.scale = weight * neuron.bn_scale * self.rstd

    def channel(self, value: Any) -> Any:
        return along_channels(value, self.x, self.wide)

    def step(self, t: int) -> tuple[Any, Any, Any]:
        """(current, z, xhat) of one step: z is the normalised current before gain and residual."""
        current = z = self.x[t].to(self.wide)
        xhat = None
        if self.neuron.has_norm:
            centred = current - self.mean
            xhat = centred * self.rstd
            current = z = centred * self.scale + self.bias
            if self.neuron.step_gain is not None:
                current = self.neuron.step_gain[t] * current
        if self.residual is not None:
            current = current + self.residual[t].to(self.wide)
        return current, z, xhat


# ---- one step forward


def _filtered(
    m: torch.Tensor, current: torch.Tensor, c: _Constants, neuron: Neuron
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the membrane is charged from, second state): of CuBa-LIF both are the synaptic current."""
    if neuron.kind != "cuba":
        return current, m
    m = c.rho * m + current
    return m, m


def _charge(v: torch.Tensor, current: torch.Tensor, c: _Constants, neuron: Neuron) -> torch.Tensor:
    """h of a step from the membrane before it; a delayed reset comes first."""
    if neuron.leaks_to_reset:
        return v + c.gain * current - (1 - c.decay) * (v - neuron.v_reset)
    if neuron.reset == "delayed_hard":
        v = torch.where(v >= c.threshold, 0.0, v)
    h = c.decay * v + c.gain * current
    if neuron.reset == "delayed_soft":
        return h - c.threshold * (v >= c.threshold).to(h.dtype)
    return h


def _level_of(h: torch.Tensor, c: _Constants) -> torch.Tensor:
    """h / threshold, by a tensor: a GPU multiplies by the reciprocal of a number, which moves I-LIF's ties."""
    return h / (c.threshold + torch.zeros_like(h))


def _discharge(
    h: torch.Tensor, m: torch.Tensor, c: _Constants, neuron: Neuron
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(spikes, membrane, second state) after a step with the potential h and the second state m before it."""
    if neuron.kind == "ilif":
        s = torch.round(_level_of(h, c).clamp(0, neuron.levels))
        return s, h - c.threshold * s, m
    if neuron.kind == "clif":
        s = (h >= c.threshold).to(h.dtype)
        m = m * torch.sigmoid((1 - c.decay) * h) + s
        return s, h - s * (c.threshold + torch.sigmoid(m)), m
    level = _level(m, c, neuron)
    fired = h >= level
    s = fired.to(h.dtype)
    v = h
    if neuron.reset == "soft":
        v = h - level * s
    elif neuron.reset == "hard":
        v = torch.where(fired, neuron.v_reset, h)
    return s, v, c.rho * m + (1 - c.rho) * s if neuron.kind == "alif" else m


def _level(m: torch.Tensor, c: _Constants, neuron: Neuron) -> Any:
    return c.threshold + c.beta * m if neuron.kind == "alif" else c.threshold


def _states(inputs: Inputs, neuron: Neuron) -> tuple[torch.Tensor, torch.Tensor]:
    """Both states before the window."""
    x, v, m, *_ = inputs
    wide = membrane_dtype(x.dtype)
    if v is None:
        v = torch.full_like(x[0], neuron.v_start, dtype=wide)
    return v, torch.zeros_like(v) if m is None else m


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """``saved`` stays as it is: the walk back replays the whole window."""
    x, add = inputs.x, inputs.spike_add
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    c, norm = _Constants.of(neuron, x), _Norm(inputs, neuron)
    v, m = _states(inputs, neuron)
    for t in range(x.shape[0]):
        current = norm.step(t)[0]
        charging, m = _filtered(m, current, c, neuron)
        s, v, m = _discharge(_charge(v, charging, c, neuron), m, c, neuron)
        out.spikes[t] = s if add is None else s + add[t].to(s.dtype)
        if out.trace is not None:
            out.trace[t] = v
        if out.current is not None:
            out.current[t] = current
    if out.v_last is not None:
        out.v_last.copy_(v)
    if out.m_last is not None:
        out.m_last.copy_(m)


# ---- one step back, by the kind: upstream grad, by_v = dL/dv and by_m = dL/dm after the step


def _threshold_back(
    step: _Step, grad: torch.Tensor, by_v: torch.Tensor, by_m: torch.Tensor, c: _Constants, neuron: Neuron
) -> _Back:  # fmt: skip
    """LIF, CuBa-LIF and ALIF, which fire where h reaches the level."""
    h, _, m, s, _ = step
    adapts = neuron.kind == "alif"
    level = _level(m, c, neuron)
    unit = unit_slope(neuron.shape, (h - level) / c.width)
    slope = neuron.height * unit
    if adapts:
        grad = grad + (1 - c.rho) * by_m
    jump, through_s = torch.ones_like(h), grad
    by_level: float | torch.Tensor = 0.0
    if neuron.reset == "hard":
        jump = 1 - s
        if not neuron.detach_reset:
            jump = jump + (neuron.v_reset - h) * slope
            through_s = grad + by_v * (neuron.v_reset - h)
    elif neuron.reset == "soft":
        by_level = by_v * -s
        if not neuron.detach_reset:
            jump = jump - level * slope
            through_s = grad - by_v * level
    by_level = by_level - through_s * slope
    back = _Back(grad * slope + by_v * jump, jump, unit, by_level, through_s)
    if not adapts:
        return back
    return back._replace(m=c.rho * by_m + c.beta * by_level, rho=by_m * (m - s), beta=by_level * m)


def _integer_back(
    step: _Step, grad: torch.Tensor, by_v: torch.Tensor, by_m: torch.Tensor, c: _Constants, neuron: Neuron
) -> _Back:  # fmt: skip
    """I-LIF: s follows h / threshold where it is not clamped."""
    h, _, _, s, _ = step
    z = _level_of(h, c)
    inside = ((z >= 0) & (z <= neuron.levels)).to(h.dtype)
    slope = inside / c.threshold
    through, jump = grad, torch.ones_like(h)
    if not neuron.detach_reset:
        through, jump = grad - by_v * c.threshold, 1 - c.threshold * slope
    by_threshold = -(through * slope * z) - by_v * s
    return _Back(through * slope + by_v, jump, inside, by_threshold, through)


def _complementary_back(
    step: _Step, grad: torch.Tensor, by_v: torch.Tensor, by_m: torch.Tensor, c: _Constants, neuron: Neuron
) -> _Back:  # fmt: skip
    """CLIF: h reaches v also through m, which the reset reads."""
    h, _, m, s, after = step
    unit = unit_slope(neuron.shape, (h - c.threshold) / c.width)
    slope = neuron.height * unit
    g, q = torch.sigmoid(after), torch.sigmoid((1 - c.decay) * h)
    deeper = s * g * (1 - g)
    by_m = by_m - by_v * deeper
    through = grad + by_m
    bends = m * q * (1 - q)  # dm/dh is (1 - decay) times it, plus the slope
    jump = 1 - deeper * (bends * (1 - c.decay) + slope)
    if not neuron.detach_reset:
        through = through - by_v * (c.threshold + g)
        jump = jump - (c.threshold + g) * slope
    bend = by_m * bends
    by_h = through * slope + by_v + bend * (1 - c.decay)
    by_threshold = -through * slope - by_v * s
    return _Back(by_h, jump, unit, by_threshold, through, by_m * q, decay=-bend * h)


_BACK = {
    "lif": _threshold_back,
    "alif": _threshold_back,
    "cuba": _threshold_back,
    "ilif": _integer_back,
    "clif": _complementary_back,
}


# ---- the walk back


def _replay(inputs: Inputs, c: _Constants, norm: _Norm, neuron: Neuron) -> list[_Step]:
    v, m = _states(inputs, neuron)
    window = []
    for t in range(inputs.x.shape[0]):
        charging, filtered = _filtered(m, norm.step(t)[0], c, neuron)
        h = _charge(v, charging, c, neuron)
        s, after_v, after_m = _discharge(h, filtered, c, neuron)
        window.append(_Step(h, v, m, s, after_m))
        v, m = after_v, after_m
    return window


def backward(
    upstream: Upstream,
    inputs: Inputs,
    saved: torch.Tensor | None,
    neuron: Neuron,
    count: float,
    sums: torch.Tensor | None,
    out: Gradients,
) -> None:
    """Replay the window, walk back, fill what ``out`` holds tensors for."""
    x, wide = inputs.x, membrane_dtype(inputs.x.dtype)
    c, norm = _Constants.of(neuron, x), _Norm(inputs, neuron)
    window = _replay(inputs, c, norm, neuron)
    for total in (out.sums, out.parameters):
        if total is not None:
            total.zero_()
    second_pass = out.dy is not None and count > 0 and sums is None
    kept = out.dy if second_pass and out.dx is None else out.dx
    dy = None if second_pass else out.dy
    means = (0.0, 0.0) if sums is None else tuple(norm.channel(s / count) for s in sums)
    by_v = torch.zeros_like(window[0].h) if upstream.v_last is None else upstream.v_last
    by_m = torch.zeros_like(by_v) if upstream.m_last is None else upstream.m_last
    for t in range(x.shape[0] - 1, -1, -1):
        step, grad = window[t], upstream.spikes[t].to(wide)
        if upstream.trace is not None:
            by_v = by_v + upstream.trace[t]
        back = _BACK[neuron.kind](step, grad, by_v, by_m, c, neuron)
        current, z, xhat = norm.step(t)
        dx = own = c.gain * back.h
        if neuron.kind == "cuba":
            dx = own = own + by_m
            back = back._replace(m=c.rho * own, rho=own * step.m)
            current = step.after  # which the gain multiplied
        if upstream.current is not None:
            dx = own + upstream.current[t].to(wide)
        if kept is not None:
            kept[t] = dx
        if neuron.has_norm:
            dz = dx if neuron.step_gain is None else neuron.step_gain[t] * dx
            if dy is not None:
                dy[t] = norm.scale * (dz - means[0] - xhat * means[1])
            if out.sums is not None:
                out.sums[0] += _per_channel(dz)
                out.sums[1] += _per_channel(dz * xhat)
            if out.step_gain is not None:
                out.step_gain[t] = (dx * z).sum()
        if out.probe is not None:
            out.probe[t] = _observed(step, back, grad, own, by_v, c, neuron)
        by_m = back.m
        by_v, v = c.decay * back.h, step.v
        if neuron.reset.startswith("delayed"):  # what the step before left to this one
            fired = step.v >= c.threshold
            if neuron.reset == "delayed_hard":
                by_v, v = torch.where(fired, 0.0, by_v), torch.where(fired, 0.0, v)
            else:
                back = back._replace(threshold=back.threshold - fired.to(wide) * back.h)
        if out.parameters is not None:
            terms = _parameter_terms(step, back, v, current, c, neuron)
            for row, name in zip(out.parameters, PARAMETERS, strict=False):
                term = terms[name]
                if isinstance(term, torch.Tensor):
                    row += _per_channel(term) if row.numel() > 1 else term.sum()
    if out.v_init is not None:
        out.v_init.copy_(by_v)
    if out.m_init is not None:
        out.m_init.copy_(torch.as_tensor(by_m))
    if second_pass:
        norm_backward(kept, x, neuron, out.sums, count, out.dy)


def _per_channel(value: torch.Tensor) -> torch.Tensor:
    """The sum of one time step [B, C, ...] over a channel's elements."""
    dims = [d for d in range(value.dim()) if d != 1]
    return value.sum(dims) if value.dim() > 1 else value.sum().view(1)


def _parameter_terms(
    step: _Step, back: _Back, v: torch.Tensor, current: torch.Tensor, c: _Constants, neuron: Neuron
) -> dict[str, Any]:
    """dL/dparameter of each element, v being the membrane that the leak acted on."""
    by_width: Any = 0.0
    if neuron.kind != "ilif" and isinstance(neuron.width, torch.Tensor):
        z = (step.h - _level(step.m, c, neuron)) / c.width
        relaxed = unit_primitive(neuron.shape, z) - z * back.unit
        by_width = back.through_s * (neuron.height * relaxed)
    return dict(
        decay=back.h * (v - neuron.v_reset if neuron.leaks_to_reset else v) + back.decay,
        threshold=back.threshold,
        width=by_width,
        gain=back.h * current,
        rho=back.rho,
        beta=back.beta,
    )


def _observed(
    step: _Step, back: _Back, grad: torch.Tensor, own: torch.Tensor, by_v: torch.Tensor, c: _Constants, neuron: Neuron
) -> torch.Tensor:  # fmt: skip
    """One row of a probe, in the order of ``arguments.PROBE_FIELDS``."""
    jump = back.jump
    if neuron.reset == "delayed_hard":  # this step's reset, which the next one applies
        jump = 1 - step.s
    fields = (
        grad.square().sum(),
        own.square().sum(),
        by_v.square().sum(),
        (c.decay * jump).abs().sum(),
        (back.unit < REACH).sum(),
        step.s.sum(),
        own.abs().nan_to_num(0.0, 0.0).max(),
        (~torch.isfinite(own)).sum(),
    )
    return torch.stack([field.to(torch.float32) for field in fields])


def norm_backward(dx, y, neuron: Neuron, sums, count, dy) -> None:
    """Fill dy, which may be dx itself, with dL/dy of batch norm from dL/dx and the channel sums."""
    norm, dz = _Norm(Inputs(y), neuron), dx.to(membrane_dtype(y.dtype))
    if neuron.step_gain is not None:
        dz = neuron.step_gain.view(-1, *[1] * (y.dim() - 1)) * dz
    xhat = (y.to(dz.dtype) - norm.mean) * norm.rstd
    mean_dz, mean_dz_xhat = (norm.channel(total / count) for total in sums)
    dy.copy_(norm.scale * (dz - mean_dz - xhat * mean_dz_xhat))


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
