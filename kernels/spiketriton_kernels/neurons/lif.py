"""Integrate and fire: IF, LIF, and the equations that they share with PLIF and ``Leaky``.

    h[t] = decay * v[t-1] + gain * x[t]        v[-1] = v_reset with hard reset, else 0
    s[t] = 1 if h[t] >= threshold else 0
    soft: v[t] = h[t] - threshold * s[t]       hard: v[t] = v_reset if s[t] else h[t]       none: v[t] = h[t]

With hard reset and v_reset != 0 the membrane leaks toward v_reset, as in SpikingJelly. A delayed reset (snnTorch)
belongs to the next step: v[t] is h[t], and h[t+1] is charged from what the reset leaves of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from .base import AllOptions, SpikingNeuron, time_constant


class Integrator(SpikingNeuron):
    """The equations. A subclass has its constants as attributes."""

    kind = "lif"
    states = ("v",)
    constants = ("decay", "gain", "v_threshold", "v_reset")
    options: ClassVar = {
        "reset_mode": ("soft", "hard", "none"),
        "detach_reset": (True, False),
        "leaks_to_reset": (False, True),
        "reset_delay": (False, True),
    }
    companion = ("decay", "gain")  # PLIF
    reset_delay = False
    decay: Any
    gain: Any

    @property
    def leaks_to_reset(self) -> bool:  # type: ignore[override]
        return self.reset_mode == "hard" and bool(self.v_reset)

    @property
    def start(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"v": self.v_reset} if self.leaks_to_reset else {}

    def neuron_arguments(self) -> dict[str, Any]:
        """Those of ``multistep_lif`` that make it this neuron."""
        return {
            "decay": self.decay,
            "gain": self.gain,
            "threshold": self.v_threshold,
            "reset": self.reset_mode,
            "v_reset": 0.0 if self.v_reset is None else self.v_reset,
            "detach_reset": self.detach_reset,
            "surrogate": self.surrogate,
            "reset_delay": self.reset_delay,
        }

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.reset_delay:
            return self._delayed(x, v)
        if self.leaks_to_reset:
            h = v + self.gain * x - (1 - self.decay) * (v - self.v_reset)
        else:
            h = self.decay * v + self.gain * x
        s = self.fire(h - self.v_threshold)
        return s, self.discharge(h, s, self.v_threshold)

    def _delayed(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        fired = v >= self.v_threshold
        if self.reset_mode == "soft":
            h = self.decay * v + self.gain * x - self.v_threshold * fired.to(v.dtype)
        else:
            h = self.decay * torch.where(fired, 0.0, v) + self.gain * x
        return self.fire(h - self.v_threshold), h

    @classmethod
    def _settled(cls, chosen: tuple[Any, ...]) -> tuple[Any, ...]:
        reset, detach, leaks, delay = super()._settled(chosen)
        delay = delay and reset != "none"
        return reset, detach or delay, leaks and not delay, delay


class IF(Integrator):
    """Integrate and fire: h[t] = v[t-1] + x[t]. Arguments: see ``SpikingNeuron``."""

    recipe: ClassVar = {
        "kind": "if",
        "says": "integrate and fire, without a leak",
        "nir": "hard: IF; soft: I, Threshold, Scale; none: I, Threshold",
    }
    decay = gain = 1.0


class LIF(Integrator):
    """Leaky integrate and fire: h[t] = (1 - 1/tau) * v[t-1] + gain * x[t].

    With a hard reset the membrane leaks toward ``v_reset``. SpikingJelly's LIFNode, whose default is
    ``detach_reset=False``.

    Args:
        tau: time constant in steps, >= 1.
        decay_input: gain is 1/tau, else 1.
        v_threshold, v_reset, options: see ``SpikingNeuron``.

    Raises:
        ValueError: a constant out of its range.
    """

    recipe: ClassVar = {
        "kind": "lif",
        "says": "with a leak",
        "nir": "hard: LIF; soft: LI, Threshold, Scale; none: LI, Threshold",
        "keys": {"tau": "tau", "decay_input": "decay_input"},
    }
    shown = ("tau", "decay_input", *SpikingNeuron.shown)

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        **options: Unpack[AllOptions],
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        self.tau = time_constant("tau", tau)
        self.decay_input = decay_input

    @property
    def decay(self) -> float:
        return 1 - 1 / self.tau

    @property
    def gain(self) -> float:
        return 1 / self.tau if self.decay_input else 1.0
