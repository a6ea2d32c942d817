"""CuBa-LIF: a synapse in front of the membrane, whose current decays by itself.

    m[t] = rho * m[t-1] + x[t]        h[t] = decay * v[t-1] + gain * m[t]        spikes and resets as LIF's

Gerstner et al. 2014, Neuronal Dynamics, section 1.3; snnTorch's Synaptic, NIR's CubaLIF.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from .base import AllOptions, Beyond, keep, time_constant


class CuBaLIF(Beyond):
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
    states = ("v", "m")
    constants = (*Beyond.constants, "rho")
    options: ClassVar = {"reset_mode": ("soft", "hard", "none"), "detach_reset": (True, False)}
    recipe: ClassVar = {
        "kind": "cuba",
        "says": "behind a synapse whose current decays",
        "nir": "hard: CubaLIF; soft: LI, Threshold, Scale; none: LI, Threshold",
        "keys": {"tau": "tau", "decay_input": "decay_input"},
        "own": {
            "tau_synapse": (
                2.0,
                (1, 1e6),
                "time constant of cuba's synaptic current: 1 - 1/tau_synapse of it stays each step",
            )
        },
        "resets": ("hard", "soft", "none"),
    }
    shown = ("rho", "gain", *Beyond.shown)
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

    def step(self, x: Tensor, v: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = self.rho * m + x
        h = self.decay * v + self.gain * m
        s = self.fire(h - self.v_threshold)
        return s, self.discharge(h, s, self.v_threshold), m
