"""One way into the kernels for every neuron: passes called directly, or as operators where something traces them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import forward_ad

from . import operators, passes
from .backends.eager import update_running
from .gradient import ARGUMENTS, SAVED, gradients
from .layout import dense
from .neuron import Call, Emit, Gradients, Inputs, Neuron, Outputs, Running, Upstream

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NOTHING_SAVED: dict[str, torch.Tensor | None] = dict.fromkeys(SAVED)


def traced(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether something looks at operators: a compiler, export, vmap, a dispatch mode, a tensor of its own class."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    ):
        return True
    return any([type(t) not in _PLAIN or t.is_meta for t in tensors])


def _recorded(pass_: Callable[..., Any]) -> Callable[..., Any]:
    """The pass, which a profiler that runs sees under the name of its operator."""
    if not torch.autograd._profiler_enabled():
        return pass_

    def run(*args: Any) -> Any:
        with torch.profiler.record_function(f"spiketriton::{pass_.__name__}"):
            return pass_(*args)

    return run


class _Fire(torch.autograd.Function):
    """A call's passes as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, asked: _Asked, *_: torch.Tensor) -> Any:
        """The tensors are those in ``asked``: autograd has to see them as arguments, each of which costs time."""
        neuron, call, running, given = asked
        ctx.names = tuple(given)
        neuron, out = _run(neuron, call, running, given)
        if neuron.mean is not None:  # measured on the way, where none was given
            given = given | {"mean": neuron.mean, "var": neuron.var}  # type: ignore[assignment]
        kept = [name for name in given if name in _NOTHING_SAVED]
        ctx.neuron, ctx.call, ctx.kept = neuron, call, kept
        ctx.save_for_backward(out.saved, *[given[name] for name in kept])
        ctx.set_materialize_grads(False)
        return out.spikes, out.v_last, out.m_last, out.trace, None, out.current

    @staticmethod
    def backward(
        ctx: Any, grad_s: Any, grad_v: Any, grad_m: Any, grad_trace: Any, _: Any, grad_current: Any
    ) -> Any:
        upstream = Upstream(grad_s, grad_v, grad_m, grad_trace, grad_current)
        if grad_s is None and all([grad is None for grad in upstream]):
            return (None,) * len(ctx.needs_input_grad)
        saved, *rest = ctx.saved_tensors
        given = _NOTHING_SAVED | dict(zip(ctx.kept, rest, strict=True))
        call, x, neuron = ctx.call, rest[0], ctx.neuron
        if grad_s is None:
            upstream = upstream._replace(spikes=torch.zeros_like(x))
        if torch.is_grad_enabled():  # create_graph=True: the operators refuse to be differentiated
            walk = operators.walk(upstream, saved, given, neuron.words(call), neuron.floats())
            norm_backward: Callable[..., Any] = operators.norm_backward
        else:
            inputs = Inputs(x, given["v_init"], given["m_init"], given["residual"])

            def walk(emit: Emit, count: float, sums: torch.Tensor | None) -> Gradients:
                return _recorded(passes.neuron_backward)(
                    upstream, inputs, saved, neuron, emit, count, sums
                )

            norm_backward = passes.norm_backward
        needs = ctx.needs_input_grad[1:]
        found = gradients(
            grad_s, given, ctx.names, needs, call, neuron.eps, neuron.bn_scale, walk, norm_backward
        )
        return None, *found


_Asked = tuple[Neuron, Call, Running | None, dict[str, torch.Tensor]]
"""A call, and its tensors by their names in ``ARGUMENTS``."""


def _run(
    neuron: Neuron, call: Call, running: Running | None, given: dict[str, torch.Tensor]
) -> tuple[Neuron, Outputs]:
    """The forward pass itself."""
    get = given.get
    inputs = Inputs(given["x"], get("v_init"), get("m_init"), get("residual"), get("spike_add"))
    return _recorded(passes.neuron_forward)(inputs, neuron, call, running)


def fire(
    x: torch.Tensor,
    neuron: Neuron,
    call: Call,
    running: Running | None = None,
    **arguments: torch.Tensor | None,
) -> Outputs:
    """What the call wants of checked arguments.

    A call with ``batch_statistics`` and no mean measures them, and moves ``running`` towards them.
    """
    x = dense(x)
    given = {"x": x} | neuron.given()
    for name, value in arguments.items():
        if value is not None:
            given[name] = value
    tensors = given.values()
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        _refuse_tangents(tensors)
    learns = torch.is_grad_enabled() and any([value.requires_grad for value in tensors])
    if learns:
        call = Call(*call[:2], True, *call[3:])  # save
    if traced(tensors):
        if call.batch_statistics and "mean" not in given:
            given["mean"], given["var"] = channel_statistics(x, running)
        spikes, v_last, m_last, trace, _, current = operators.neuron_forward(
            *[given.get(name) for name in ARGUMENTS], neuron.words(call), neuron.floats()
        )
        return Outputs(
            spikes,
            v_last if call.return_v else None,
            m_last if call.return_m else None,
            trace if call.return_trace else None,
            current=current if call.return_current else None,
        )
    if learns:
        return Outputs(*_Fire.apply((neuron, call, running, given), *tensors))
    return _run(neuron, call, running, given)[1]


def channel_statistics(
    y: torch.Tensor, running: Running | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``passes.channel_statistics`` of a dense y, without gradient."""
    with torch.no_grad():
        y = y.detach()
        if not traced((y,)):
            return _recorded(passes.channel_statistics)(y, running)
        mean, var = operators.channel_statistics(y)
        if running is not None:
            update_running(mean, var, y.numel() // y.shape[2], running)
        return mean, var


def _refuse_tangents(tensors: Iterable[torch.Tensor]) -> None:
    """PyTorch would take the tangents of a custom operator's results for 0, and say nothing."""
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            "spiketriton's fused neurons have no forward-mode derivative (jvp); accepted: backward()"
        )
