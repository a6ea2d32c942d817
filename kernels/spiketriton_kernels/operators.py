"""The passes as PyTorch operators, which torch.compile, export, vmap and dispatch modes see as wholes.

An operator costs several times what its pass costs on a small tensor, so ``fire`` takes this way only where something
traces or transforms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from . import passes
from .gradient import ARGUMENTS, SAVED, Walk, gradients
from .neuron import FLOATS, Call, Emit, Gradients, Inputs, Neuron, Outputs, Upstream


def _filled(x: torch.Tensor, found: Iterable[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
    """An operator returns an empty tensor for what its pass leaves out."""
    return tuple(x.new_empty(0) if value is None else value for value in found)


@torch.library.custom_op("spiketriton::neuron_forward", mutates_args=())
def neuron_forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    decay: torch.Tensor | None,
    threshold: torch.Tensor | None,
    width: torch.Tensor | None,
    gain: torch.Tensor | None,
    rho: torch.Tensor | None,
    beta: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    step_gain: torch.Tensor | None,
    spike_add: torch.Tensor | None,
    probe: torch.Tensor | None,
    words: str,
    floats: list[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``passes.neuron_forward``: empty where not wanted. Only the backward reads the probe."""
    tensors = (decay, threshold, width, gain, rho, beta, mean, var, weight, bias, step_gain)
    neuron = Neuron.of(x, tensors, words, floats)
    inputs = Inputs(x, v_init, m_init, residual, spike_add)
    return _filled(x, passes.neuron_forward(inputs, neuron, Call.of(words))[1])  # type: ignore[return-value]


@neuron_forward.register_fake
def _(
    x, v_init, m_init, residual, decay, threshold, width, gain, rho, beta, mean, var, weight, bias, step_gain,
    spike_add, probe, words, floats,
):  # fmt: skip
    tensors = (decay, threshold, width, gain, rho, beta, mean, var, weight, bias, step_gain)
    neuron = Neuron.of(x, tensors, words, floats)
    return _filled(x, passes.allocate_forward(x, neuron, Call.of(words)))


def _backward_results(x: torch.Tensor, out: Gradients) -> tuple[torch.Tensor, ...]:
    return _filled(x, (getattr(out, name) for name in Emit._fields))


@torch.library.custom_op("spiketriton::neuron_backward", mutates_args=())
def neuron_backward(
    grad_s: torch.Tensor,
    grad_v_last: torch.Tensor | None,
    grad_m_last: torch.Tensor | None,
    grad_trace: torch.Tensor | None,
    grad_current: torch.Tensor | None,
    saved: torch.Tensor | None,
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    decay: torch.Tensor | None,
    threshold: torch.Tensor | None,
    width: torch.Tensor | None,
    gain: torch.Tensor | None,
    rho: torch.Tensor | None,
    beta: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    step_gain: torch.Tensor | None,
    sums: torch.Tensor | None,
    count: float,
    emit: str,
    words: str,
    floats: list[float],
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:  # fmt: skip
    """``passes.neuron_backward``. ``emit`` names Emit's fields; what it does not ask for comes back empty."""
    tensors = (decay, threshold, width, gain, rho, beta, mean, var, weight, bias, step_gain)
    out = passes.neuron_backward(
        Upstream(grad_s, grad_v_last, grad_m_last, grad_trace, grad_current),
        Inputs(x, v_init, m_init, residual),
        saved,
        Neuron.of(x, tensors, words, floats),
        Emit.decode(emit),
        count,
        sums,
    )
    return _backward_results(x, out)  # type: ignore[return-value]


@neuron_backward.register_fake
def _(
    grad_s, grad_v_last, grad_m_last, grad_trace, grad_current, saved, x, v_init, m_init, residual, decay, threshold,
    width, gain, rho, beta, mean, var, weight, bias, step_gain, sums, count, emit, words, floats,
):  # fmt: skip
    tensors = (decay, threshold, width, gain, rho, beta, mean, var, weight, bias, step_gain)
    neuron = Neuron.of(x, tensors, words, floats)
    return _backward_results(x, passes.allocate_backward(x, neuron, Emit.decode(emit)))


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "spiketriton's fused neurons have no double backward; use multistep_lif_reference for second derivatives"
    )


neuron_backward.register_autograd(_no_double_backward)


@torch.library.custom_op("spiketriton::norm_backward", mutates_args=())
def norm_backward(
    dx: torch.Tensor,
    y: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    step_gain: torch.Tensor | None,
    sums: torch.Tensor,
    eps: float,
    bn_scale: float,
    count: float,
) -> torch.Tensor:
    """``passes.norm_backward``."""
    return passes.norm_backward(dx, y, mean, var, weight, step_gain, sums, eps, bn_scale, count)


@norm_backward.register_fake
def _(dx, y, mean, var, weight, step_gain, sums, eps, bn_scale, count):
    return torch.empty_like(y)


norm_backward.register_autograd(_no_double_backward)


@torch.library.custom_op("spiketriton::channel_statistics", mutates_args=())
def channel_statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel (dim 2) of y [T, B, C, ...] over everything else, [C] each."""
    return passes.channel_statistics(y)


@channel_statistics.register_fake
def _(y):
    return passes.statistics_like(y)


def _setup_context(ctx, inputs, output):
    *tensors, words, floats = inputs
    named = dict(zip(ARGUMENTS, tensors, strict=True))
    ctx.names = [name for name in SAVED if named[name] is not None]
    saved = output[Outputs._fields.index("saved")]
    ctx.save_for_backward(saved, *(named[name] for name in ctx.names))
    ctx.words, ctx.floats = words, floats
    ctx.set_materialize_grads(False)


def walk(
    upstream: Upstream,
    saved: torch.Tensor | None,
    given: Mapping[str, torch.Tensor | None],
    words: str,
    floats: list[float],
) -> Walk:
    """The walk back of a call by its operator."""

    def back(emit: Emit, count: float, sums: torch.Tensor | None) -> Gradients:
        fields = neuron_backward(
            *upstream, saved, **given, sums=sums, count=count, emit=emit.encode(), words=words, floats=floats
        )  # fmt: skip
        named = zip(Emit._fields, fields, strict=True)
        return Gradients(**{name: field for name, field in named if getattr(emit, name)})

    return back


def _backward(ctx, grad_s, grad_v_last, grad_m_last, grad_trace, _grad_saved, grad_current):
    saved, *rest = ctx.saved_tensors
    given = dict.fromkeys(SAVED) | dict(zip(ctx.names, rest, strict=True))
    call, numbers = Call.of(ctx.words), dict(zip(FLOATS, ctx.floats, strict=True))
    upstream = Upstream(  # without those of the empty tensors that stand for what was not wanted
        grad_s,
        grad_v_last if call.return_v else None,
        grad_m_last if call.return_m else None,
        grad_trace if call.return_trace else None,
        grad_current if call.return_current else None,
    )
    if all(grad is None for grad in upstream):
        return (None,) * len(ctx.needs_input_grad)
    if grad_s is None:
        upstream = upstream._replace(spikes=torch.zeros_like(rest[0]))
    back = walk(upstream, saved, given, ctx.words, ctx.floats)
    needs = dict(zip(ARGUMENTS, ctx.needs_input_grad, strict=False))
    eps, bn_scale = numbers["eps"], numbers["bn_scale"]
    found = gradients(grad_s, given, call, eps, bn_scale, needs, back, norm_backward)
    return *found.values(), None, None


neuron_forward.register_autograd(_backward, setup_context=_setup_context)
