"""Leaky: LIF by its decay, in the words of snnTorch and norse, which `from_snntorch` and `from_norse` read."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from ..neurons.base import AllOptions, SpikingNeuron, keep, wide
from ..neurons.lif import Integrator
from .peers import read_norse, read_snntorch


class Leaky(Integrator):
    """Leaky integrate and fire: h[t] = beta * v[t-1] + gain * x[t], over a whole window [T, B, ...].

    With ``reset_delay`` it is snnTorch's Leaky: a step's reset is applied when the next one begins, so that the
    membrane of a step is the potential that decided on its spike, which read-outs train on.

    Args:
        beta: membrane kept per step: a number, or a tensor [] or [C], clamped to 0..1 in the call; a Parameter learns.
        v_threshold, v_reset, options: see ``SpikingNeuron``.
        gain: scale of the input.
        reset_delay: snnTorch's timing of the reset; goes with ``detach_reset`` and a hard reset to 0.
        return_mem: calls give (spikes, membranes), the second [T, B, ...] in float32, with its gradient.

    Raises:
        ValueError: a constant out of its range.
    """

    shown = ("beta", "reset_delay", *SpikingNeuron.shown)
    beta: float | Tensor

    def __init__(
        self,
        beta: float | Tensor,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = None,
        *,
        gain: float = 1.0,
        reset_delay: bool = False,
        return_mem: bool = False,
        **options: Unpack[AllOptions],
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        if not isinstance(beta, Tensor) and not 0 <= beta <= 1:
            raise ValueError(f"beta {beta!r}: accepted: a number from 0 to 1, or a tensor")
        if reset_delay and not (self.detach_reset and v_reset in (None, 0.0)):
            raise ValueError(
                f"reset_delay with detach_reset={self.detach_reset}, v_reset={v_reset}; "
                "accepted: detach_reset=True and v_reset None or 0.0"
            )
        keep(self, "beta", beta)
        self.gain = float(gain)
        self.reset_delay = reset_delay
        self.return_mem = return_mem

    @property
    def takes_norm(self) -> bool:  # type: ignore[override]
        return not self.return_mem

    @property
    def keeps_trace(self) -> bool:
        return self.store_v_seq or self.return_mem

    @property
    def decay(self) -> float | Tensor:
        return wide(self.beta).clamp(0, 1) if isinstance(self.beta, Tensor) else self.beta

    def forward(  # type: ignore[override]
        self, x: Tensor, matrix: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Currents [T, B, ...] (with step_mode "s" [B, ...]) -> spikes, with ``return_mem`` also the membranes."""
        spikes = super().forward(x, matrix)
        if not self.return_mem:
            return spikes
        assert self.v_seq is not None
        membranes = self.v_seq[0] if self.step_mode == "s" else self.v_seq
        if not self.store_v_seq:
            self.v_seq = None
        return spikes, membranes

    @classmethod
    def from_snntorch(cls, leaky: nn.Module, *, return_mem: bool = True, **options: Any) -> Leaky:
        """What a ``snntorch.Leaky`` computes in a loop over time steps, for a whole window at once.

        beta, threshold, reset mechanism, reset delay and surrogate are those of ``leaky``; what learns there is the
        same Parameter here. It gives spikes and membranes, as snnTorch's does.

        Args:
            leaky: the module.
            return_mem: else calls give spikes only.
            options: ``stateful``, ``step_mode``.

        Raises:
            ValueError: what has no equal here, by its name.
        """
        return cls(**read_snntorch(leaky), return_mem=return_mem, **options)

    @classmethod
    def from_norse(cls, cell: nn.Module, **options: Any) -> Leaky:
        """What a norse ``LIFBoxCell`` or ``IAFCell`` computes in a loop over time steps, for a whole window at once.

        Args:
            cell: the module, or one over time (``IAF``).
            options: ``stateful``, ``step_mode``, ``return_mem``.

        Raises:
            ValueError: what has no equal here, by its name.
        """
        return cls(**read_norse(cell), **options)
