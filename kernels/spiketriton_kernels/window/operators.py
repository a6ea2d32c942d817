"""The passes as PyTorch operators, which torch.compile, export, vmap and dispatch modes see as wholes.

An operator costs several times what its pass costs on a small tensor, so ``fire`` takes this way only where something
traces or transforms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..neuron import Call, Gradients, Inputs, Neuron, Outputs, Upstream, parsed, place
from ..steps.forms import named
from . import passes
from .gradient import ARGUMENTS, SAVED, Walk, gradients

_NEURON = ", ".join("Tensor x" if name == "x" else f"Tensor? {name}" for name in SAVED)
_CALL = "str words, float[] floats"


def _results(count: int) -> str:
    return ", ".join(["Tensor"] * count)


def _read(args: Sequence[Any]) -> tuple[Inputs, Neuron, Call]:
    """A call, from what an operator is given: tensors in the order of ``ARGUMENTS``, words and floats."""
    *tensors, words, floats = args
    given = dict(zip(ARGUMENTS, tensors, strict=False))
    inputs = Inputs(*[given.get(name) for name in Inputs._fields])  # type: ignore[arg-type]
    there = {name: value for name, value in given.items() if value is not None}
    return inputs, Neuron.of(inputs.x, there, words, floats), parsed(words)[2]


def _filled(x: torch.Tensor, found: Iterable[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
    """An operator returns an empty tensor for what its pass leaves out."""
    return tuple(x.new_empty(0) if value is None else value for value in found)


@torch.library.custom_op(
    "spiketriton::neuron_forward",
    mutates_args=(),
    schema=f"({_NEURON}, Tensor? spike_add, Tensor? probe, {_CALL}) -> ({_results(len(Outputs._fields))})",
)
def neuron_forward(*args: Any) -> tuple[torch.Tensor, ...]:
    """``passes.neuron_forward``: empty where not wanted. Only the backward reads the probe."""
    inputs, neuron, call = _read(args)
    return _filled(inputs.x, passes.neuron_forward(inputs, neuron, call))


@neuron_forward.register_fake
def _(*args: Any) -> tuple[torch.Tensor, ...]:
    inputs, neuron, call = _read(args)
    return _filled(inputs.x, passes.allocate_forward(inputs.x, neuron, call))


_UPSTREAM = ", ".join(("Tensor grad_s", *(f"Tensor? grad_{n}" for n in Upstream._fields[1:])))


@torch.library.custom_op(
    "spiketriton::neuron_backward",
    mutates_args=(),
    schema=f"({_UPSTREAM}, Tensor? saved, {_NEURON}, Tensor? sums, float count, str wanted, {_CALL}) -> "
    f"({_results(len(Gradients._fields))})",
)
def neuron_backward(*args: Any) -> tuple[torch.Tensor, ...]:
    """``passes.neuron_backward``. What of ``Gradients`` is not ``wanted`` comes back empty."""
    *upstream, saved = args[:_BEFORE]
    sums, count, wanted, *_ = args[_BEFORE + len(SAVED) :]
    inputs, neuron = _read_back(args)
    out = passes.neuron_backward(
        Upstream(*upstream), inputs, saved, neuron, wanted.split(), count, sums
    )
    return _filled(inputs.x, out)


_BEFORE = len(Upstream._fields) + 1
"""Arguments of a walk back before those of ``SAVED``. (Inductor wants all tensors before what is none.)"""


def _read_back(args: Sequence[Any]) -> tuple[Inputs, Neuron]:
    return _read([*args[_BEFORE : _BEFORE + len(SAVED)], *args[-2:]])[:2]


@neuron_backward.register_fake
def _(*args: Any) -> tuple[torch.Tensor, ...]:
    inputs, neuron = _read_back(args)
    return _filled(inputs.x, passes.allocate_backward(inputs.x, neuron, args[-3].split()))


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "spiketriton's fused neurons have no double backward; use multistep_lif_reference for second derivatives"
    )


neuron_backward.register_autograd(_no_double_backward)


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
    given: Mapping[str, torch.Tensor],
    words: str,
    floats: list[float],
) -> Walk:
    """The walk back of a call by its operator."""

    def back(wanted: Iterable[str], count: float, sums: torch.Tensor | None) -> Gradients:
        read = [given.get(name) for name in SAVED]
        found = neuron_backward(
            *upstream, saved, *read, sums, count, " ".join(wanted), words, floats
        )
        named = zip(Gradients._fields, found, strict=True)
        return Gradients(**{name: value for name, value in named if name in wanted})

    return back


def _backward(ctx, grad_s, grad_states, grad_trace, _grad_saved, grad_current):
    saved, *rest = ctx.saved_tensors
    given = dict(zip(ctx.names, rest, strict=True))
    name, tensors, call = parsed(ctx.words)
    upstream = Upstream(  # without those of the empty tensors that stand for what was not wanted
        grad_s,
        grad_states if call.return_states else None,
        grad_trace if call.return_trace else None,
        grad_current if call.return_current else None,
    )
    if all(grad is None for grad in upstream):
        return (None,) * len(ctx.needs_input_grad)
    if grad_s is None:
        upstream = upstream._replace(spikes=torch.zeros_like(rest[0]))
    back = walk(upstream, saved, given, ctx.words, ctx.floats)
    needs, learns = ctx.needs_input_grad[: len(ARGUMENTS)], named(name).rows
    rows = {place(i): learns[i] for i, is_tensor in enumerate(tensors) if is_tensor}
    _, bn_scale, *_ = ctx.floats
    found = gradients(grad_s, given, ARGUMENTS, needs, call, bn_scale, rows, back)
    return *found, None, None


neuron_forward.register_autograd(_backward, setup_context=_setup_context)
