"""The gradients of a call, composed of passes over memory: the same steps whether a graph is traced or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from .neuron import PARAMETERS, TENSORS, Call, Emit, Gradients
from .passes import replays

Walk = Callable[[Emit, float, torch.Tensor | None], Gradients]
"""One walk back of the call at hand: what it writes, ``count`` and ``sums`` of ``passes.neuron_backward``."""

SAVED = ("x", "v_init", "m_init", "residual", *TENSORS)
"""What a call keeps for backward, where it is given."""

UNSAVED = ("spike_add", "probe")

ARGUMENTS = (*SAVED, *UNSAVED)
"""What a call is differentiated by. The gradient of ``spike_add`` is that of the spikes; ``probe`` has no value."""


def gradients(
    grad_s: torch.Tensor | None,
    given: Mapping[str, torch.Tensor],
    names: tuple[str, ...],
    needs: tuple[bool, ...],
    call: Call,
    eps: float,
    bn_scale: float,
    walk: Walk,
    norm_backward: Callable[..., torch.Tensor],
) -> list[torch.Tensor | None]:
    """The gradients by the ``ARGUMENTS`` of these names, None where ``needs`` does not ask for one.

    Args:
        grad_s: gradient by the spikes. given: the tensors of ``SAVED`` that there are.
        eps, bn_scale: of the norm. walk, norm_backward: the passes, by which everything is computed.
    """
    x, normed = given["x"], "mean" in given
    # statistics that other ranks share take two passes: sums travel in between
    shared = normed and needs[0] and bool(call.group)
    emit = _emit(names, needs, normed, shared, shared and not replays(x))
    count = float(x.numel() // x.shape[2]) if normed and call.batch_statistics else 0.0
    out = walk(emit, count, None)
    found = {
        "x": out.dy if normed else out.dx, "residual": out.dx, "spike_add": grad_s, "v_init": out.v_init,
        "m_init": out.m_init, "step_gain": out.step_gain, "probe": out.probe,
    }  # fmt: skip
    if out.sums is not None:
        found["bias"], weight = out.sums.unbind(0)
        found["weight"] = weight * bn_scale if bn_scale != 1.0 else weight
        if shared:
            group = dist.distributed_c10d._resolve_process_group(call.group)  # type: ignore[arg-type]
            sums = out.sums.clone()
            dist.all_reduce(sums, group=group)
            count *= dist.get_world_size(group)
            if out.dx is None:
                found["x"] = walk(Emit(dy=True), count, sums).dy
            else:
                norms = map(given.get, ("mean", "var", "weight", "step_gain"))
                found["x"] = norm_backward(out.dx, x, *norms, sums, eps, bn_scale, count)
    if out.parameters is not None:
        found |= zip(PARAMETERS, out.parameters, strict=False)
    return [
        _fitting(found.get(name), given.get(name)) if needed else None
        for name, needed in zip(names, needs, strict=True)
    ]


@functools.lru_cache
def _emit(
    names: tuple[str, ...], needs: tuple[bool, ...], normed: bool, shared: bool, stores: bool
) -> Emit:
    """What the walk back writes of what is asked for; ``stores``: dL/dx, for a second pass over ``shared`` sums."""
    asked = {name for name, needed in zip(names, needs, strict=True) if needed}
    return Emit(
        dx="residual" in asked or not normed or stores,
        dy=normed and "x" in asked and not shared,
        sums=normed,
        v_init="v_init" in asked,
        parameters=not asked.isdisjoint(PARAMETERS),
        step_gain="step_gain" in asked,
        probe="probe" in asked,
        m_init="m_init" in asked,
    )


def _fitting(grad: torch.Tensor | None, value: torch.Tensor | None) -> torch.Tensor | None:
    """In the dtype of what it is the gradient by; of a parameter (), where others have channels, the sum."""
    if grad is None or value is None:
        return grad
    if grad.dim() > value.dim():
        grad = grad.squeeze(0) if grad.numel() == 1 else grad.sum()
    return grad if grad.dtype == value.dtype else grad.to(value.dtype)
