"""The gradients of a call, composed of passes over memory: the same steps whether a graph is traced or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist

from ..neuron import NORM, Call, Gradients

Walk = Callable[[Iterable[str], float, torch.Tensor | None], Gradients]
"""One walk back of the call at hand: ``wanted``, ``count`` and ``sums`` of ``passes.neuron_backward``."""

SAVED = ("x", "states", "residual", "constants", *NORM)
"""What a call keeps for backward, where it is given; an operator has its constants in one tensor, [tensors, C or 1]."""

UNSAVED = ("spike_add", "probe")

ARGUMENTS = (*SAVED, *UNSAVED)
"""What a call is differentiated by. The gradient of ``spike_add`` is that of the spikes; ``probe`` has no value."""


def gradients(
    grad_s: torch.Tensor | None,
    given: Mapping[str, torch.Tensor],
    names: tuple[str, ...],
    needs: tuple[bool, ...],
    call: Call,
    bn_scale: float,
    rows: Mapping[str, int],
    walk: Walk,
) -> list[torch.Tensor | None]:
    """The gradients by the ``ARGUMENTS`` of these names, None where ``needs`` does not ask for one.

    Args:
        grad_s: gradient by the spikes. given: the tensors of ``SAVED`` that there are.
        bn_scale: of the norm. rows: by the name of a constant its row among the gradients, -1: the step does not learn
            it. walk: by which everything is computed.
    """
    x, normed = given["x"], "mean" in given
    # statistics that other ranks share take two walks: sums travel in between
    shared = normed and needs[0] and bool(call.group)
    count = float(x.numel() // x.shape[2]) if normed and call.batch_statistics else 0.0
    out = walk(_wanted(names, needs, normed, shared), count, None)
    found = {
        "x": out.dy if normed else out.dx, "residual": out.dx, "spike_add": grad_s,
        "states": out.states, "step_gain": out.step_gain, "probe": out.probe,
    }  # fmt: skip
    if out.sums is not None:
        found["bias"], weight = out.sums.unbind(0)
        found["weight"] = weight * bn_scale if bn_scale != 1.0 else weight
        if shared:
            group = dist.distributed_c10d._resolve_process_group(call.group)  # type: ignore[arg-type]
            sums = out.sums.clone()
            dist.all_reduce(sums, group=group)
            found["x"] = walk(("dy",), count * dist.get_world_size(group), sums).dy
    if out.constants is not None:
        found |= {name: out.constants[row] for name, row in rows.items() if row >= 0}
        if "constants" in given:
            none = torch.zeros_like(given["constants"][0])
            by = [out.constants[row] if row >= 0 else none for row in rows.values()]
            found["constants"] = torch.stack(by)
    return [
        _fitting(found.get(name), given.get(name)) if needed else None
        for name, needed in zip(names, needs, strict=True)
    ]


@functools.lru_cache
def _wanted(
    names: tuple[str, ...], needs: tuple[bool, ...], normed: bool, shared: bool
) -> tuple[str, ...]:
    """What the walk back writes of what is asked for: names of ``Gradients``."""
    asked = {name for name, needed in zip(names, needs, strict=True) if needed}
    wanted = asked & {"states", "step_gain", "probe"}
    if "residual" in asked or not normed:
        wanted.add("dx")
    if normed:
        wanted.add("sums")
        if "x" in asked and not shared:
            wanted.add("dy")
    if any(name.startswith("constant") for name in asked):
        wanted.add("constants")
    return tuple(name for name in Gradients._fields if name in wanted)


def _fitting(grad: torch.Tensor | None, value: torch.Tensor | None) -> torch.Tensor | None:
    """In the dtype of what it is the gradient by; of a parameter (), where others have channels, the sum."""
    if grad is None or value is None:
        return grad
    if grad.dim() > value.dim():
        grad = grad.squeeze(0) if grad.numel() == 1 else grad.sum()
    return grad if grad.dtype == value.dtype else grad.to(value.dtype)
