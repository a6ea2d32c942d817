"""Spiking neurons as modules over the fused kernels: [T, B, ...] -> [T, B, ...], time first.

The neurons are the kernels' modules. base.py adds what a run keeps of them, norm.py is the norm in front; here is what
a recipe names.
"""

import inspect
from importlib import import_module
from typing import Any

import torch
from torch import nn

from spiketriton import plugins
from spiketriton.config import NeuronConfig
from spiketriton.config.kinds import kinds
from spiketriton.config.parts import chosen
from spiketriton.neurons.base import SpikingNeuron, adopt, spiking, told_of_spikes
from spiketriton.neurons.norm import Norm, constant_statistics, one_by_one
from spiketriton.system.errors import UserError
from spiketriton_kernels import Surrogate
from spiketriton_kernels import nn as kernels

__all__ = [
    "Norm",
    "SpikingNeuron",
    "adopt",
    "build_neuron",
    "constant_statistics",
    "one_by_one",
    "spiking",
    "told_of_spikes",
]


def build_neuron(config: NeuronConfig, steps: int = 4, channels: int | None = None) -> nn.Module:
    """The neuron of a recipe: a `SpikingNeuron`, or `torch.nn.ReLU` for the ANN twin.

    `channels`: those of its currents, dim 2. UserError: the neuron learns something for each, and they are not given.
    """
    part = chosen("neurons", config.kind)
    if part.built_in:
        try:
            own = part.make(config, steps, channels)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None
        return adopt(own) if isinstance(own, SpikingNeuron) else own
    maker = part.make.__init__ if isinstance(part.make, type) else part.make  # type: ignore[misc]
    if maker.__module__.partition(".")[0] == "spiketriton_kernels":  # config would be a threshold
        raise part.not_of("these are the arguments of the class that it is derived from")
    if "channels" not in inspect.signature(part.make).parameters:
        made = part.of(config)
    elif channels is None:
        raise UserError(
            f'neuron.kind = "{config.kind}" of the plugin {part.home} asks for the number of channels, which '
            "the network did not give: parts.neuron(channels)"
        )
    else:
        made = part.of(config, channels=channels)
    if isinstance(made, kernels.SpikingNeuron):
        made = adopt(made)
    return part.checked(made, SpikingNeuron, "spiketriton.neurons.SpikingNeuron")


@plugins.neuron("relu")
def _relu(config: NeuronConfig, steps: int, channels: int | None) -> nn.Module:
    return nn.ReLU()


@plugins.neuron(*kinds())
def _declared(config: NeuronConfig, steps: int, channels: int | None) -> nn.Module:
    kind = kinds()[config.kind]
    make = getattr(import_module(kind.module), kind.made_by)
    options: dict[str, Any] = {"v_threshold": config.v_threshold, **kind.always}
    options |= {argument: getattr(config, key) for argument, key in kind.arguments.items()}
    if kind.window:
        options[kind.window] = steps
    if not kind.parallel:
        options["detach_reset"] = config.detach_reset
    if config.threshold_learnt:
        shape = _shape("threshold_learnt", config.threshold_learnt, channels)
        options["v_threshold"] = nn.Parameter(torch.full(shape, config.v_threshold))
    if make.has_surrogate:
        options["surrogate"] = _surrogate(config)
    if len(make.resets) > 1:
        reset = config.resets_by
        options |= {"reset": reset, "v_reset": config.v_reset if reset == "hard" else None}
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
