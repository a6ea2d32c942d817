"""The record of a neuron of the second operator, from the public functions of states.py to the kernels' launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .neuron import MAX_LEVELS, States, as_small

KINDS = ("integer", "complementary", "adaptive", "leaky")
"""I-LIF, CLIF and ALIF, by what is theirs, and LIF with what its own kernels leave out."""

RESETS = ("soft", "hard", "none", "delayed soft", "delayed hard")
"""A delayed reset belongs to the next step: v[t] is h[t], and h[t+1] is charged from what the reset leaves of it."""

__all__ = ["KINDS", "MAX_LEVELS", "RESETS", "StateNeuron", "States"]


@dataclass(frozen=True, eq=False, kw_only=True)
class StateNeuron:
    """The constants of a neuron of ``KINDS``; rho and beta are ALIF's, levels is I-LIF's D, v_reset is LIF's."""

    kind: str
    decay: float | torch.Tensor
    gain: float | torch.Tensor
    threshold: float | torch.Tensor
    rho: float | torch.Tensor = 0.0
    beta: float | torch.Tensor = 0.0
    reset: str = "soft"
    v_reset: float = 0.0
    detach_reset: bool = False
    levels: int = 1
    shape: str = "atan"
    height: float = 1.0
    width: float = 1.0

    @property
    def parameters(self) -> tuple[float | torch.Tensor, ...]:
        """Those that may learn, in the order of the gradients' rows."""
        return self.decay, self.threshold, self.rho, self.beta, self.gain

    @property
    def parameter_size(self) -> int:
        """Values of the largest parameter."""
        return max(p.numel() if isinstance(p, torch.Tensor) else 1 for p in self.parameters)

    def words(self) -> str:
        reset = self.reset.replace(" ", "_")
        return f"{self.kind} {reset} {self.shape} {int(self.detach_reset)} {self.levels}"

    @property
    def v_start(self) -> float:
        """v[-1] when no v_init is given."""
        return self.v_reset if self.reset == "hard" else 0.0

    @property
    def leaks_to_reset(self) -> bool:
        return self.reset == "hard" and self.v_reset != 0.0

    def floats(self) -> list[float]:
        numbers = [1.0 if isinstance(p, torch.Tensor) else float(p) for p in self.parameters]
        return [*numbers, self.v_reset, self.height, self.width]

    @staticmethod
    def of(x: torch.Tensor, tensors: tuple, words: str, floats: list[float]) -> StateNeuron:
        """For the input x, from what ``words``, ``floats`` and the parameters that are tensors say."""
        kind, reset, shape, detach, levels = words.split(" ")
        values = [
            f if p is None else as_small(p, x) for p, f in zip(tensors, floats[:5], strict=True)
        ]
        decay, threshold, rho, beta, gain = values
        v_reset, height, width = floats[5:]
        return StateNeuron(
            kind=kind, decay=decay, gain=gain, threshold=threshold, rho=rho, beta=beta,
            reset=reset.replace("_", " "), v_reset=v_reset, detach_reset=detach == "1", levels=int(levels),
            shape=shape, height=height, width=width,
        )  # fmt: skip
