"""Spiking neurons as modules over the fused kernels: [T, B, ...] -> [T, B, ...], time first."""

from typing import Any

import torch
from torch import nn

from spiketriton.config import NeuronConfig
from spiketriton.config.recipe import chosen_part
from spiketriton.errors import UserError
from spiketriton.neurons.base import SpikingNeuron, adopt
from spiketriton.neurons.lif import (
    ALIF,
    CLIF,
    IF,
    ILIF,
    LIF,
    PLIF,
    PSN,
    CuBaLIF,
    MaskedPSN,
    SlidingPSN,
)
from spiketriton.neurons.norm import Norm, one_by_one
from spiketriton_kernels import Surrogate

__all__ = [
    "ALIF",
    "CLIF",
    "IF",
    "ILIF",
    "LIF",
    "PLIF",
    "PSN",
    "CuBaLIF",
    "MaskedPSN",
    "Norm",
    "SlidingPSN",
    "SpikingNeuron",
    "adopt",
    "build_neuron",
    "one_by_one",
]


def build_neuron(config: NeuronConfig, steps: int = 4, channels: int | None = None) -> nn.Module:
    """The neuron of a recipe of `steps` time steps: a `SpikingNeuron`, or `torch.nn.ReLU` for the ANN twin.

    `channels`: those of its currents, dim 2, which a neuron needs that learns something for each of them.
    UserError: it does, and they are not given.
    """
    if config.kind == "relu":
        return nn.ReLU()
    own = chosen_part("neuron", config.kind)
    if own is not None:
        made = own.make(config)
        if not isinstance(made, SpikingNeuron):
            raise UserError(
                f'neuron.kind = "{own.name}" of the plugin {own.module} made a {type(made).__name__}; '
                "accepted: a spiketriton.neurons.SpikingNeuron"
            )
        return made
    surrogate = Surrogate(
        config.surrogate.shape, height=config.surrogate.height, width=config.surrogate.width
    )
    if config.is_parallel:
        parallel: dict[str, Any] = {"v_threshold": config.v_threshold, "surrogate": surrogate}
        if config.kind == "psn":
            return PSN(steps, **parallel)
        if config.kind == "masked_psn":
            return MaskedPSN(config.order, steps, lambda_init=1.0, **parallel)
        return SlidingPSN(config.order, **parallel)
    threshold: Any = config.v_threshold
    if config.threshold_learnt:
        shape = _shape("threshold_learnt", config.threshold_learnt, channels)
        threshold = nn.Parameter(torch.full(shape, config.v_threshold))
    common: dict[str, Any] = {"v_threshold": threshold, "detach_reset": config.detach_reset}
    if config.kind == "ilif":
        return ILIF(config.tau, levels=config.levels, **common)
    common["surrogate"] = surrogate
    if config.kind == "clif":
        return CLIF(config.tau, **common)
    reset = config.resets_by
    common |= {"reset": reset, "v_reset": config.v_reset if reset == "hard" else None}
    if config.kind == "alif":
        return ALIF(config.tau, config.tau_adaptation, config.beta, **common)
    if config.kind == "cuba":
        return CuBaLIF(config.tau, config.tau_synapse, config.decay_input, **common)
    if config.kind == "if":
        return IF(**common)
    if config.kind == "lif":
        return LIF(config.tau, config.decay_input, **common)
    (per_channel,) = _shape("tau_learnt", config.tau_learnt, channels) or (None,)
    return PLIF(config.tau, config.decay_input, per_channel=per_channel, **common)


def _shape(name: str, learnt: bool | str, channels: int | None) -> tuple[int, ...]:
    """Of what `neuron.name` learns: one value, or one for each channel."""
    if learnt != "channel":
        return ()
    if channels is None:
        raise UserError(
            f'neuron.{name} = "channel" needs the number of channels, which the network did not give: '
            "parts.neuron(channels)"
        )
    return (channels,)
