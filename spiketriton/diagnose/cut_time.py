"""The gradient's way through time, cut."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from spiketriton.models import Network
from spiketriton.neurons import SpikingNeuron, one_by_one
from spiketriton.neurons.base import normalised
from spiketriton_kernels import nn as kernels


@contextlib.contextmanager
def cut_time(model: Network) -> Iterator[None]:
    """Within the block no gradient goes from step to step by the membranes; spikes stay as they are."""
    layers = [layer for _, layer in model.spiking_layers()]
    with one_by_one(model):  # so that each neuron is called by itself
        for layer in layers:
            layer.forward = _stepwise(layer)  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own is back


def _stepwise(neuron: SpikingNeuron) -> Callable[[Tensor], Tensor]:
    """The forward of a neuron that calls it for one step after another, and detaches the membrane in between."""
    call = neuron.forward

    def forward(x: Tensor) -> Tensor:
        if isinstance(neuron, kernels.ParallelNeuron):
            neuron.cut_time = True
            try:
                return call(x)
            finally:
                neuron.cut_time = False
        if neuron.step_mode == "s":
            spikes = call(x)
            neuron.detach()
            return spikes
        whole, continues, steps = neuron.probe, neuron.stateful, []
        x = normalised(x)  # by its batch norm, of which a step alone has other statistics
        neuron.stateful = True
        try:
            for t in range(len(x)):
                if whole is not None and len(whole) == len(x):
                    neuron.probe = whole[t : t + 1]
                steps.append(call(x[t : t + 1]))
                neuron.detach()
        finally:
            neuron.stateful, neuron.probe = continues, whole
            if not continues:
                super(SpikingNeuron, neuron).reset()  # the states, not the window
        return torch.cat(steps)

    return forward
