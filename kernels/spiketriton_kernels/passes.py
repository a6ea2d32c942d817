"""The passes over memory that everything is composed of: allocate the results, call the backend that serves.

Nothing here is differentiable. ``fire`` calls these functions directly; where a graph is traced, ``operators`` makes
PyTorch operators of them.
"""

from __future__ import annotations

import torch

from .arguments import PROBE_FIELDS
from .backends import eager, native, triton_neuron, triton_norm
from .backends.choice import backend_for
from .layout import CHUNK, chunk_length, like, step_like
from .neuron import Call, Emit, Gradients, Neuron, Running, as_small, membrane_dtype

_NEURON = {"triton": triton_neuron, "native": native, "torch": eager}
_NORM = {"triton": triton_norm, "native": native, "torch": eager}


def checkpoints(x: torch.Tensor, norm: bool) -> int:
    """Membranes that the forward must save for x: one between each two chunks, on the Triton backend only."""
    if x.shape[0] <= CHUNK or backend_for(x) != "triton":
        return 0
    return -(-x.shape[0] // chunk_length(x.shape[0], norm)) - 1


def replays(x: torch.Tensor) -> bool:
    """Whether a second walk back costs less than storing dL/dx: on a GPU, where bytes are what costs."""
    return backend_for(x) == "triton"


def allocate_forward(
    x: torch.Tensor, norm: bool, call: Call
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Spikes, and what the call wants besides: last membrane, membrane checkpoints, current."""
    wide = membrane_dtype(x.dtype)
    rows = checkpoints(x, norm) if call.save else 0
    return (
        torch.empty_like(x),
        torch.empty_like(x[0], dtype=wide) if call.return_v else None,
        x.new_empty((rows, x[0].numel()), dtype=wide) if rows else None,
        torch.empty_like(x) if call.return_current else None,
    )


def neuron_forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    spike_add: torch.Tensor | None,
    neuron: Neuron,
    call: Call,
    measures: bool = False,
    running: Running | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Spikes, last membrane, membrane checkpoints and current; None for what the call does not want.

    ``measures``: the neuron's mean and var are filled first, as by ``channel_statistics``.
    """
    spikes, v_last, saved, current = allocate_forward(x, neuron.has_norm, call)
    if x.numel() == 0:
        if v_last is not None:
            v_last.fill_(neuron.v_start)
        return spikes, v_last, saved, current
    if v_init is not None:
        v_init = step_like(v_init, x)
    if residual is not None:
        residual = like(residual, x)
    if spike_add is not None:
        spike_add = like(spike_add, x)
    backend, inside = _NEURON[backend_for(x)], running if _in_kernel(x, running) else None
    backend.forward(
        x, v_init, residual, spike_add, neuron, spikes, v_last, saved, current, measures, inside
    )
    if running is not None:
        mean, var, *_ = neuron.norm
        _follow(x, mean, var, running, inside)
    return spikes, v_last, saved, current


_INPUT_ONLY = Emit(dx=True)


def allocate_backward(x: torch.Tensor, neuron: Neuron, emit: Emit) -> Gradients:
    """Tensors for what a walk back writes."""
    wide = membrane_dtype(x.dtype)
    if emit == _INPUT_ONLY:
        return Gradients(dx=torch.empty_like(x))
    channels = x.shape[2] if x.dim() > 2 else 1
    return Gradients(
        dx=torch.empty_like(x) if emit.dx else None,
        dy=torch.empty_like(x) if emit.dy else None,
        sums=x.new_empty((2, channels), dtype=wide) if emit.sums else None,
        v_init=torch.empty_like(x[0], dtype=wide) if emit.v_init else None,
        parameters=x.new_empty((3, neuron.parameter_size), dtype=wide) if emit.parameters else None,
        step_gain=x.new_empty(x.shape[0], dtype=wide) if emit.step_gain else None,
        probe=x.new_empty((x.shape[0], len(PROBE_FIELDS)), dtype=torch.float32)
        if emit.probe
        else None,
    )


def neuron_backward(
    grad_s: torch.Tensor,
    grad_v_last: torch.Tensor | None,
    grad_current: torch.Tensor | None,
    saved: torch.Tensor | None,
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    neuron: Neuron,
    emit: Emit,
    count: float = 0.0,
    sums: torch.Tensor | None = None,
) -> Gradients:
    """The walk back, and where dy is wanted through the batch's statistics the second pass of batch norm.

    Args:
        count: elements a channel that the statistics were taken over; 0: they were given, and dy is dx, scaled.
        sums: the channel sums that dy needs, with those of other ranks; None: those of this walk.
    """
    out = allocate_backward(x, neuron, emit)
    if x.numel() == 0:
        for total in (out.sums, out.parameters, out.step_gain, out.probe):
            if total is not None:
                total.zero_()
        return out
    if v_init is not None:
        v_init = step_like(v_init, x)
    if residual is not None:
        residual = like(residual, x)
    if grad_v_last is not None:
        grad_v_last = step_like(grad_v_last, x)
    if grad_current is not None:
        grad_current = like(
            grad_current if grad_current.dtype == x.dtype else grad_current.to(x.dtype), x
        )
    # Missing checkpoints: the forward ran on another backend, or vmap hid that a gradient is wanted.
    missing = (0 if saved is None else saved.shape[0]) < checkpoints(x, neuron.has_norm)
    backend = eager if missing else _NEURON[backend_for(x)]
    grad_s = like(grad_s if grad_s.dtype == x.dtype else grad_s.to(x.dtype), x)
    backend.backward(
        grad_s, grad_v_last, grad_current, x, saved, v_init, residual, neuron, count, sums, out
    )
    return out


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
    """dL/dy of batch norm from the stored dL/dx and the channel sums of all ranks."""
    dy = torch.empty_like(y)
    if y.numel() > 0:
        small = [None if p is None else as_small(p, y) for p in (mean, var, weight, step_gain)]
        _NORM[backend_for(y)].norm_backward(like(dx, y), y, *small, sums, eps, bn_scale, count, dy)
    return dy


def channel_statistics(
    y: torch.Tensor, running: Running | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel (dim 2) of y [T, B, C, ...] over everything else, [C] each.

    One pass over memory. Neither a mean far from zero nor a few elements far from the rest lose digits. Running
    statistics move towards them.
    """
    mean, var = statistics_like(y)
    inside = running if _in_kernel(y, running) else None
    _NORM[backend_for(y)].channel_statistics(y, mean, var, inside)
    if running is not None:
        _follow(y, mean, var, running, inside)
    return mean, var


def statistics_like(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors for the mean and the variance of each channel of y."""
    wide, channels = membrane_dtype(y.dtype), y.shape[2]
    return y.new_empty(channels, dtype=wide), y.new_empty(channels, dtype=wide)


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
