"""The gradients of a call, composed of passes over memory: the same steps whether a graph is traced or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from .neuron import PARAMETERS, TENSORS, Call, Emit, Gradients
from .passes import replays

Walk = Callable[[Emit, float, torch.Tensor | None], Gradients]
"""One walk back of the call at hand: what it writes, ``count`` and ``sums`` of ``passes.neuron_backward``."""

SAVED = ("x", "v_init", "m_init", "residual", *TENSORS)
"""What a call keeps for backward, where it is given."""

ARGUMENTS = (*SAVED, "spike_add", "probe")
"""What a call is differentiated by. The gradient of ``spike_add`` is that of the spikes; ``probe`` has no value."""


def gradients(
    grad_s: torch.Tensor | None,
    given: Mapping[str, torch.Tensor | None],
    call: Call,
    eps: float,
    bn_scale: float,
    needs: Mapping[str, bool],
    walk: Walk,
    norm_backward: Callable[..., torch.Tensor],
) -> dict[str, torch.Tensor | None]:
    """The gradients by ``ARGUMENTS``, where ``needs`` asks for them.

    Args:
        grad_s: gradient by the spikes. given: the tensors of ``SAVED``, None where there is none.
        eps, bn_scale: of the norm. walk, norm_backward: the passes, by which everything is computed.
    """
    x, normed = given["x"], given["mean"] is not None
    assert x is not None
    # statistics that other ranks share take two passes: sums travel in between
    shared = normed and needs["x"] and bool(call.group)
    count = float(x.numel() // x.shape[2]) if normed and call.batch_statistics else 0.0
    emit = Emit(
        dx=needs["residual"] or not normed or (shared and not replays(x)),
        dy=normed and needs["x"] and not shared,
        sums=normed,
        v_init=needs["v_init"],
        parameters=any([needs[name] for name in PARAMETERS]),
        step_gain=needs["step_gain"],
        probe=needs["probe"],
        m_init=needs["m_init"],
    )
    out = walk(emit, count, None)
    found = dict(
        x=out.dy if normed else out.dx,
        residual=out.dx,
        spike_add=grad_s,
        v_init=out.v_init,
        m_init=out.m_init,
        step_gain=out.step_gain,
        probe=out.probe,
    )
    if out.sums is not None:
        found["bias"], weight = out.sums.unbind(0)
        found["weight"] = weight * bn_scale if needs["weight"] and bn_scale != 1.0 else weight
        if shared:
            group = dist.distributed_c10d._resolve_process_group(call.group)  # type: ignore[arg-type]
            sums = out.sums.clone()
            dist.all_reduce(sums, group=group)
            count *= dist.get_world_size(group)
            if out.dx is None:
                found["x"] = walk(Emit(dy=True), count, sums).dy
            else:
                norms = (given[name] for name in ("mean", "var", "weight", "step_gain"))
                found["x"] = norm_backward(out.dx, x, *norms, sums, eps, bn_scale, count)
    if out.parameters is not None:
        found |= zip(PARAMETERS, out.parameters, strict=False)
    return {
        name: _fitting(found.get(name), given.get(name)) if needs[name] else None
        for name in ARGUMENTS
    }


def _fitting(grad: torch.Tensor | None, value: torch.Tensor | None) -> torch.Tensor | None:
    """In the dtype of what it is the gradient by; of a parameter (), where others have channels, the sum."""
    if grad is None or value is None:
        return grad
    if grad.dim() > value.dim():
        grad = grad.squeeze(0) if grad.numel() == 1 else grad.sum()
    return grad if grad.dtype == value.dtype else grad.to(value.dtype)
