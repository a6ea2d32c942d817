"""I-LIF, CLIF, ALIF and CuBa-LIF as modules: neurons with other spikes, or with a second state beside the membrane."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from ..neuron import MAX_LEVELS
from .neurons import AllOptions, Options, SpikingNeuron, keep, time_constant


class _BeyondLIF(SpikingNeuron):
    """What they share: the decay, as a time constant or as it is."""

    shown = ("decay", *SpikingNeuron.shown)
    decay: float | Tensor

    def __init__(
        self,
        tau: float,
        decay: float | Tensor | None,
        v_threshold: float | Tensor,
        v_reset: float | None,
        **options: Unpack[AllOptions],
    ) -> None:
        if v_reset not in (None, 0.0):
            raise ValueError(f"v_reset {v_reset!r} of {type(self).__name__}: accepted: 0.0, None")
        super().__init__(v_threshold, v_reset, **options)
        tau = time_constant("tau", tau)
        keep(self, "decay", 1 - 1 / tau if decay is None else decay)

    def neuron_arguments(self) -> dict[str, Any]:
        return super().neuron_arguments() | {"decay": self.decay}


class ILIF(_BeyondLIF):
    """I-LIF (Luo et al. 2024): a step gives 0..levels spikes, s = round(clamp(h / v_threshold, 0, levels)).

    SpikingJelly's ILIFNode. ``spiketriton_kernels.virtual_steps`` turns its spikes into binary steps for inference.

    Args:
        tau: time constant in steps; the published decay is 0.25.
        v_threshold: see ``SpikingNeuron``.
        levels: D, the most spikes of a step, 1 to 255.
        decay: membrane kept per step, in place of 1 - 1 / tau: a number, or a tensor [] or [C]; a Parameter learns.
        detach_reset, options: see ``SpikingNeuron``. It has no surrogate: its spikes follow h / v_threshold.

    Raises:
        TypeError, ValueError: a constant that it does not have, or out of its range.
    """

    kind = "ilif"
    shown = ("levels", *_BeyondLIF.shown)
    resets = ("soft",)

    def __init__(
        self,
        tau: float = 4 / 3,
        v_threshold: float | Tensor = 1.0,
        levels: int = 4,
        *,
        decay: float | Tensor | None = None,
        detach_reset: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if options.get("surrogate") is not None:
            raise TypeError(
                f"surrogate {options['surrogate']!r} of {type(self).__name__}: accepted: None, because the spikes of "
                "I-LIF follow h / v_threshold"
            )
        super().__init__(tau, decay, v_threshold, None, detach_reset=detach_reset, **options)
        if not isinstance(levels, int) or not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"levels {levels!r}: accepted: an integer from 1 to {MAX_LEVELS}")
        self.levels = levels

    def neuron_arguments(self) -> dict[str, Any]:
        return super().neuron_arguments() | {"levels": self.levels}


class CLIF(_BeyondLIF):
    """CLIF (Huang et al. 2024): a complementary potential m makes the reset deeper the more the neuron fired.

    SpikingJelly's ComplementaryLIFNode; equations in ``spiketriton_kernels.states``.

    Args:
        tau: time constant in steps, >= 1.
        v_threshold, detach_reset, options: see ``SpikingNeuron``.
        decay: see ``ILIF``.

    Raises:
        ValueError: a constant out of its range.
    """

    kind = "clif"
    resets = ("soft",)

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float | Tensor = 1.0,
        *,
        decay: float | Tensor | None = None,
        detach_reset: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tau, decay, v_threshold, None, detach_reset=detach_reset, **options)


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
        options: see ``SpikingNeuron``.

    Raises:
        ValueError: a constant out of its range.
    """

    kind = "alif"
    shown = ("rho", "beta", *_BeyondLIF.shown)
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
        **options: Unpack[AllOptions],
    ) -> None:
        super().__init__(tau, decay, v_threshold, v_reset, **options)
        tau_adaptation = time_constant("tau_adaptation", tau_adaptation)
        keep(self, "rho", 1 - 1 / tau_adaptation if rho is None else rho)
        keep(self, "beta", beta)

    def neuron_arguments(self) -> dict[str, Any]:
        return super().neuron_arguments() | {"rho": self.rho, "beta": self.beta}


class CuBaLIF(_BeyondLIF):
    """Current-based LIF: the membrane reads a synaptic current, which decays by itself; a reset leaves that as it is.

    The synaptic current of a step is m[t] = rho * m[t-1] + x[t], and h[t] = decay * v[t-1] + gain * m[t].

    Args:
        tau: time constant of the membrane in steps, >= 1.
        tau_synapse: that of the synaptic current, >= 1: rho = 1 - 1 / tau_synapse; 1 is a LIF.
        decay_input: gain is 1/tau, else 1.
        v_threshold, options: see ``SpikingNeuron``.
        v_reset: 0.0 (hard reset) or None (soft reset).
        decay, rho: in place of what the time constants say: numbers, or tensors [] or [C]; Parameters learn.

    Raises:
        ValueError: a constant out of its range.
    """

    kind = "cuba"
    shown = ("rho", "gain", *_BeyondLIF.shown)
    rho: float | Tensor

    def __init__(
        self,
        tau: float = 2.0,
        tau_synapse: float = 2.0,
        decay_input: bool = False,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        *,
        decay: float | Tensor | None = None,
        rho: float | Tensor | None = None,
        **options: Unpack[AllOptions],
    ) -> None:
        super().__init__(tau, decay, v_threshold, v_reset, **options)
        tau_synapse = time_constant("tau_synapse", tau_synapse)
        keep(self, "rho", 1 - 1 / tau_synapse if rho is None else rho)
        self.gain = 1 / tau if decay_input else 1.0

    def neuron_arguments(self) -> dict[str, Any]:
        return super().neuron_arguments() | {"gain": self.gain, "rho": self.rho}
