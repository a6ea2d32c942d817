"""One way into the kernels for every neuron: passes called directly, or as operators where something traces them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import forward_ad

from ..arguments import check_call
from ..backends.eager import update_running
from ..layout import dense
from ..neuron import Call, Inputs, Neuron, Norm, Outputs, Running, Upstream, place
from . import operators, passes
from .gradient import ARGUMENTS, UNSAVED, Walk, gradients

_PLAIN = {torch.Tensor, torch.nn.Parameter}


def traced(tensors: Collection[torch.Tensor]) -> bool:
    """Whether something looks at operators: a compiler, export, vmap, a dispatch mode, a tensor of its own class."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    ):
        return True
    return not _PLAIN.issuperset(map(type, tensors)) or next(iter(tensors)).is_meta


def leaves() -> bool:
    """Whether a call is written down for another program, which has plain operators alone: the definition serves.

    So torch.export, torch.jit.trace and torch.onnx, which need no other file then; a strict export, by dynamo, holds
    the operators.
    """
    if torch._C._get_tracing_state() is not None:
        return True
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


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
    def forward(ctx: Any, asked: _Asked, *tensors: torch.Tensor) -> Any:
        """The tensors are those in ``asked``: autograd has to see them as arguments, each of which costs time."""
        inputs, ctx.neuron, ctx.call, running, measures, ctx.names = asked
        out = _recorded(passes.neuron_forward)(inputs, ctx.neuron, ctx.call, running, measures)
        if ctx.names[-1] in UNSAVED:
            named = zip(ctx.names, tensors, strict=True)
            tensors = tuple(tensor for name, tensor in named if name not in UNSAVED)
        ctx.save_for_backward(out.saved, *tensors)
        ctx.set_materialize_grads(False)
        alone = out.states is out.trace is out.current is None
        return out[:1] if alone else (*out[:3], None, out.current)

    @staticmethod
    def backward(ctx: Any, grad_s: Any, *grads: Any) -> Any:
        upstream = Upstream(grad_s, *grads[:2], *grads[3:])
        if grad_s is None and all([grad is None for grad in grads]):
            return (None,) * len(ctx.needs_input_grad)
        saved, *rest = ctx.saved_tensors
        given = dict(zip(ctx.names, rest, strict=False))  # those of UNSAVED come last
        call, x, neuron, get = ctx.call, given["x"], ctx.neuron, given.get
        if neuron.mean is not None:  # perhaps measured on the way
            given["mean"], given["var"] = neuron.mean, neuron.var
        if grad_s is None:
            upstream = upstream._replace(spikes=torch.zeros_like(x))
        walk: Walk
        if torch.is_grad_enabled():  # create_graph=True: the operator refuses to be differentiated
            stacked = given | stack(neuron)
            walk = operators.walk(upstream, saved, stacked, neuron.words(call), neuron.floats())
        else:
            inputs = Inputs(x, get("states"), get("residual"))
            back = _recorded(passes.neuron_backward)
            walk = functools.partial(back, upstream, inputs, saved, neuron)
        needs = ctx.needs_input_grad[1:]
        rows = {} if neuron.is_plain else {place(i): row for i, row in enumerate(neuron.step.rows)}
        found = gradients(grad_s, given, ctx.names, needs, call, neuron.bn_scale, rows, walk)
        return None, *found


_Asked = tuple[Inputs, Neuron, Call, Running | None, bool, tuple[str, ...]]
"""What a forward pass is given, and the names of the call's tensors in ``ARGUMENTS``."""

_apply = super(torch.autograd.Function, _Fire).apply
"""``_Fire.apply`` without its look for what ``traced`` has found not to be there."""


def fire(
    inputs: Inputs,
    neuron: Neuron,
    call: Call,
    norm: Norm | None = None,
    probe: torch.Tensor | None = None,
) -> Outputs:
    """What the call wants: check, normalise where there is a norm, add the residual, fire."""
    given = check_call(inputs, neuron, norm, probe)
    x = given["x"] = dense(inputs.x)
    if x is not inputs.x:
        inputs = inputs._replace(x=x)
    tensors = given.values()
    learns = torch.is_grad_enabled() and any([value.requires_grad for value in tensors])
    group, running, mean, var = "", None, None, None
    if norm is not None:
        mean, var, group, running = _statistics(x, norm)
    if learns or norm is not None:
        call = Call(group, norm is not None and norm.training, learns, *call[3:])
    if traced(tensors):
        return _by_operator(given, neuron, call, norm, mean, var, running)
    if forward_ad._current_level >= 0:
        refuse_tangents(tensors)
    measures = norm is not None and mean is None
    if norm is not None:
        if measures:
            mean, var = passes.statistics_like(x)
        neuron = neuron.behind(norm, mean, var)
    if len(given) > 1:
        neuron = neuron.adapted(x, given)
    if learns:
        asked = inputs, neuron, call, running, measures, tuple(given)
        return Outputs(*_apply(asked, *tensors))
    return _recorded(passes.neuron_forward)(inputs, neuron, call, running, measures)


def _statistics(
    y: torch.Tensor, norm: Norm
) -> tuple[torch.Tensor | None, torch.Tensor | None, str, Running | None]:
    """Mean and variance that a norm takes, None where the call measures them; who shares them; what it moves."""
    mean, var, group = norm.running_mean, norm.running_var, norm.process_group
    if not norm.training:
        return mean, var, "", None
    running = None if mean is None or var is None else (mean, var, norm.momentum)
    if group is None:
        return None, None, "", running
    with torch.no_grad():
        mean, var = _over_ranks(*channel_statistics(y, None), group)
        if running is not None:
            update_running(mean, var, norm.count(y), running)
    return mean, var, group.group_name, None


def _over_ranks(
    mean: torch.Tensor, var: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of equal shares, joined (Chan et al. 1979): one all-gather of [2, C]."""
    own = torch.stack([mean, var])
    shares = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shares, own, group=group)
    means, variances = torch.stack(shares).unbind(1)
    joined = means.mean(0)
    return joined, variances.mean(0) + (means - joined).square().mean(0)


def _by_operator(
    given: dict[str, torch.Tensor],
    neuron: Neuron,
    call: Call,
    norm: Norm | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    running: Running | None,
) -> Outputs:
    """``fire`` where something looks at operators."""
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents(given.values())
    if norm is not None:
        if mean is None or var is None:
            mean, var = channel_statistics(given["x"], running)
        neuron = neuron.behind(norm, mean, var)
        given |= {"mean": mean, "var": var}
    given |= stack(neuron)
    spikes, states, trace, _, current = operators.neuron_forward(
        *[given.get(name) for name in ARGUMENTS], neuron.words(call), neuron.floats()
    )
    return Outputs(
        spikes,
        states if call.return_states else None,
        trace if call.return_trace else None,
        current=current if call.return_current else None,
    )


def stack(neuron: Neuron) -> dict[str, torch.Tensor]:
    """The constants that are tensors in one, [tensors, C or 1], as an operator is given them; none where none is."""
    some = [c for c in neuron.constants if isinstance(c, torch.Tensor)]
    if not some:
        return {}
    sizes = [c.numel() for c in some]
    size = max(sizes) if min(sizes) else 0
    wide = torch.promote_types(torch.float32, some[0].dtype)
    return {"constants": torch.stack([c.to(wide).reshape(-1).expand(size) for c in some])}


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


def refuse_tangents(tensors: Iterable[torch.Tensor]) -> None:
    """PyTorch would take the tangents of a custom operator's results for 0, and say nothing."""
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            "spiketriton's fused neurons have no forward-mode derivative (jvp); accepted: backward()"
        )
