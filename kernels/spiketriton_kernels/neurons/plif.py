"""PLIF: LIF whose leak is learnt."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from .base import AllOptions, SpikingNeuron, wide
from .lif import Integrator


class PLIF(Integrator):
    """LIF with a learnable leak: 1/tau = sigmoid(w) (Fang et al. 2021, arXiv 2007.05785).

    With ``decay_input`` gradients also flow through the gain 1/tau. SpikingJelly's ParametricLIFNode.

    Args:
        init_tau: time constant in steps at the start, > 1.
        decay_input: gain is 1/tau, else 1.
        per_channel: number of channels C (dim 2 of the input), each with a leak of its own; None for one leak. The
            parameter ``w`` has shape [C] or [].
        v_threshold, v_reset, options: see ``SpikingNeuron``.

    Raises:
        ValueError: a constant out of its range.
    """

    recipe: ClassVar = {
        "kind": "plif",
        "says": "with a leak that learns (Fang et al. 2021)",
        "nir": "hard: LIF; soft: LI, Threshold, Scale; none: LI, Threshold",
        "keys": {"init_tau": "tau", "decay_input": "decay_input"},
    }
    shown = ("init_tau", "decay_input", "per_channel", *SpikingNeuron.shown)

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        *,
        per_channel: int | None = None,
        **options: Unpack[AllOptions],
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        if not (init_tau > 1 and math.isfinite(init_tau)):
            raise ValueError(f"init_tau {init_tau!r}: accepted: a finite number above 1")
        if per_channel is not None and per_channel < 1:
            raise ValueError(
                f"per_channel {per_channel!r}: accepted: a number of channels, or None"
            )
        self.init_tau = float(init_tau)
        self.decay_input = decay_input
        self.per_channel = per_channel
        shape = () if per_channel is None else (per_channel,)
        self.w = nn.Parameter(torch.full(shape, -math.log(init_tau - 1)))

    @property
    def decay(self) -> Tensor:
        # sigmoid(-w) = 1 - sigmoid(w) without the cancellation at a large tau
        return torch.sigmoid(-wide(self.w))

    @property
    def gain(self) -> float | Tensor:
        return torch.sigmoid(wide(self.w)) if self.decay_input else 1.0
