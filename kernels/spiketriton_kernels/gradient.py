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
    x, norm = given["x"], given["mean"] is not None
    assert x is not None
    shared = (
        norm and needs["x"] and bool(call.group)
    )  # statistics that other ranks share: two passes, sums between
    count = float(x.numel() // x.shape[2]) if norm and call.batch_statistics else 0.0
    out = walk(
        Emit(
            dx=needs["residual"] or not norm or (shared and not replays(x)),
            dy=norm and needs["x"] and not shared,
            sums=norm,
            v_init=needs["v_init"],
            parameters=any([needs[name] for name in PARAMETERS]),
            step_gain=needs["step_gain"],
            probe=needs["probe"],
            m_init=needs["m_init"],
        ),
        count,
        None,
    )
    grads: dict[str, torch.Tensor | None] = dict.fromkeys(ARGUMENTS)
    grads["x"] = out.dy if norm else out.dx
    if needs["residual"]:
        grads["residual"] = out.dx
    if needs["spike_add"]:
        grads["spike_add"] = grad_s
    for name in ("v_init", "m_init", "step_gain", "probe"):
        grads[name] = getattr(out, name)
    if out.sums is not None:
        if needs["weight"] or needs["bias"]:
            bias, weight = out.sums.unbind(0)
            grads["bias"] = bias if needs["bias"] else None
            if needs["weight"]:
                grads["weight"] = weight if bn_scale == 1.0 else weight * bn_scale
        if shared:
            group = dist.distributed_c10d._resolve_process_group(call.group)  # type: ignore[arg-type]
            sums = out.sums.clone()
            dist.all_reduce(sums, group=group)
            count *= dist.get_world_size(group)
            if out.dx is None:
                grads["x"] = walk(Emit(dy=True), count, sums).dy
            else:
                norms = (given[name] for name in ("mean", "var", "weight", "step_gain"))
                grads["x"] = norm_backward(out.dx, x, *norms, sums, eps, bn_scale, count)
    if out.parameters is not None:
        for i, name in enumerate(PARAMETERS):
            parameter = given[name]
            if parameter is not None and needs[name]:
                row = out.parameters[i]
                if parameter.dim() == 0:  # where another parameter has channels, all have
                    row = row.squeeze(0) if row.numel() == 1 else row.sum()
                grads[name] = row
    for name, value in given.items():
        if value is not None:
            grad = grads[name]
            if grad is not None and grad.dtype != value.dtype:
                grads[name] = grad.to(value.dtype)
    return grads
