"""ALIF: the threshold rises with each spike and decays in between (Bellec et al. 2018, arXiv 1803.09574).

    h[t] = decay * v[t-1] + gain * x[t]                       level[t] = threshold + beta * m[t-1]
    s[t] = 1 if h[t] >= level[t] else 0                       m[t] = rho * m[t-1] + (1 - rho) * s[t]
    soft: v[t] = h[t] - level[t] * s[t]                       hard: v[t] = 0 if s[t] else h[t]

``detach_reset`` leaves the spike out of the reset's gradient; through m it always flows.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from .base import AllOptions, Beyond, keep, time_constant


class ALIF(Beyond):
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
    states = ("v", "m")
    constants = (*Beyond.constants, "rho", "beta")
    complements: ClassVar = {"rest": "rho"}
    options: ClassVar = {"reset_mode": ("soft", "hard", "none"), "detach_reset": (True, False)}
    recipe: ClassVar = {
        "kind": "alif",
        "says": "with a threshold that rises with each spike (Bellec et al. 2018)",
        "nir": "no: its step carries more than a membrane and a synaptic current",
        "keys": {"tau": "tau"},
        "own": {
            "tau_adaptation": (10.0, (1, 1e6), "time constant of alif's threshold"),
            "beta": (
                1.0,
                (0, 1e6),
                "how far alif's threshold rises while its neuron fires at every step",
            ),
        },
        "resets": ("soft", "hard"),
    }
    shown = ("rho", "beta", *Beyond.shown)
    rho: float | Tensor
    rest: float | Tensor
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

    def step(self, x: Tensor, v: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.decay * v + self.gain * x
        level = self.v_threshold + self.beta * m
        s = self.fire(h - level)
        return s, self.discharge(h, s, level), self.rho * m + self.rest * s
