"""Spiking neurons as modules over the fused kernels: [T, B, ...] -> [T, B, ...], time first."""

import inspect
from typing import Any

import torch
from torch import nn

from spiketriton import plugins
from spiketriton.config import NeuronConfig
from spiketriton.config.parts import chosen
from spiketriton.neurons.base import SpikingNeuron, adopt, told_of_spikes
from spiketriton.neurons.norm import Norm, one_by_one
from spiketriton.system.errors import UserError
from spiketriton_kernels import Surrogate
from spiketriton_kernels import nn as kernels

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
    "told_of_spikes",
]


class IF(SpikingNeuron, kernels.IF):
    """Integrate and fire."""


class LIF(SpikingNeuron, kernels.LIF):
    """Leaky integrate and fire."""


class PLIF(SpikingNeuron, kernels.PLIF):
    """LIF with a learnable leak."""


class ILIF(SpikingNeuron, kernels.ILIF):
    """LIF with 0..levels spikes a step."""


class CLIF(SpikingNeuron, kernels.CLIF):
    """LIF with a complementary potential."""


class ALIF(SpikingNeuron, kernels.ALIF):
    """LIF with a threshold that rises with each spike."""


class CuBaLIF(SpikingNeuron, kernels.CuBaLIF):
    """LIF behind a synapse, whose current decays."""


class PSN(SpikingNeuron, kernels.PSN):
    """Parallel spiking neuron: a learnt matrix over the time steps, and a threshold."""


class MaskedPSN(SpikingNeuron, kernels.MaskedPSN):
    """PSN whose steps read only themselves and those before."""


class SlidingPSN(SpikingNeuron, kernels.SlidingPSN):
    """PSN whose steps all read by the same weights."""


def build_neuron(config: NeuronConfig, steps: int = 4, channels: int | None = None) -> nn.Module:
    """The neuron of a recipe: a `SpikingNeuron`, or `torch.nn.ReLU` for the ANN twin.

    `channels`: those of its currents, dim 2. UserError: the neuron learns something for each, and they are not given.
    """
    part = chosen("neurons", config.kind)
    if part.built_in:
        return part.make(config, steps, channels)
    if "channels" not in inspect.signature(part.make).parameters:
        made = part.make(config)
    elif channels is None:
        raise UserError(
            f'neuron.kind = "{config.kind}" of the plugin {part.home} asks for the number of channels, which '
            "the network did not give: parts.neuron(channels)"
        )
    else:
        made = part.make(config, channels=channels)
    if isinstance(made, kernels.SpikingNeuron):
        made = adopt(made)
    return part.checked(made, SpikingNeuron, "spiketriton.neurons.SpikingNeuron")


@plugins.neuron("relu")
def _relu(config: NeuronConfig, steps: int, channels: int | None) -> nn.Module:
    return nn.ReLU()


@plugins.neuron("psn", "masked_psn", "sliding_psn")
def _parallel(config: NeuronConfig, steps: int, channels: int | None) -> nn.Module:
    options: dict[str, Any] = {"v_threshold": config.v_threshold, "surrogate": _surrogate(config)}
    if config.kind == "psn":
        return PSN(steps, **options)
    if config.kind == "masked_psn":
        return MaskedPSN(config.order, steps, lambda_init=1.0, **options)
    return SlidingPSN(config.order, **options)


# the class of each kind that has a membrane, and the keys of which its constants are
KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "if": (IF, ()),
    "lif": (LIF, ("tau", "decay_input")),
    "plif": (PLIF, ("tau", "decay_input")),
    "ilif": (ILIF, ("tau", "levels")),
    "clif": (CLIF, ("tau",)),
    "alif": (ALIF, ("tau", "tau_adaptation", "beta")),
    "cuba": (CuBaLIF, ("tau", "tau_synapse", "decay_input")),
}


@plugins.neuron(*KINDS)
def _with_membrane(config: NeuronConfig, steps: int, channels: int | None) -> nn.Module:
    make, keys = KINDS[config.kind]
    options: dict[str, Any] = {key: getattr(config, key) for key in keys}
    options |= {"v_threshold": config.v_threshold, "detach_reset": config.detach_reset}
    if config.threshold_learnt:
        shape = _shape("threshold_learnt", config.threshold_learnt, channels)
        options["v_threshold"] = nn.Parameter(torch.full(shape, config.v_threshold))
    if make is not ILIF:
        options["surrogate"] = _surrogate(config)
    if make not in (ILIF, CLIF):
        reset = config.resets_by
        options |= {"reset": reset, "v_reset": config.v_reset if reset == "hard" else None}
    if make is PLIF:
        options["init_tau"] = options.pop("tau")
        (options["per_channel"],) = _shape("tau_learnt", config.tau_learnt, channels) or (None,)
    return make(**options)


def _surrogate(config: NeuronConfig) -> Surrogate:
    given = config.surrogate
    return Surrogate(given.shape, height=given.height, width=given.width)


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
