"""Parallel spiking neurons (Fang et al. 2023, arXiv 2304.12760): PSN, masked PSN and sliding PSN.

The potentials of a window are one matrix product over time, H = W X + b with W [T, T], and s[t] = 1 where h[t] >= 0. No
step reads the state after another: the product is PyTorch's, and what follows is a threshold, whose step reads nothing
of the one before. Surrogates, the probe, and ``v_seq`` are therefore those of every neuron.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import PROBE_FIELDS, check_input
from ..layout import dense, like
from ..neuron import membrane_dtype
from ..surrogate import Surrogate
from ..window.fire import leaves
from .base import SpikingNeuron
from .definition import OneStep, Walk


class ParallelNeuron(SpikingNeuron):
    """What the three share. A subclass gives ``weight_of(T)``, W of a window of T steps, and has a parameter ``bias``.

    The potentials are computed in float32 (float64 for float64), also under autocast. ``v_seq`` is h + b.
    Where no step reads a later one, ``stateful`` keeps the inputs that the next steps read, so that chunks of any
    length give what the window gives.

    Args:
        v_threshold: where the learnt threshold -bias begins.
        surrogate, store_v_seq: see ``SpikingNeuron``.

    Attributes:
        cut_time: no gradient goes from step to step; the spikes stay as they are.

    Raises:
        ValueError: a constant out of its range; in the call, a window of another length, or a membrane to be kept.
    """

    kind = "psn"
    states = ("v",)
    options: ClassVar = {"reset_mode": ("none",)}
    shown: tuple[str, ...] = ("surrogate",)
    resets = ("none",)
    takes_norm = False
    weight: nn.Parameter
    bias: nn.Parameter
    _past: Tensor | None  # the last inputs of a window in chunks
    _at: int  # its next step
    _before: tuple[Tensor | None, int]  # both, before the last chunk

    def __init__(
        self,
        v_threshold: float = 1.0,
        *,
        surrogate: Surrogate | None = None,
        store_v_seq: bool = False,
    ) -> None:
        if isinstance(v_threshold, Tensor):
            raise TypeError(
                f"v_threshold of {type(self).__name__} as a tensor of shape {tuple(v_threshold.shape)}; accepted: a "
                "number, where the bias begins, which learns"
            )
        super().__init__(
            v_threshold, None, reset="none", surrogate=surrogate, store_v_seq=store_v_seq
        )
        self.cut_time = False
        self.forget()

    @property
    def reach(self) -> int:
        """How many steps a step reads, itself and those before it; 0: later ones, too."""
        return 0

    def weight_of(self, steps: int) -> Tensor:
        raise NotImplementedError

    def of_chunk(self, start: int, steps: int, past: int) -> tuple[Tensor, Tensor]:
        """W [steps, past + steps] and b of a chunk from step ``start`` on, which reads so many steps before it."""
        raise NotImplementedError

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.fire(x), x

    def define(self, x: Tensor) -> Tensor:
        """See ``SpikingNeuron.define``; the product is by einsum."""
        wide = membrane_dtype(x.dtype)
        weight, bias = self.weight_of(len(x)).to(wide), self.bias.to(wide)
        h = torch.einsum("tj,j...->t...", weight, x.to(wide))
        return super().define(h + bias.view(-1, *[1] * (x.ndim - 1))).to(x.dtype)

    def walk(self, step: OneStep, current: Tensor, states: Sequence[Tensor], trace: bool) -> Walk:
        """No step reads the one before, so that all are one, where they are written down."""
        if not leaves():
            return super().walk(step, current, states, trace)
        spikes, after = step(current, [current])
        return Walk(spikes, [v[-1] for v in after], after[0] if trace else None)

    def _check(self, x: Tensor) -> None:  # not as others: no parameter is by channels
        if self.keeps_state and (self.step_mode == "s" or not self.reach):
            how = "step_mode 's'" if self.step_mode == "s" else "stateful=True"
            raise ValueError(
                f"{type(self).__name__} has {how}; accepted: whole windows [T, B, ...], because it has no state that "
                "a step or a chunk could hand to the next"
            )
        check_input("x", x)
        if self.stateful and self._past is not None:
            given, kept = (x.shape[1:], x.device), (self._past.shape[1:], self._past.device)
            if given != kept:
                raise ValueError(
                    f"a chunk of shape {tuple(x.shape)} on {x.device} does not continue steps of shape "
                    f"{tuple(kept[0])} on {kept[1]}; reset() starts a new window"
                )

    def _prepared(self, x: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = dense(x)
        if probe is not None:
            x, probe = _Watched.apply(x, probe)
        return self._potentials(x), probe

    def _potentials(self, x: Tensor) -> Tensor:
        """W X + b, in the memory order of x."""
        wide = membrane_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            read, weight, bias = self._read(x)
            weight, bias = weight.to(wide), bias.to(wide)
            given = x.detach() if self.cut_time else x
            read = read.detach() if self.cut_time else read
            order = sorted(range(1, x.ndim), key=x.stride, reverse=True)  # as it lies in memory
            rows = read.permute(0, *order).reshape(len(read), -1).to(wide)
            h = torch.addmm(bias, weight, rows)
            h = h.view(len(x), *(x.shape[d] for d in order))
            h = h.permute(0, *(order.index(d) + 1 for d in range(1, x.ndim)))
            if self.cut_time:
                own = weight.diagonal(len(read) - len(x)).view(-1, *[1] * (x.ndim - 1))
                h = h + own * (x - given).to(wide)
        return like(h, x)

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The steps that those of x read, W and b; of a chunk also steps before it, and some are kept for the next."""
        if not self.stateful:
            return x, self.weight_of(len(x)), self.bias
        again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        past, start = (
            self._before if again else (self._past, self._at)
        )  # a checkpoint repeats a call
        read = x if past is None else torch.cat([past.to(x.dtype), x])
        weight, bias = self.of_chunk(start, len(x), len(read) - len(x))
        if not again:
            self._before = past, start
            self._past = read[max(0, len(read) + 1 - self.reach) :]
            self._at = start + len(x)
        return read, weight, bias

    def forget(self) -> None:
        super().forget()
        self._past, self._at, self._before = None, 0, (None, 0)

    def detach(self) -> None:
        super().detach()
        self._past = None if self._past is None else self._past.detach()

    def __getstate__(self) -> dict[str, Any]:
        past = None if self._past is None else self._past.detach()
        return super().__getstate__() | {"_past": past, "_before": (None, 0)}


class _Watched(torch.autograd.Function):
    """The input and its probe; what the probe says of dL/dx is then of this input, not of the potential."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), probe.view_as(probe)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        rows, sums = grad.detach().flatten(1).float(), sums.clone()
        found = {
            "grad_input_sq": rows.square().sum(1),
            "grad_input_max": rows.abs().amax(1),
            "nonfinite": (~rows.isfinite()).sum(1),
        }
        for name, value in found.items():
            sums[:, PROBE_FIELDS.index(name)] = value
        return grad, sums


class PSN(ParallelNeuron):
    """Parallel spiking neuron: W [T, T] and b [T, 1] are learnt, every step may read every other, also later ones.

    SpikingJelly's PSN.

    Args:
        T: time steps of every window that it is shown.
        options: see ``ParallelNeuron``.

    Raises:
        ValueError: T is below 1, or a constant out of its range.
    """

    recipe: ClassVar[dict[str, Any]] = {
        "kind": "psn",
        "says": "a learnt matrix over the time steps (Fang et al. 2023)",
        "nir": "no: its step reads all steps of a window at once",
        "resets": ("none",),
        "parallel": True,
        "window": "T",
    }
    shown: tuple[str, ...] = ("T", "surrogate")

    def __init__(self, T: int, v_threshold: float = 1.0, **options: Any) -> None:
        super().__init__(v_threshold, **options)
        self.T = _positive("T", T)
        self.weight = nn.Parameter(torch.empty(T, T))
        self.bias = nn.Parameter(torch.full((T, 1), -float(v_threshold)))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def weight_of(self, steps: int) -> Tensor:
        return self.weight

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        steps = len(x) + (self._at if self.stateful else 0)
        if steps > self.T or (steps != self.T and not self.stateful):
            raise ValueError(
                f"{type(self).__name__} was shown {steps} time steps; accepted: {self.T}, for which it has weights"
            )


class MaskedPSN(PSN):
    """Masked PSN: W is masked, so that a step reads itself and the k - 1 before it.

    ``lambda_`` blends the mask in: W * (lambda_ * mask + 1 - lambda_), 0 for a PSN; the paper raises it while it
    trains. SpikingJelly's MaskedPSN, in windows.

    Args:
        k: the order, at least 1.
        T: see ``PSN``.
        lambda_init: what ``lambda_`` begins with, 0 to 1.
        options: see ``ParallelNeuron``.

    Raises:
        ValueError: k or T below 1, or a constant out of its range.
    """

    recipe: ClassVar = {
        "kind": "masked_psn",
        "says": "what is on and below the diagonal of such a matrix",
        "nir": "no: its step reads all steps of a window at once",
        "keys": {"k": "order"},
        "own": {
            "order": (
                2,
                (1, 65_536),
                "steps that a step of masked_psn and sliding_psn reads: itself and those before it",
            )
        },
        "always": {"lambda_init": 1.0},
        "resets": ("none",),
        "parallel": True,
        "window": "T",
    }
    shown = ("k", "lambda_", "T", "surrogate")
    _lambda_: Tensor
    mask0: Tensor
    mask1: Tensor

    def __init__(
        self, k: int, T: int, lambda_init: float = 0.0, v_threshold: float = 1.0, **options: Any
    ) -> None:
        super().__init__(T, v_threshold, **options)
        self.k = _positive("k", k)
        ones = torch.ones(T, T)
        self.register_buffer("_lambda_", torch.zeros(()))  # under SpikingJelly's names
        self.register_buffer("mask0", ones.tril().triu(1 - k), persistent=False)
        self.register_buffer("mask1", ones, persistent=False)
        self.lambda_ = lambda_init

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """SpikingJelly's weights hold the masks, too, which ``k`` and ``T`` say."""
        for name in self._non_persistent_buffers_set:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def lambda_(self) -> Tensor:
        return self._lambda_

    @lambda_.setter
    def lambda_(self, value: float) -> None:
        if not 0 <= float(value) <= 1:
            raise ValueError(f"lambda_ {float(value)}: accepted: 0 to 1")
        self._lambda_.fill_(value)

    def weight_of(self, steps: int) -> Tensor:
        return self.weight * (self._lambda_ * self.mask0 + (1 - self._lambda_) * self.mask1)

    @property
    def reach(self) -> int:
        return self.k if self._lambda_ == 1 else 0

    def of_chunk(self, start: int, steps: int, past: int) -> tuple[Tensor, Tensor]:
        end = start + steps
        return self.weight_of(self.T)[start:end, start - past : end], self.bias[start:end]


class SlidingPSN(ParallelNeuron):
    """Sliding PSN: every step reads itself and the k - 1 before it by the same k weights; windows of any length.

    h[t] = sum over i < k of weight[k - 1 - i] * x[t - i] + bias. SpikingJelly's SlidingPSN, in windows.

    Args:
        k: the order, at least 1.
        exp_init: the weights begin at ..., 1/4, 1/2, 1, as a membrane of tau 2; False: uniform.
        options: see ``ParallelNeuron``.

    Raises:
        ValueError: k is below 1, or a constant out of its range.
    """

    recipe: ClassVar = {
        "kind": "sliding_psn",
        "says": "the same weights at each step",
        "nir": "no: its step reads all steps of a window at once",
        "keys": {"k": "order"},
        "resets": ("none",),
        "parallel": True,
    }
    shown = ("k", "surrogate")

    def __init__(
        self, k: int, exp_init: bool = True, v_threshold: float = 1.0, **options: Any
    ) -> None:
        super().__init__(v_threshold, **options)
        self.k = _positive("k", k)
        weight = 0.5 ** torch.arange(k - 1.0, -1, -1)
        if not exp_init:
            nn.init.kaiming_uniform_(weight.unsqueeze(0), a=math.sqrt(5))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.tensor(-float(v_threshold)))

    def weight_of(self, steps: int) -> Tensor:
        ago = torch.arange(steps, device=self.weight.device)
        ago = ago[:, None] - ago  # of the step that is read (column), for each that reads (row)
        read = (ago >= 0) & (ago < self.k)
        return torch.where(read, self.weight[(self.k - 1 - ago).clamp(0, self.k - 1)], 0.0)

    @property
    def reach(self) -> int:
        return self.k

    def of_chunk(self, start: int, steps: int, past: int) -> tuple[Tensor, Tensor]:
        return self.weight_of(past + steps)[past:], self.bias


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} {value!r}: accepted: an integer of at least 1")
    return value
