"""IF, LIF and PLIF: integrate-and-fire without a leak, with one, with a learnable one."""

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from spiketriton.errors import UserError
from spiketriton.neurons.base import Options, SpikingNeuron


class IF(SpikingNeuron):
    """Integrate and fire: h[t] = v[t-1] + x[t]. Arguments: see `SpikingNeuron`."""


class LIF(SpikingNeuron):
    """Leaky integrate and fire: h[t] = (1 - 1/tau) * v[t-1] + gain * x[t].

    With a hard reset the membrane leaks toward `v_reset`.

    Args:
        tau: time constant in steps, >= 1.
        decay_input: gain is 1/tau, else 1.
        v_threshold, v_reset, options: see `SpikingNeuron`.

    Raises:
        UserError: a constant out of its range.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        if not (tau >= 1 and math.isfinite(tau)):
            raise UserError(f"tau {tau!r}: accepted: a finite number of at least 1")
        self.tau = float(tau)
        self.decay_input = decay_input

    def neuron_arguments(self) -> dict[str, Any]:
        gain = 1 / self.tau if self.decay_input else 1.0
        return super().neuron_arguments() | {"decay": 1 - 1 / self.tau, "gain": gain}

    def extra_repr(self) -> str:
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class PLIF(SpikingNeuron):
    """LIF with a learnable leak: 1/tau = sigmoid(w) (Fang et al. 2021, arXiv 2007.05785).

    With `decay_input` gradients also flow through the gain 1/tau.

    Args:
        init_tau: time constant in steps at the start, > 1.
        decay_input: gain is 1/tau, else 1.
        per_channel: number of channels C (dim 2 of the input), each with a leak of its own; None
            for one leak. The parameter `w` has shape [C] or [].
        v_threshold, v_reset, options: see `SpikingNeuron`.

    Raises:
        UserError: a constant out of its range.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        *,
        per_channel: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        if not (init_tau > 1 and math.isfinite(init_tau)):
            raise UserError(f"init_tau {init_tau!r}: accepted: a finite number above 1")
        if per_channel is not None and per_channel < 1:
            raise UserError(f"per_channel {per_channel!r}: accepted: a number of channels, or None")
        self.init_tau = float(init_tau)
        self.decay_input = decay_input
        self.per_channel = per_channel
        shape = () if per_channel is None else (per_channel,)
        self.w = nn.Parameter(torch.full(shape, -math.log(init_tau - 1)))

    def neuron_arguments(self) -> dict[str, Any]:
        # sigmoid(-w) = 1 - sigmoid(w) without the cancellation at a large tau
        return super().neuron_arguments() | {"decay": torch.sigmoid(-self.w)}

    def input_gain(self) -> Tensor | None:
        return torch.sigmoid(self.w) if self.decay_input else None

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        if self.per_channel is not None and x.shape[2:3] != (self.per_channel,):
            raise UserError(
                f"input of PLIF has shape {tuple(x.shape)}; "
                f"accepted with per_channel = {self.per_channel}: [T, B, {self.per_channel}, ...]"
            )

    def extra_repr(self) -> str:
        return (
            f"init_tau={self.init_tau}, decay_input={self.decay_input}, "
            f"per_channel={self.per_channel}, {super().extra_repr()}"
        )
