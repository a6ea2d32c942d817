"""CLIF: a complementary potential deepens the reset (Huang et al. 2024, arXiv 2402.04663).

    h[t] = decay * v[t-1] + gain * x[t]                       s[t] = 1 if h[t] >= threshold else 0
    m[t] = m[t-1] * sigmoid((1 - decay) * h[t]) + s[t]        v[t] = h[t] - s[t] * (threshold + sigmoid(m[t]))

``detach_reset`` leaves the spike out of the reset's gradient; through m it always flows.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from .base import Beyond, Options


class CLIF(Beyond):
    """CLIF (Huang et al. 2024): a complementary potential m makes the reset deeper the more the neuron fired.

    SpikingJelly's ComplementaryLIFNode; equations above.

    Args:
        tau: time constant in steps, >= 1.
        v_threshold, detach_reset, options: see ``SpikingNeuron``.
        decay: see ``ILIF``.

    Raises:
        ValueError: a constant out of its range.
    """

    kind = "clif"
    states = ("v", "m")
    complements: ClassVar = {"leak": "decay"}
    options: ClassVar = {"detach_reset": (True, False)}
    recipe: ClassVar = {
        "kind": "clif",
        "says": "with a complementary potential (Huang et al. 2024)",
        "nir": "no: its step is not linear between two spikes (sigmoid)",
        "keys": {"tau": "tau"},
        "resets": ("soft",),
    }
    resets = ("soft",)
    leak: float | Tensor

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

    def step(self, x: Tensor, v: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.decay * v + self.gain * x
        s = self.fire(h - self.v_threshold)
        m = m * torch.sigmoid(self.leak * h) + s
        kept = s.detach() if self.detach_reset else s
        return s, h - kept * (self.v_threshold + torch.sigmoid(m)), m
