"""The record of a neuron that is not LIF, from the public functions of states.py to the kernels' launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .neuron import as_small

KINDS = ("integer", "complementary", "adaptive")
"""I-LIF, CLIF and ALIF, by what is theirs."""

MAX_LEVELS = 255


class States(NamedTuple):
    """What the next window starts from, [B, ...] each, float32 (float64 for float64 input)."""

    v: torch.Tensor
    m: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class StateNeuron:
    """The constants of a neuron of ``KINDS``; rho and beta are ALIF's, levels is I-LIF's D."""

    kind: str
    decay: float | torch.Tensor
    gain: float
    threshold: float | torch.Tensor
    rho: float | torch.Tensor = 0.0
    beta: float | torch.Tensor = 0.0
    reset: str = "soft"
    detach_reset: bool = False
    levels: int = 1
    shape: str = "atan"
    height: float = 1.0
    width: float = 1.0

    @property
    def parameters(self) -> tuple[float | torch.Tensor, ...]:
        """Those that may learn, in the order of the gradients' rows."""
        return self.decay, self.threshold, self.rho, self.beta

    @property
    def parameter_size(self) -> int:
        """Values of the largest parameter."""
        return max(p.numel() if isinstance(p, torch.Tensor) else 1 for p in self.parameters)

    def words(self) -> str:
        return f"{self.kind} {self.reset} {self.shape} {int(self.detach_reset)} {self.levels}"

    def floats(self) -> list[float]:
        numbers = [1.0 if isinstance(p, torch.Tensor) else float(p) for p in self.parameters]
        return [*numbers, self.gain, self.height, self.width]

    @staticmethod
    def of(x: torch.Tensor, tensors: tuple, words: str, floats: list[float]) -> StateNeuron:
        """For the input x, from what ``words``, ``floats`` and the parameters that are tensors say."""
        kind, reset, shape, detach, levels = words.split(" ")
        values = [
            f if p is None else as_small(p, x) for p, f in zip(tensors, floats[:4], strict=True)
        ]
        decay, threshold, rho, beta = values
        gain, height, width = floats[4:]
        return StateNeuron(
            kind=kind, decay=decay, gain=gain, threshold=threshold, rho=rho, beta=beta, reset=reset,
            detach_reset=detach == "1", levels=int(levels), shape=shape, height=height, width=width,
        )  # fmt: skip
