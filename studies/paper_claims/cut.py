"""The neuron `cut` of run.py: LIF whose gradient does not pass from one time step to the one before."""

import torch

from spiketriton.plugins import neuron
from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import SpikingNeuron


class Cut(SpikingNeuron):
    """LIF, hard reset: dL/dv does not pass from a step to the one before."""

    states = ("v",)

    def __init__(self, tau, surrogate):
        super().__init__(surrogate=surrogate)
        self.decay = 1 - 1 / tau

    def step(self, x, v):
        h = self.decay * v.detach() + x
        s = self.fire(h - 1.0)
        return s, torch.where(s > 0, 0.0, h)


@neuron("cut")
def cut(config, channels):
    given = config.surrogate
    return Cut(config.tau, Surrogate(given.shape, given.height, given.width))
