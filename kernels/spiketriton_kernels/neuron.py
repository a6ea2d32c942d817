"""What every backend is handed: the constants and small tensors of one neuron layer, its norm included."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..arguments import membrane_dtype


@dataclass(frozen=True)
class Plan:
    """What a call holds beside its tensors.

    The operators take it as one string and one list of floats: their cost grows with each argument, and
    torch.compile can carry a float that it does not know into a list, but not into a string.
    """

    decay: float
    gain: float
    threshold: float
    v_reset: float
    height: float
    width: float
    eps: float
    bn_scale: float
    reset: str
    shape: str
    group: str
    detach_reset: bool
    batch_statistics: bool
    save: bool
    return_v: bool

    def words(self) -> str:
        flags = (self.detach_reset, self.batch_statistics, self.save, self.return_v)
        return " ".join((self.reset, self.shape, self.group, *("01"[flag] for flag in flags)))

    def floats(self) -> list[float]:
        return [
            self.decay, self.gain, self.threshold, self.v_reset,
            self.height, self.width, self.eps, self.bn_scale,
        ]  # fmt: skip

    @staticmethod
    def of(words: str, floats: list[float]) -> Plan:
        return Plan(*floats, *_parsed(words))  # type: ignore[arg-type]


@functools.lru_cache
def _parsed(words: str) -> tuple[str | bool, ...]:
    """Plan's fields from ``reset`` on."""
    reset, shape, group, *flags = words.split(" ")
    return reset, shape, group, *(flag == "1" for flag in flags)


def small(value: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """A parameter or norm tensor as the kernels read it: contiguous, in the membrane's dtype, 1-d."""
    if value is None:
        return None
    wide = membrane_dtype(x.dtype)
    if value.dtype == wide and value.dim() == 1 and value.is_contiguous():
        return value
    return value.detach().to(wide).reshape(-1).contiguous()


@dataclass(frozen=True, eq=False, kw_only=True)
class Cell:
    """Constants of one call. Tensors are contiguous, in the membrane's dtype: parameters (1,) or (C,), norm (C,)."""

    decay: float | torch.Tensor
    gain: float
    threshold: float | torch.Tensor
    reset: str
    v_reset: float
    detach_reset: bool
    shape: str
    height: float
    width: float | torch.Tensor
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    step_gain: torch.Tensor | None = None
    eps: float = 0.0
    bn_scale: float = 1.0

    @staticmethod
    def of(
        x: torch.Tensor,
        plan: Plan,
        parameters: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
        norm: tuple[torch.Tensor | None, ...],
    ) -> Cell:
        """From a plan, the tensors (decay, threshold, width) in its floats' place, and (mean, ..., step_gain)."""
        decay, threshold, width = (small(p, x) for p in parameters)
        mean, var, weight, bias, step_gain = (small(p, x) for p in norm)
        return Cell(
            decay=plan.decay if decay is None else decay,
            gain=plan.gain,
            threshold=plan.threshold if threshold is None else threshold,
            reset=plan.reset,
            v_reset=plan.v_reset,
            detach_reset=plan.detach_reset,
            shape=plan.shape,
            height=plan.height,
            width=plan.width if width is None else width,
            mean=mean,
            var=var,
            weight=weight,
            bias=bias,
            step_gain=step_gain,
            eps=plan.eps,
            bn_scale=plan.bn_scale,
        )

    @property
    def v_start(self) -> float:
        return self.v_reset if self.reset == "hard" else 0.0

    @property
    def leaks_to_reset(self) -> bool:
        return self.reset == "hard" and self.v_reset != 0.0

    @property
    def has_norm(self) -> bool:
        return self.mean is not None

    @property
    def parameters(self) -> tuple[float | torch.Tensor, float | torch.Tensor, float | torch.Tensor]:
        return self.decay, self.threshold, self.width

    @property
    def per_channel(self) -> bool:
        """Whether any value of the cell differs between channels."""
        return self.has_norm or any(
            isinstance(p, torch.Tensor) and p.numel() > 1 for p in self.parameters
        )


@dataclass(frozen=True)
class Emit:
    """What one walk back writes, besides what its name says it always does.

    ``dx`` is the gradient by the neuron's current (also the residual's); ``dy`` the gradient by the norm's input.
    """

    dx: bool = False
    dy: bool = False
    sums: bool = False
    v_init: bool = False
    parameters: bool = False
    step_gain: bool = False
    probe: bool = False

    FIELDS: ClassVar = ("dx", "dy", "sums", "v_init", "parameters", "step_gain", "probe")

    def encode(self) -> str:
        return " ".join(name for name in self.FIELDS if getattr(self, name))

    @staticmethod
    @functools.lru_cache
    def decode(text: str) -> Emit:
        return Emit(**dict.fromkeys(text.split(), True))


@dataclass(eq=False, kw_only=True)
class Gradients:
    """What one walk back returns; None where ``Emit`` did not ask."""

    dx: torch.Tensor | None = None
    dy: torch.Tensor | None = None
    sums: torch.Tensor | None = None  # [2, C]: sum of dz, sum of dz * xhat; dz = step_gain * dx
    v_init: torch.Tensor | None = None
    parameters: torch.Tensor | None = None  # [3, C or 1]: decay, threshold, width
    step_gain: torch.Tensor | None = None  # [T]
    probe: torch.Tensor | None = None  # [T, 8]
