"""What a definition is made of in plain PyTorch: the norm in front of a neuron, and its steps over a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..neuron import Norm, membrane_dtype


def normalised(y: Tensor, norm: Norm) -> Tensor:
    """y behind the norm, in the membrane's dtype: torch's batch_norm on the folded tensor."""
    wide = membrane_dtype(y.dtype)
    weight = None if norm.weight is None else norm.weight.to(wide) * norm.scale
    if weight is None and norm.scale != 1.0:
        weight = torch.full(y.shape[2:3], norm.scale, dtype=wide, device=y.device)
    bias = None if norm.bias is None else norm.bias.to(wide)
    z = torch.nn.functional.batch_norm(
        y.to(wide).flatten(0, 1), norm.running_mean, norm.running_var, weight, bias, norm.training,
        norm.momentum, norm.eps,
    ).unflatten(0, y.shape[:2])  # fmt: skip
    if norm.step_gain is not None:
        z = z * norm.step_gain.to(wide).view(-1, *[1] * (y.dim() - 1))
    return z


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block whose products are as wide as what they are given; nothing, which leaves no trace, where they are."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class OneStep(NamedTuple):
    """A neuron's step as it is. constants: in a shape for one time step, by name."""

    constants: dict[str, Any]
    run: Callable[[Tensor, Sequence[Tensor], dict[str, Any]], tuple[Tensor, list[Tensor]]]

    def __call__(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Currents [B, ...] of a step and the states before it -> its spikes, and the states after it."""
        return self.run(x, states, self.constants)


class Walk(NamedTuple):
    """Spikes [T, B, ...], the states after the last step, if wanted the first state after each step [T, B, ...]."""

    spikes: Tensor
    states: list[Tensor]
    trace: Tensor | None


UNROLLED = 16
"""The most steps that an exported program holds one by one; of more it has a loop, if there is such an operator."""


def scan_operator() -> Callable[..., Any] | None:
    """torch's loop over a tensor's first dimension; None where it has none of this private name."""
    try:
        from torch._higher_order_ops.scan import scan_op
    except ImportError:
        return None
    return scan_op


def as_loop(
    scan: Callable[..., Any],
    step: OneStep,
    current: Tensor,
    states: Sequence[Tensor],
    trace: bool,
) -> Walk:
    """Steps over a window [T, B, ...] as one operator, of which torch.export writes down one step."""
    count, read = len(states), {k: v for k, v in step.constants.items() if isinstance(v, Tensor)}

    def once(*given: Tensor) -> list[Tensor]:
        x, constants = given[count], dict(zip(read, given[count + 1 :], strict=True))
        s, after = step.run(x, given[:count], step.constants | constants)
        out = [*after, s, after[0]] if trace else [*after, s]
        return [v.clone() for v in out]  # or two of them might be one

    found = scan(once, [*states], [current], tuple(read.values()))
    return Walk(found[count], [*found[:count]], found[count + 1] if trace else None)
