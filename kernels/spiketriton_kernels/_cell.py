"""What every backend is handed: the constants and small tensors of one neuron layer, its norm included."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
    def has_tensor_parameters(self) -> bool:
        return any(isinstance(p, torch.Tensor) for p in self.parameters)

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
