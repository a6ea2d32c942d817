"""Delays that learn: a linear layer over sequences, each of whose synapses has a delay of its own.

Hammouamri, Khalfaoui-Hassani & Masquelier 2023 (arXiv 2306.17670), a dilated convolution in time with learnable
positions; with x[t] = 0 before the window,

    y[t, b, o] = bias[o] + sum over d and i of K[d, o, i] * x[t - d, b, i]          d = 0 ... longest

    training     K[d, o, i] = weight[o, i] * g[d] / (g[0] + ... + g[longest])
                 g[d] = exp(-((d - longest * position[o, i]) / sigma)^2 / 2)
    evaluation   K[d, o, i] = weight[o, i] where d is the whole number nearest to longest * position[o, i], else 0

On a CPU float32 and float64 are a matrix product for each delay, which adds to the one before: time comes first, so
what is shifted lies in one piece of memory, and nothing is copied. Half precision, which must not round each of so
many sums, and GPUs are a convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SHARPEST = 0.5  # sigma at the end, in steps: 0.79 of a weight is then at its delay, and 0.11 at either side
ANNEALED = 0.5  # share of the training after which sigma is at its end


class Delays(nn.Module):
    """A linear layer whose synapses have learnable delays of 0 to ``longest`` steps: [T, B, inputs] -> [T, B, outputs].

    The answer has the dtype of the input, or autocast's. In training mode a synapse reads a few steps around its delay,
    weighted by a Gaussian of width ``sigma``, so that the delay has a gradient. In eval mode it reads one step: delays
    are rounded. ``anneal`` makes the two agree; without it ``sigma`` stays wide, and what was trained is not what
    is evaluated.

    Nothing is kept between calls unless ``stateful``: then the next call continues where this one ended, so that chunks
    of any length give what the whole window gives. ``reset()`` forgets what was kept, ``detach()`` cuts its gradient.

    Args:
        inputs, outputs: channels.
        longest: the longest delay, in steps, at least 1.
        bias: whether a bias is added, which begins at 0.

    Attributes:
        weight: parameter [outputs, inputs]; begins as that of ``torch.nn.Linear``.
        position: parameter [outputs, inputs]: the delay as a share of ``longest``, so that a step of an optimizer
            moves it alike whatever ``longest`` is; begins uniform from 0 to 1. Weight decay would shorten it.
        sigma: buffer [], in steps; begins at longest / 2.
        cut_time: no gradient goes from step to step; the answer stays as it is.

    Raises:
        ValueError, TypeError: naming what was given and what is accepted, when made and in the call.
    """

    weight: nn.Parameter
    position: nn.Parameter
    sigma: Tensor
    undecayed = ("position",)

    def __init__(self, inputs: int, outputs: int, longest: int, *, bias: bool = False) -> None:
        super().__init__()
        for name, value in (("inputs", inputs), ("outputs", outputs), ("longest", longest)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} {value!r}: accepted: an integer of at least 1")
        self.in_features, self.out_features, self.longest = inputs, outputs, longest
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.position = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.register_buffer("sigma", torch.tensor(self._sigma(0.0)))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.uniform_(self.position)
        self.stateful = self.cut_time = False
        self.held: Tensor | None = None  # the last inputs, up to ``longest``

    def _sigma(self, share: float) -> float:
        widest = max(self.longest / 2, SHARPEST)
        return widest * (SHARPEST / widest) ** min(1.0, share / ANNEALED)

    @torch.no_grad()
    def anneal(self, share: float) -> None:
        """To be called before each training step: narrows the Gaussian, and moves delays back into their range.

        sigma falls exponentially from longest / 2 to 0.5 in the first half of the training, and then stays.

        Args:
            share: of the training that is done, 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share {share!r}: accepted: 0 to 1, of the training that is done")
        self.sigma.fill_(self._sigma(share))
        self.position.clamp_(0, 1)

    def delays(self) -> Tensor:
        """The delays of evaluation, int64 [outputs, inputs], in steps."""
        return (
            (self.position.detach().double() * self.longest).round().long().clamp(0, self.longest)
        )

    def kernel(self) -> Tensor:
        """K [longest + 1, outputs, inputs], float32 (float64 of float64 parameters)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        weight = self.weight.to(wide)
        if not self.training:
            zeros = weight.new_zeros(self.longest + 1, *weight.shape)
            return zeros.scatter(0, self.delays().unsqueeze(0), weight.unsqueeze(0))
        steps = torch.arange(self.longest + 1, device=weight.device, dtype=wide).view(-1, 1, 1)
        away = (steps - self.longest * self.position.to(wide)) / self.sigma.to(wide)
        return weight * (-0.5 * away.square()).softmax(0)

    def define(self, x: Tensor) -> Tensor:
        """The answer to [T, B, inputs] by the definition, in plain PyTorch: a product for each step and delay.

        Of a whole window, whatever is kept.
        """
        kernel = self.kernel().to(x.dtype)
        rows = []
        for t in range(len(x)):
            reached = range(min(t, self.longest) + 1)
            rows.append(torch.stack([x[t - d] @ kernel[d].T for d in reached]).sum(0))
        y = torch.stack(rows)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.in_features or not len(x) or not x.is_floating_point():
            raise ValueError(
                f"input of Delays is {x.dtype} of shape {tuple(x.shape)}; accepted: floating point "
                f"[T, B, {self.in_features}]"
            )
        device = x.device.type
        dtype = x.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            kernel = self.kernel().to(dtype)
            given, past = x.to(dtype).contiguous(), self._past(x)
            whole = given if past is None else torch.cat([past.to(dtype), given])
            y = _delayed(whole.detach() if self.cut_time else whole, kernel, len(x))
            if self.cut_time:
                y = y + (given - given.detach()) @ kernel[0].T
            return y if self.bias is None else y + self.bias.to(dtype)

    def _past(self, x: Tensor) -> Tensor | None:
        """What is kept of the steps before x, which it keeps in turn."""
        if not self.stateful:
            return None
        past = self.held
        if past is not None and (past.shape[1:], past.device) != (x.shape[1:], x.device):
            raise ValueError(
                f"a chunk of shape {tuple(x.shape)} on {x.device} does not continue steps of shape "
                f"{tuple(past.shape[1:])} on {past.device}; reset() starts a new window"
            )
        self.held = (x if past is None else torch.cat([past.to(x.dtype), x]))[-self.longest :]
        return past

    def reset(self) -> None:
        """Forgets what was kept: the next call starts a new window."""
        self.held = None

    def detach(self) -> None:
        """Keeps the values of the last steps and cuts their gradients."""
        self.held = None if self.held is None else self.held.detach()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the last steps without their graph, which torch cannot copy."""
        return self.__dict__ | {"held": None if self.held is None else self.held.detach()}

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, longest={self.longest}, bias={bias}"


def _delayed(x: Tensor, kernel: Tensor, steps: int) -> Tensor:
    """y [T, B, O] of the last T steps of x [S, B, I], S >= T, by a kernel [D + 1, O, I]."""
    if torch.is_grad_enabled() and (x.requires_grad or kernel.requires_grad):
        return _Delayed.apply(x, kernel, steps)
    written = torch.jit.is_tracing() or torch.compiler.is_exporting()  # for other programs
    return _convolved(x, kernel, steps) if written else _forward(x, kernel, steps)


def _forward(x: Tensor, kernel: Tensor, steps: int) -> Tensor:
    if not _by_products(x):
        return _convolved(x, kernel, steps)
    y = x.new_zeros(steps * x.shape[1], kernel.shape[1])
    for d, rows, read in _shifts(x, kernel, steps):
        y[rows].addmm_(x.view(-1, x.shape[2])[read], kernel[d].T)
    return y.view(steps, x.shape[1], -1)


class _Delayed(torch.autograd.Function):
    """``_delayed`` with a gradient. Keeps the input and the kernel, and no more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.steps = steps
        return _forward(x, kernel, steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, kernel = ctx.saved_tensors
        if not _by_products(x):
            return *_convolved_back(grad, x, kernel, ctx.needs_input_grad), None
        by_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        by_kernel = torch.zeros_like(kernel) if ctx.needs_input_grad[1] else None
        flat, upstream = x.view(-1, x.shape[2]), grad.reshape(-1, kernel.shape[1])
        for d, rows, read in _shifts(x, kernel, ctx.steps):
            if by_x is not None:
                by_x.view(flat.shape)[read].addmm_(upstream[rows], kernel[d])
            if by_kernel is not None:
                torch.mm(upstream[rows].T, flat[read], out=by_kernel[d])
        return by_x, by_kernel, None


def _by_products(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _shifts(x: Tensor, kernel: Tensor, steps: int) -> list[tuple[int, slice, slice]]:
    """Each delay that reaches, the rows of y that it adds to, and those of x that it reads."""
    batch, before, found = x.shape[1], len(x) - steps, []
    for d in range(min(len(kernel), len(x))):
        first = max(0, d - before)
        rows = slice(first * batch, steps * batch)
        found.append((d, rows, slice((first + before - d) * batch, (len(x) - d) * batch)))
    return found


def _laid_out(x: Tensor, kernel: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """[B, I, D + T] and [O, I, D + 1] of a convolution: with the steps before, and the latest last."""
    missing = len(kernel) - 1 - (len(x) - steps)
    x = x[max(0, -missing) :].permute(1, 2, 0)
    return nn.functional.pad(x, (max(0, missing), 0)), kernel.flip(0).permute(1, 2, 0).contiguous()


def _convolved(x: Tensor, kernel: Tensor, steps: int) -> Tensor:
    return nn.functional.conv1d(*_laid_out(x, kernel, steps)).permute(2, 0, 1).contiguous()


def _convolved_back(
    grad: Tensor, x: Tensor, kernel: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    laid = _laid_out(x, kernel, len(grad))
    by_x, by_kernel, _ = torch.ops.aten.convolution_backward(
        grad.permute(1, 2, 0), *laid, None, [1], [0], [1], False, [0], 1, [*needs[:2], False]
    )
    if by_x is not None:
        found = by_x.permute(2, 0, 1)
        lacking = len(x) - len(found)  # what was too long ago, or the zeros in front
        by_x = (
            nn.functional.pad(found, (0, 0, 0, 0, lacking, 0)) if lacking > 0 else found[-len(x) :]
        )
        by_x = by_x.contiguous()
    return by_x, None if by_kernel is None else by_kernel.permute(2, 0, 1).flip(0).contiguous()
