"""I-LIF, CLIF and ALIF as modules: neurons with other spikes, or with a second state beside the membrane."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..neuron import MAX_LEVELS
from ..states import multistep_alif, multistep_clif, multistep_ilif
from ..surrogate import Surrogate
from .neurons import SpikingNeuron, keep, wide, words_of


class _BeyondLIF(SpikingNeuron):
    """What they share: the decay, and where the window starts.

    They have no probe, and no batch norm in their kernel. ``stateful`` keeps the second state ``m`` as it keeps ``v``.
    """

    takes_norm = False
    decay: float | Tensor
    m: Tensor | None

    def __init__(
        self,
        tau: float,
        decay: float | Tensor | None,
        v_threshold: float | Tensor,
        v_reset: float | None,
        **options: Any,
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        if not (tau >= 1 and math.isfinite(tau)):
            raise ValueError(f"tau {tau!r}: accepted: a finite number of at least 1")
        keep(self, "decay", 1 - 1 / tau if decay is None else decay)
        self.m = None

    def neuron_arguments(self) -> dict[str, Any]:
        raise TypeError(f"{type(self).__name__} is not LIF: multistep_lif has no arguments for it")

    def _shared(self) -> dict[str, Any]:
        """Arguments that all of their functions have."""
        decay, threshold = (
            wide(c) if isinstance(c, Tensor) else c for c in (self.decay, self.v_threshold)
        )
        return dict(decay=decay, threshold=threshold, detach_reset=self.detach_reset)

    def _states(self) -> dict[str, Any]:
        return dict(v_init=self.v, m_init=self.m)

    def forward(self, x: Tensor) -> Tensor:
        """Currents [T, B, ...] (with step_mode "s" [B, ...]) -> spikes of the same shape, dtype and memory layout."""
        if self.probe is not None:
            raise ValueError(
                f"{type(self).__name__} has a probe; accepted with: IF, LIF, PLIF, Leaky"
            )
        if self.step_mode == "s":
            x = x.unsqueeze(0)
        self._check(x)
        if not self.keeps_state:
            return self._spikes(x)
        spikes, (self.v, self.m) = self._spikes(x, **self._states(), return_state=True)
        return spikes[0] if self.step_mode == "s" else spikes

    def _spikes(self, x: Tensor, **states: Any) -> Any:
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets both states: the next call starts a new window."""
        super().reset()
        self.m = None

    def detach(self) -> None:
        """Keeps the states' values and cuts their gradients (truncated back-propagation)."""
        super().detach()
        if self.m is not None:
            self.m = self.m.detach()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"m": None if self.m is None else self.m.detach()}

    def extra_repr(self) -> str:
        return f"decay={words_of(self.decay)}, {super().extra_repr()}"


class ILIF(_BeyondLIF):
    """I-LIF (Luo et al. 2024): a step gives 0..levels spikes, s = round(clamp(h / v_threshold, 0, levels)).

    SpikingJelly's ILIFNode. ``spiketriton_kernels.virtual_steps`` turns its spikes into binary steps for inference.

    Args:
        tau: time constant in steps; the published decay is 0.25.
        v_threshold: see ``SpikingNeuron``.
        levels: D, the most spikes of a step, 1 to 255.
        decay: membrane kept per step, in place of 1 - 1 / tau: a number, or a tensor [] or [C]; a Parameter learns.
        detach_reset, stateful, step_mode: see ``SpikingNeuron``.

    Raises:
        ValueError: a constant out of its range.
    """

    def __init__(
        self,
        tau: float = 4 / 3,
        v_threshold: float | Tensor = 1.0,
        levels: int = 4,
        *,
        decay: float | Tensor | None = None,
        detach_reset: bool = False,
        stateful: bool = False,
        step_mode: str = "m",
    ) -> None:
        super().__init__(
            tau, decay, v_threshold, None, detach_reset=detach_reset, stateful=stateful, step_mode=step_mode
        )  # fmt: skip
        if not isinstance(levels, int) or not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"levels {levels!r}: accepted: an integer from 1 to {MAX_LEVELS}")
        self.levels = levels

    def _states(self) -> dict[str, Any]:
        return dict(v_init=self.v)

    def _spikes(self, x: Tensor, **states: Any) -> Any:
        return multistep_ilif(x, levels=self.levels, **self._shared(), **states)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, {super().extra_repr()}"


class CLIF(_BeyondLIF):
    """CLIF (Huang et al. 2024): a complementary potential m makes the reset deeper the more the neuron fired.

    SpikingJelly's ComplementaryLIFNode; equations in ``spiketriton_kernels.states``.

    Args:
        tau: time constant in steps, >= 1.
        v_threshold, detach_reset, surrogate, stateful, step_mode: see ``SpikingNeuron``.
        decay: see ``ILIF``.

    Raises:
        ValueError: a constant out of its range.
    """

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float | Tensor = 1.0,
        *,
        decay: float | Tensor | None = None,
        detach_reset: bool = False,
        surrogate: Surrogate | None = None,
        stateful: bool = False,
        step_mode: str = "m",
    ) -> None:
        super().__init__(
            tau, decay, v_threshold, None,
            detach_reset=detach_reset, surrogate=surrogate, stateful=stateful, step_mode=step_mode,
        )  # fmt: skip

    def _spikes(self, x: Tensor, **states: Any) -> Any:
        return multistep_clif(x, surrogate=self.surrogate, **self._shared(), **states)


class ALIF(_BeyondLIF):
    """Adaptive LIF (Bellec et al. 2018): the threshold rises with each spike and decays in between.

    The threshold of a step is v_threshold + beta * m[t-1], with m[t] = rho * m[t-1] + (1 - rho) * s[t].

    Args:
        tau: time constant of the membrane in steps, >= 1.
        tau_adaptation: that of the threshold, >= 1: rho = 1 - 1 / tau_adaptation.
        beta: how far the threshold rises; a number, or a tensor [] or [C], of which a Parameter learns.
        v_threshold: the threshold without spikes.
        v_reset: 0.0 (hard reset) or None (soft reset, by the threshold of the step).
        decay, rho: in place of what the time constants say: numbers, or tensors [] or [C]; Parameters learn.
        detach_reset, surrogate, stateful, step_mode: see ``SpikingNeuron``.

    Raises:
        ValueError: a constant out of its range.
    """

    rho: float | Tensor
    beta: float | Tensor

    def __init__(
        self,
        tau: float = 2.0,
        tau_adaptation: float = 10.0,
        beta: float | Tensor = 1.0,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = None,
        *,
        decay: float | Tensor | None = None,
        rho: float | Tensor | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate | None = None,
        stateful: bool = False,
        step_mode: str = "m",
    ) -> None:
        if v_reset not in (None, 0.0):
            raise ValueError(f"v_reset {v_reset!r} of an ALIF: accepted: 0.0, None")
        super().__init__(
            tau, decay, v_threshold, v_reset,
            detach_reset=detach_reset, surrogate=surrogate, stateful=stateful, step_mode=step_mode,
        )  # fmt: skip
        if not (tau_adaptation >= 1 and math.isfinite(tau_adaptation)):
            raise ValueError(
                f"tau_adaptation {tau_adaptation!r}: accepted: a finite number of at least 1"
            )
        keep(self, "rho", 1 - 1 / tau_adaptation if rho is None else rho)
        keep(self, "beta", beta)

    def _spikes(self, x: Tensor, **states: Any) -> Any:
        rho, beta = (wide(c) if isinstance(c, Tensor) else c for c in (self.rho, self.beta))
        return multistep_alif(
            x, rho=rho, beta=beta, reset=self.reset_mode, surrogate=self.surrogate, **self._shared(), **states
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"rho={words_of(self.rho)}, beta={words_of(self.beta)}, {super().extra_repr()}"
