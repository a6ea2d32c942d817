"""Spikes, as a step has them. ``fire``: 1 where its argument is at least 0; backward the surrogate, and the gradient
of its width. ``count``: several. ``relaxed``: what a spike's gradient is the derivative of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..surrogate import own_surrogate, unit_primitive, unit_slope
from .printed import ANY
from .record import Refused, recording


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, width: Tensor, shape: str, height: float) -> Tensor:
        ctx.shape, ctx.height = shape, height
        ctx.save_for_backward(u, width)
        recorder = recording()
        if recorder is not None:
            recorder.fires(u, width, shape, height)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        u, width = ctx.saved_tensors
        unit = _opaque("phi", ctx.shape, u, width)
        by_u = by_width = None
        if ctx.needs_input_grad[0]:
            by_u = grad * (ctx.height * unit)
        if ctx.needs_input_grad[1]:  # of the relaxed spike height * width * Phi(u / width)
            area, z = (_opaque(op, ctx.shape, u, width) for op in ("area", "z"))
            by_width = (grad * ctx.height * (area - z * unit)).sum_to_size(width.shape)
        return by_u, by_width, None, None


def _opaque(op: str, shape: str, u: Tensor, width: Tensor) -> Tensor:
    """phi(u / width), Phi, or u / width itself ("z"); where a step is recorded as the backends compute them.

    A surrogate of one's own in PyTorch is recorded as what it computes, where it can be.
    """
    function = _OPAQUE[op]
    recorder = recording()
    if recorder is None:
        return function(shape, u / width)
    own = own_surrogate(shape)
    if own is not None and not own.compiled:
        with contextlib.suppress(Refused):
            return function(shape, u / width)
    with torch._C._DisableTorchDispatch():
        known = own is None and shape != ANY
        out = function(shape, u / width) if known else u / width
    return recorder.surrogate(op, shape, u, width, out)


_OPAQUE: dict[str, Callable[[str, Tensor], Tensor]] = {
    "phi": unit_slope,
    "area": unit_primitive,
    "z": lambda shape, z: z,
}


class _Count(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, unit: Tensor, levels: Any) -> Tensor:
        z = h / unit
        inside = (z >= 0) & (z <= levels)
        ctx.save_for_backward(z, unit, inside)
        recorder = recording()
        if recorder is not None:
            recorder.passes(inside, levels)
        return torch.round(z.clamp(min=0).clamp(max=levels))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        z, unit, inside = ctx.saved_tensors
        by_h = torch.where(inside, grad, 0.0) * (1 / unit)
        by_unit = (-by_h * z).sum_to_size(unit.shape) if ctx.needs_input_grad[1] else None
        return by_h, by_unit, None


class _Primitive(torch.autograd.Function):
    """A surrogate's Phi, whose derivative is its phi."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, shape: str) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(z)
        return unit_primitive(shape, z)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grad * unit_slope(ctx.shape, z), None


class _WithGradientOf(torch.autograd.Function):
    """The value of the first argument, the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.to(carrier.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return None, grad


def fire(u: Tensor, shape: str, height: Any, width: Tensor) -> Tensor:
    """Spikes in the dtype of u."""
    return _Fire.apply(u, width, shape, height)


def count(h: Tensor, unit: Tensor, levels: Any) -> Tensor:
    """round(clamp(h / unit, 0, levels)); backward as without rounding: 1 / unit between these, else 0."""
    return _Count.apply(h, unit, levels)


def relaxed(u: Tensor, shape: str, height: Any, width: Tensor) -> Tensor:
    """The surrogate's primitive, of which ``fire`` has the derivative: differentiable in the ordinary sense."""
    return height * width * _Primitive.apply(u / width, shape)


def with_gradient_of(value: Tensor, carrier: Tensor) -> Tensor:
    """The value of the first, the gradient of the second."""
    return _WithGradientOf.apply(value, carrier)
