"""Batch norm in training behind a 1x1 convolution, by algebra: no pass over the outputs for statistics or for dL/dy.

With x [M, K] the inputs of all M pixels, y = x W' [M, C] the outputs of the convolution, m = sum(x) / M, and
S = x'x / M - m m' (of spikes x'x holds whole numbers, which float32 has exactly below 2^24):

    mean(y) = W m        var(y) = diag(W S W')        rstd = 1 / sqrt(var + eps)       a = weight * bn_scale * rstd

dz is the gradient by what the norm gives. With b = sum(dz) / M, g = sum(dz * xhat) / M and c = a * g * rstd the norm's
dL/dy = a * (dz - b - xhat * g) is linear in y, and so in x. It is never made:

    dL/dx = dz (aW) - x (W' diag(c) W) + W'(c * mean - a * b)
    dL/dW = a * (dz'x - sum(dz) m') - M * c * (W S)
    sum(dz * xhat) = rstd * (rowsum(W * dz'x) - mean * sum(dz))

In front of a neuron (``before_neuron``) a fused call reads y as behind given statistics; its one walk back leaves dz,
which is also the gradient by the residual, and both sums. A norm whose output is that residual, as of a shortcut that
changes the shape (``as_residual``), is gone altogether: its convolution has the weights aW, its constant goes into the
bias of the other norm, and its dz and sum(dz) are those of that walk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .backends.eager import update_running
from .neuron import Norm, membrane_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
"""Of the products: float16 would overflow where a gradient is scaled."""

TILE = 128
"""Rows and columns of a product that a program of cuBLAS makes; one product is split until these fill a GPU."""
PROCESSORS = 132


def before_neuron(
    x: Tensor, weight: Tensor, norm: Norm, residual: Tensor, *, binary: bool = False
) -> tuple[Tensor, Norm, Tensor]:
    """What a fused call takes for ``norm(conv1x1(x)) + residual``: y without gradient, the norm, the residual.

    Only together, once, in one call without ``step_gain``: by the residual and the norm's parameters its walk back
    gives all that the gradients by x and by the convolution's weights need. Running statistics are moved here.

    Args:
        x: [T, B, K, ...] of float64, float32 or bfloat16, channels_last (dim 2 is innermost).
        weight: of the convolution, [C, K, 1, 1] or [C, K], float32 (float64 for float64 x).
        norm: in training, with weight and bias [C] of that dtype, over this process alone.
        residual: [T, B, C, ...] in the dtype of x; gets a gradient.
        binary: x holds nothing but 0 and 1, so that its sums stand on the diagonal of x'x.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    matrix = _checked(x, weight, norm, 1)
    if norm.step_gain is not None:
        raise ValueError("norm has a step_gain; accepted: None, or a call without this algebra")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual is {residual.dtype}; accepted: {x.dtype}, as x")
    y, handed, gamma, beta, mean, var = _BeforeNeuron.apply(
        x, matrix, norm.weight, norm.bias, residual, (norm.eps, norm.scale, binary)
    )
    _follow(mean, var, y, norm)
    given = norm._replace(
        weight=gamma, bias=beta, running_mean=mean, running_var=var, training=False
    )
    return y, given, handed


def as_residual(
    x: Tensor, weight: Tensor, norm: Norm, into: Norm, *, stride: int = 1
) -> tuple[Tensor, Norm]:
    """``norm(conv1x1(x))`` as the residual of a fused call behind the norm ``into``: one convolution, no pass more.

    Only together: the residual lacks a constant of each channel, which the second result, ``into`` with another bias,
    has. The call's gradients by both give those by x, by the convolution's weights and by this norm's parameters.

    Args:
        x, weight, norm: as of ``before_neuron``.
        into: in training or not, with a bias, without ``step_gain`` or ``process_group``.
        stride: of the convolution, in all dimensions behind the third.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    matrix = _checked(x, weight, norm, stride)
    for record, name in ((norm, "norm"), (into, "into")):
        if record.step_gain is not None:
            raise ValueError(f"{name} has a step_gain; accepted: None, or two norms one by one")
    if into.bias is None or into.process_group is not None:
        raise ValueError(
            "into: accepted: a norm with a bias, whose statistics no other rank shares"
        )
    current, bias, mean, var = _AsResidual.apply(
        x, matrix, norm.weight, norm.bias, into.bias, (norm.eps, norm.scale, stride)
    )
    _follow(mean, var, current, norm)
    return current, into._replace(bias=bias)


def norm_reference(x: Tensor, weight: Tensor, norm: Norm, *, stride: int = 1) -> Tensor:
    """The definition of both: a convolution in PyTorch, and its batch norm in training, [T, B, C, ...] in x's dtype."""
    folded = x[:, :, :, *_steps(x, stride)].movedim(2, -1)
    y = F.linear(folded, weight.flatten(1).to(x.dtype)).movedim(-1, 2)
    gamma = None if norm.weight is None else norm.weight * norm.scale
    out = F.batch_norm(
        y.flatten(0, 1), norm.running_mean, norm.running_var, gamma, norm.bias, True, norm.momentum, norm.eps
    )  # fmt: skip
    return out.unflatten(0, y.shape[:2])


def fits(x: Tensor) -> bool:
    """Whether the products read x [T, B, K, ...] as it lies in memory: with the channels innermost."""
    return x.dim() >= 3 and x.movedim(2, -1).is_contiguous()


class _BeforeNeuron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor,
        options: tuple[float, float, bool],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        eps, scale, binary = options
        with _exactly(x):
            rows, rounded = _rows(x, 1), weight.to(x.dtype)
            m, spread = _moments(rows, binary)
            mean, var = _through(rounded.to(m.dtype), m, spread)
            y = _image(rows @ rounded.t(), x, 1)
        ctx.save_for_backward(x, weight, gamma, m, spread, mean, var)
        ctx.options = eps, scale
        ctx.mark_non_differentiable(y, mean, var)
        ctx.set_materialize_grads(False)  # zeros as large as y
        handed = (value.view_as(value) for value in (residual, gamma, beta))
        return y, *handed, mean, var

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _y: Tensor, dz: Tensor, by_gamma: Tensor, by_beta: Tensor, *_: Tensor
    ) -> Any:
        x, weight, gamma, m, spread, mean, var = ctx.saved_tensors
        eps, scale = ctx.options
        with _exactly(x):
            rounded = weight.to(x.dtype).to(m.dtype)
            rstd = torch.rsqrt(var + eps)
            rows, grads = _rows(x, 1), _rows(dz, 1)
            products = _products(grads, rows) if ctx.needs_input_grad[1] else None
            # the call's gradient by weight is sum(dz * xhat), times its scale
            by = _Back(rounded, gamma * scale * rstd, rstd, by_beta, by_gamma / scale, len(rows))
            dx = by.input(rows, grads, mean) if ctx.needs_input_grad[0] else None
            dweight = None if products is None else by.weight(products, m, spread)
        return None if dx is None else _image(dx, x, 1), dweight, by_gamma, by_beta, dz, None


class _AsResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, bias: Tensor,
        options: tuple[float, float, int],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        eps, scale, stride = options
        with _exactly(x):
            rows = _rows(x, stride)
            m, spread = _moments(rows, False)
            mean, var = _through(weight, m, spread)
            a = gamma * scale * torch.rsqrt(var + eps)
            current = _image(rows @ (a[:, None] * weight).to(x.dtype).t(), x, stride)
        ctx.save_for_backward(x, weight, gamma, m, spread, mean, var)
        ctx.options = options
        ctx.mark_non_differentiable(mean, var)
        return current, bias + beta - a * mean, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, sum_dz: Tensor, *_: Tensor) -> Any:
        x, weight, gamma, m, spread, mean, var = ctx.saved_tensors
        eps, scale, stride = ctx.options
        with _exactly(x):
            rstd = torch.rsqrt(var + eps)
            rows, grads = _rows(x, stride), _rows(dz, 1)
            products = _products(grads, rows)
            sum_dz_xhat = rstd * ((weight * products).sum(1) - mean * sum_dz)
            by = _Back(weight, gamma * scale * rstd, rstd, sum_dz, sum_dz_xhat, len(rows))
            dx = by.input(rows, grads, mean) if ctx.needs_input_grad[0] else None
            dweight = by.weight(products, m, spread)
        by_x = None if dx is None else _spread_out(_image(dx, dz, 1), x, stride)
        return by_x, dweight, sum_dz_xhat * scale, sum_dz, sum_dz, None


class _Back:
    """The gradients of y = x W' through the norm behind it, of ``count`` rows; see the module's docstring."""

    def __init__(
        self, weight: Tensor, a: Tensor, rstd: Tensor, sum_dz: Tensor, sum_dz_xhat: Tensor, count: int
    ) -> None:  # fmt: skip
        self.w, self.a, self.count, self.sum_dz = weight, a, count, sum_dz
        self.c = a * rstd * sum_dz_xhat  # count times the c of the docstring

    def input(self, rows: Tensor, grads: Tensor, mean: Tensor) -> Tensor:
        """[M, K] in the dtype of the rows."""
        dtype, share = rows.dtype, 1 / self.count
        constant = (self.c * mean).addcmul_(self.a, self.sum_dz, value=-1) @ self.w
        through_y = self.w.t() @ (self.c[:, None] * self.w)
        small = torch.addmm(
            (constant * share).to(dtype), rows, (through_y * share).to(dtype), alpha=-1
        )
        return small.addmm_(grads, (self.a[:, None] * self.w).to(dtype))

    def weight(self, products: Tensor, m: Tensor, spread: Tensor) -> Tensor:
        """[C, K] in the membrane's dtype. products: dz'x."""
        direct = torch.addr(products, self.sum_dz, m, alpha=-1).mul_(self.a[:, None])
        return direct.addcmul_(self.c[:, None], self.w @ spread, value=-1)


def _moments(rows: Tensor, binary: bool) -> tuple[Tensor, Tensor]:
    """Mean [K] and covariance [K, K] of rows [M, K], in the membrane's dtype.

    Of spikes x'x and m m' lie close together in float64. Of currents far from zero their difference would lose the
    digits that x'x has in float32: these are centred first.
    """
    wide, count = membrane_dtype(rows.dtype), len(rows)
    if binary:
        gram = _products(rows, rows, torch.float64)
        m = gram.diagonal() / count
        return m.to(wide), torch.addr(gram, m, m, beta=1 / count, alpha=-1).to(wide)
    m = (rows.sum(0, dtype=torch.float64) / count).to(wide)
    centred = rows - m
    return m, _products(centred, centred) / count


def _through(weight: Tensor, m: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of what a convolution makes of inputs with these moments."""
    return weight @ m, ((weight @ spread) * weight).sum(1).clamp(min=0.0)


def _products(a: Tensor, b: Tensor, out: torch.dtype | None = None) -> Tensor:
    """a'b of a [M, C] and b [M, K], summed in the membrane's dtype; ``out``: the result in another one."""
    wide = membrane_dtype(a.dtype)
    out = out or wide
    if not a.is_cuda:
        return (a.to(wide).t() @ b.to(wide)).to(out)
    return _in_parts(a, b, _parts(len(a), a.shape[1], b.shape[1]), out)


def _in_parts(a: Tensor, b: Tensor, parts: int, out: torch.dtype) -> Tensor:
    """``_products`` as the sum of so many, each of equally many rows."""
    wide = membrane_dtype(a.dtype)
    a, b = a.view(parts, -1, a.shape[1]).transpose(1, 2), b.view(parts, -1, b.shape[1])
    shares = torch.bmm(a, b) if a.dtype == wide else torch.bmm(a, b, out_dtype=wide)
    return shares.sum(0, dtype=out)


def _parts(rows: int, c: int, k: int) -> int:
    """Of how many products of equally many rows a sum is made, so that each processor of a GPU has work."""
    most = max(1, PROCESSORS // (-(-c // TILE) * -(-k // TILE)))
    return next(parts for parts in range(min(most, rows), 0, -1) if rows % parts == 0)


def _rows(x: Tensor, stride: int) -> Tensor:
    """x [T, B, K, ...] as [M, K]: of channels_last without stride a view."""
    return x[:, :, :, *_steps(x, stride)].movedim(2, -1).reshape(-1, x.shape[2])


def _steps(x: Tensor, stride: int) -> list[slice]:
    return [slice(None, None, stride)] * (x.dim() - 3)


def _image(rows: Tensor, x: Tensor, stride: int) -> Tensor:
    """[M, C] as [T, B, C, ...], channels_last, where x has the pixels, or every ``stride``-th of them."""
    return rows.view(*x.shape[:2], *_sides(x, stride), -1).movedim(-1, 2)


def _spread_out(image: Tensor, x: Tensor, stride: int) -> Tensor:
    """Like x, with the image at every ``stride``-th pixel and 0 elsewhere."""
    if stride == 1:
        return image
    out = torch.zeros_like(x)
    out[:, :, :, *_steps(x, stride)] = image
    return out


def _exactly(x: Tensor) -> torch.autocast:
    """Small products stay in float32 where autocast would round them."""
    return torch.autocast(x.device.type, enabled=False)


@torch.no_grad()
def _follow(mean: Tensor, var: Tensor, y: Tensor, norm: Norm) -> None:
    """Moves the running statistics, where there are any."""
    if norm.running_mean is not None and norm.running_var is not None:
        running = norm.running_mean, norm.running_var, norm.momentum
        update_running(mean, var, norm.count(y), running)


def _checked(x: Tensor, weight: Tensor, norm: Norm, stride: int) -> Tensor:
    """The convolution's weights as [C, K]."""
    if x.dtype not in DTYPES:
        raise TypeError(f"x is {x.dtype}; accepted: {', '.join(map(str, DTYPES))}")
    if not fits(x):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and strides {x.stride()}; accepted: dense [T, B, K, ...] with the channels "
            "innermost, as channels_last has them"
        )
    wide = membrane_dtype(x.dtype)
    if weight.shape[2:].numel() != 1 or weight.shape[1:2] != x.shape[2:3]:
        accepted = f"[C, {x.shape[2]}, 1, 1], a 1x1 convolution without groups"
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted: {accepted}")
    for name, value in (("weight", weight), ("bn_weight", norm.weight), ("bn_bias", norm.bias)):
        if value is None or value.dtype != wide:
            given = "None" if value is None else str(value.dtype)
            raise TypeError(f"{name} is {given}; accepted: {wide}, for x of {x.dtype}")
    if not norm.training or norm.process_group is not None:
        raise ValueError("norm: accepted: one in training, whose statistics no other rank shares")
    if _count(x, stride) < 2:
        about = f"got x of shape {tuple(x.shape)}" + f" and stride {stride}" * (stride > 1)
        raise ValueError(f"batch norm needs more than 1 value per channel when training, {about}")
    return weight.flatten(1)


def _count(x: Tensor, stride: int) -> int:
    """Pixels that a convolution of this stride gives, of all steps and images."""
    return x.shape[:2].numel() * math.prod(_sides(x, stride))


def _sides(x: Tensor, stride: int) -> list[int]:
    return [-(-side // stride) for side in x.shape[3:]]
