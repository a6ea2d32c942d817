"""Batch norm by itself, in training on a CPU: as ``torch.nn.functional.batch_norm``, in a third of its time.

Where a neuron of ours stands behind it the two are one operation, ``multistep_bn_lif``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import batch_norm

from .backends import native
from .backends.choice import backend_for
from .layout import is_dense
from .neuron import Running, as_small
from .window import passes
from .window.fire import traced


def serves(y: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether ``normalised`` takes y [B, C, ...]: dense, on a CPU with a compiler, where nothing looks at operators or
    at functions of torch.

    In float64, by which others are judged, batch norm is torch's.
    """
    if y.device.type != "cpu" or y.dtype == torch.float64 or y.dim() < 2 or not y.numel():
        return False
    if traced((y, weight, bias)) or torch._C._len_torch_function_stack():
        return False
    plain = forward_ad._current_level < 0 and is_dense(y.unsqueeze(0))
    return plain and backend_for(y) == "native" and native.failure(y.dtype) is None


def normalised(
    y: Tensor, weight: Tensor, bias: Tensor, running: Running, eps: float, steps: int = 1
) -> Tensor:
    """y [B, C, ...], normalised by the statistics of its channels, at each of ``steps`` steps: [steps, B, C, ...].

    Running statistics move towards the batch's (the unbiased variance). Parameters are of any dtype, and get their
    gradients in it; all is computed in float32. With ``create_graph`` gradients are PyTorch's, which have others.
    """
    found: Tensor = _Normalised.apply(y, weight, bias, running, eps, steps)
    return found


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, running: Running, eps: float, steps: int
    ) -> Tensor:
        one = y.unsqueeze(0)
        norm = *passes.channel_statistics(one, running), as_small(weight, y), as_small(bias, y)
        out = y.new_empty_strided((steps, *y.shape), (y.numel(), *y.stride()))
        native.normalise(one, norm, eps, out)
        ctx.save_for_backward(y, weight, bias, *norm[:2])
        ctx.eps, ctx.size, ctx.stride = eps, out.shape, out.stride()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (
                *_with_graph(grad, (y, weight, bias), ctx.eps, ctx.needs_input_grad),
                None,
                None,
                None,
            )
        if grad.stride() != ctx.stride:
            grad = torch.empty_strided(ctx.size, ctx.stride, dtype=grad.dtype).copy_(grad)
        dy = torch.empty_like(y)
        sums = y.new_empty(2, len(mean), dtype=torch.float32)
        norm = mean, var, as_small(weight, y), as_small(bias, y)
        native.normalise_back(grad, y.unsqueeze(0), norm, ctx.eps, sums, dy)
        return dy, sums[1].to(weight.dtype), sums[0].to(bias.dtype), None, None, None


def _with_graph(
    grad: Tensor, given: tuple[Tensor, Tensor, Tensor], eps: float, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by y, weight and bias, which can be differentiated again."""
    y, weight, bias = given
    out = batch_norm(y, None, None, weight, bias, True, 0.0, eps).expand(grad.shape)
    wanted = [tensor for tensor, needed in zip(given, needs, strict=False) if needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if needed else None for needed in needs[: len(given)]]
