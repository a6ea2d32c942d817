"""``fire``: 1 where its argument is at least 0; backward the surrogate, and the gradient of its width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..surrogate import SHAPES, unit_primitive, unit_slope
from .record import recording


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, width: Tensor, shape: str, height: float) -> Tensor:
        ctx.shape, ctx.height = shape, height
        ctx.save_for_backward(u, width)
        recorder = recording()
        if recorder is not None:
            recorder.fires(u, width, shape)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        u, width = ctx.saved_tensors
        unit = _opaque("phi", ctx.shape, u, width)
        by_u = by_width = None
        if ctx.needs_input_grad[0]:
            by_u = grad * (ctx.height * unit)
        if ctx.needs_input_grad[1]:  # of the relaxed spike height * width * Phi(u / width)
            area = _opaque("area", ctx.shape, u, width)
            by_width = (grad * ctx.height * (area - u / width * unit)).sum_to_size(width.shape)
        return by_u, by_width, None, None


def _opaque(op: str, shape: str, u: Tensor, width: Tensor) -> Tensor:
    """phi(u / width), or Phi; one operation where a step is recorded, because the backends have their own."""
    function = unit_slope if op == "phi" else unit_primitive
    recorder = recording()
    if recorder is None or shape not in SHAPES:
        return function(shape, u / width)
    with torch._C._DisableTorchDispatch():
        out = function(shape, u / width)
    return recorder.surrogate(op, shape, u, width, out)


def fire(u: Tensor, shape: str, height: float, width: Tensor) -> Tensor:
    """Spikes in the dtype of u."""
    return _Fire.apply(u, width, shape, height)
