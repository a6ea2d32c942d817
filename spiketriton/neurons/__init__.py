"""Spiking neurons as modules over the fused kernels: [T, B, ...] -> [T, B, ...], time first.

base.py watches the kernels' modules and takes the norm in front of them, norm.py is that; here is what a recipe names.
"""

import inspect
from typing import Any

import torch
from torch import nn

from spiketriton import plugins
from spiketriton.config import NeuronConfig
from spiketriton.config.parts import chosen
from spiketriton.neurons.base import SpikingNeuron, adopt, of_engine, told_of_spikes
from spiketriton.neurons.norm import Norm, one_by_one
from spiketriton.system.errors import UserError
from spiketriton_kernels import Surrogate
from spiketriton_kernels import nn as kernels

__all__ = [
    "Norm",
    "SpikingNeuron",
    "adopt",
    "build_neuron",
    "of_engine",
    "one_by_one",
    "told_of_spikes",
]


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
        return of_engine(kernels.PSN)(steps, **options)
    if config.kind == "masked_psn":
        return of_engine(kernels.MaskedPSN)(config.order, steps, lambda_init=1.0, **options)
    return of_engine(kernels.SlidingPSN)(config.order, **options)


# the class of each kind that has a membrane, and the keys of which its constants are
KINDS: dict[str, tuple[type[kernels.SpikingNeuron], tuple[str, ...]]] = {
    "if": (kernels.IF, ()),
    "lif": (kernels.LIF, ("tau", "decay_input")),
    "plif": (kernels.PLIF, ("tau", "decay_input")),
    "ilif": (kernels.ILIF, ("tau", "levels")),
    "clif": (kernels.CLIF, ("tau",)),
    "alif": (kernels.ALIF, ("tau", "tau_adaptation", "beta")),
    "cuba": (kernels.CuBaLIF, ("tau", "tau_synapse", "decay_input")),
}


@plugins.neuron(*KINDS)
def _with_membrane(config: NeuronConfig, steps: int, channels: int | None) -> nn.Module:
    make, keys = KINDS[config.kind]
    options: dict[str, Any] = {key: getattr(config, key) for key in keys}
    options |= {"v_threshold": config.v_threshold, "detach_reset": config.detach_reset}
    if config.threshold_learnt:
        shape = _shape("threshold_learnt", config.threshold_learnt, channels)
        options["v_threshold"] = nn.Parameter(torch.full(shape, config.v_threshold))
    if make is not kernels.ILIF:
        options["surrogate"] = _surrogate(config)
    if make not in (kernels.ILIF, kernels.CLIF):
        reset = config.resets_by
        options |= {"reset": reset, "v_reset": config.v_reset if reset == "hard" else None}
    if make is kernels.PLIF:
        options["init_tau"] = options.pop("tau")
    return of_engine(make)(**options)


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
