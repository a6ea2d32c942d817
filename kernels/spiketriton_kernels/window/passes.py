"""The passes over memory that everything is composed of: allocate the results, call the backend that serves.

Nothing here is differentiable. ``fire`` calls these functions directly; where a graph is traced, ``operators`` makes
PyTorch operators of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..arguments import PROBE_FIELDS
from ..backends import beside, eager, native, words
from ..backends.choice import Later, backend_for
from ..backends.chunks import CHUNK, chunk_length
from ..layout import like
from ..neuron import Call, Gradients, Inputs, Neuron, Outputs, Running, Upstream, membrane_dtype
from ..surrogate import own_surrogate

_NEURON: dict[str, Any] = {"triton": Later("triton_neuron"), "native": native, "torch": eager}
_STATISTICS: dict[str, Any] = {"triton": Later("triton_norm"), "native": native, "torch": eager}


def serving(x: torch.Tensor, neuron: Neuron, compiled: Any = native) -> str:
    """The backend that serves a call; a surrogate that no step can be printed with has the one it is written for."""
    backend = backend_for(x, neuron.step, compiled)
    own = own_surrogate(neuron.step.own_surrogate)
    if own is None:
        return backend
    if own.compiled and backend != "triton":
        raise RuntimeError(
            f"surrogate {own.name!r} is written in Triton; accepted: CUDA tensors (or TRITON_INTERPRET=1), got "
            f"{x.device}"
        )
    return "triton" if own.compiled else "torch"


def checkpoints(x: torch.Tensor, neuron: Neuron) -> int:
    """States that the forward must save for x: those between each two chunks, on the Triton backend only."""
    if x.shape[0] <= CHUNK or serving(x, neuron) != "triton":
        return 0
    return -(-x.shape[0] // chunk_length(x.shape[0], neuron.holds_more)) - 1


def allocate_forward(
    x: torch.Tensor, neuron: Neuron, call: Call, states: torch.Tensor | None = None
) -> Outputs:
    """Spikes, and what the call wants besides. ``states``: those before the first step, if they are stacked."""
    wide = membrane_dtype(x.dtype)
    rows = checkpoints(x, neuron) if call.save else 0
    last = None
    if call.return_states:  # empty_like takes a third of the time
        last = _stacked(x, len(neuron.step.states)) if states is None else torch.empty_like(states)
    return Outputs(
        torch.empty_like(x),
        last,
        torch.empty_like(x, dtype=wide) if call.return_trace else None,
        x.new_empty((rows, len(neuron.step.states), x[0].numel()), dtype=wide) if rows else None,
        torch.empty_like(x) if call.return_current else None,
    )


def _stacked(x: torch.Tensor, states: int) -> torch.Tensor:
    """Memory for all states, each in the memory order of a step of x."""
    size, stride = (states, *x.shape[1:]), (x.shape[1:].numel(), *x.stride()[1:])
    return x.new_empty_strided(size, stride, dtype=membrane_dtype(x.dtype))


def _in_order(inputs: Inputs) -> Inputs:
    """In the memory order of x, the states in the membrane's dtype."""
    x, states, residual, spike_add = inputs
    if states is residual is spike_add is None:
        return inputs
    return Inputs(
        x,
        None if states is None else _states(states, x),
        None if residual is None else like(residual, x),
        None if spike_add is None else like(spike_add, x),
    )


def _states(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """As ``_stacked`` has them."""
    value = value.to(membrane_dtype(x.dtype))
    if value.stride() == (x.numel() // x.shape[0], *x.stride()[1:]):
        return value
    return _stacked(x, len(value)).copy_(value)


def neuron_forward(
    inputs: Inputs,
    neuron: Neuron,
    call: Call,
    running: Running | None = None,
    measures: bool = False,
) -> Outputs:
    """Spikes of an ``adapted`` neuron, and what else the call wants.

    ``measures``: its mean and var are filled first, as by ``channel_statistics``.
    """
    x = inputs.x
    if x.numel() == 0:
        return allocate_forward(x, neuron, call)
    inputs = _in_order(inputs)
    out = allocate_forward(x, neuron, call, inputs.states)
    inside = running if _in_kernel(x, running) else None
    backend = serving(x, neuron)
    bits = words.room(x) if backend == "native" and call.save and inputs.spike_add is None else None
    if bits is not None and native.gives_bits(neuron.step, x.dtype):
        native.forward(inputs, neuron, out, measures, inside, bits)
        beside.keep(out.spikes, bits)
    else:
        _NEURON[backend].forward(inputs, neuron, out, measures, inside)
    if running is not None:
        _follow(x, neuron.mean, neuron.var, running, inside)
    return out


def allocate_backward(x: torch.Tensor, neuron: Neuron, wanted: Iterable[str]) -> Gradients:
    """Tensors for what a walk back writes."""
    return Gradients(**{name: _empty(name, x, neuron) for name in wanted})


def _empty(name: str, x: torch.Tensor, neuron: Neuron) -> torch.Tensor:
    wide = membrane_dtype(x.dtype)
    if name in ("dx", "dy"):
        return torch.empty_like(x)
    if name == "sums":
        return x.new_empty((2, x.shape[2]), dtype=wide)
    if name == "constants":
        return x.new_empty((neuron.rows, neuron.channels), dtype=wide)
    if name == "step_gain":
        return x.new_empty(x.shape[0], dtype=wide)
    if name == "probe":
        return x.new_empty((x.shape[0], len(PROBE_FIELDS)), dtype=torch.float32)
    return _stacked(x, len(neuron.step.states))


def neuron_backward(
    upstream: Upstream,
    inputs: Inputs,
    saved: torch.Tensor | None,
    neuron: Neuron,
    wanted: Iterable[str],
    count: float = 0.0,
    sums: torch.Tensor | None = None,
) -> Gradients:
    """The walk back, and where dy is wanted through the batch's statistics the second pass of batch norm.

    Args:
        wanted: names of ``Gradients``.
        count: elements a channel that the statistics were taken over; 0: they were given, and dy is dx, scaled.
        sums: the channel sums that dy needs, with those of other ranks; None: those of this walk.
    """
    x = inputs.x
    out = allocate_backward(x, neuron, wanted)
    if x.numel() == 0:
        for total in (out.sums, out.constants, out.step_gain, out.probe):
            if total is not None:
                total.zero_()
        return out
    by_spikes, by_states, by_trace, by_current = upstream
    if by_spikes.dtype != x.dtype or by_spikes.stride() != x.stride():
        upstream = upstream._replace(spikes=like(by_spikes.to(x.dtype), x))
    if not by_states is by_trace is by_current is None:
        upstream = Upstream(
            upstream.spikes,
            None if by_states is None else _states(by_states, x),
            None if by_trace is None else like(by_trace.to(membrane_dtype(x.dtype)), x),
            None if by_current is None else like(by_current.to(x.dtype), x),
        )
    # Missing checkpoints: the forward ran on another backend, or vmap hid that a gradient is wanted.
    missing = (0 if saved is None else saved.shape[0]) < checkpoints(x, neuron)
    backend = eager if missing else _NEURON[serving(x, neuron)]
    backend.backward(upstream, _in_order(inputs), saved, neuron, count, sums, out)
    return out


def channel_statistics(
    y: torch.Tensor, running: Running | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel (dim 2) of y [T, B, C, ...] over everything else, [C] each.

    One pass over memory. Neither a mean far from zero nor a few elements far from the rest lose digits. Running
    statistics move towards them.
    """
    mean, var = statistics_like(y)
    inside = running if _in_kernel(y, running) else None
    _STATISTICS[backend_for(y)].channel_statistics(y, mean, var, inside)
    if running is not None:
        _follow(y, mean, var, running, inside)
    return mean, var


def statistics_like(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors for the mean and the variance of each channel of y."""
    mean = y.new_empty(y.shape[2], dtype=membrane_dtype(y.dtype))
    return mean, torch.empty_like(mean)


def _in_kernel(y: torch.Tensor, running: Running | None) -> bool:
    """Whether the kernel that measures can move the running statistics too."""
    if running is None:
        return False
    mean, var, _ = running
    wide = membrane_dtype(y.dtype)
    return mean.dtype == var.dtype == wide and mean.is_contiguous() and var.is_contiguous()


def _follow(y, mean, var, running: Running, inside: Running | None) -> None:
    """What is left to do about running statistics after the kernel that measured."""
    if inside is None:
        eager.update_running(mean, var, y.numel() // y.shape[2], running)
    else:  # autograd does not see what a kernel changes
        torch.autograd.graph.increment_version(inside[:2])
