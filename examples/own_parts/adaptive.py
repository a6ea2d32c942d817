"""A neuron of one's own, by its step. Train a network of it: spiketriton train examples/own_parts/adaptive.toml"""

import torch
from torch import nn

from spiketriton.plugins import neuron
from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import SpikingNeuron


class Adaptive(SpikingNeuron):
    """LIF whose threshold rises by beta with each spike and falls back; every channel learns its beta."""

    states = ("v", "a")

    def __init__(self, channels, surrogate):
        super().__init__(surrogate=surrogate)
        self.beta = nn.Parameter(torch.full((channels,), 0.2))

    def step(self, x, v, a):
        h = 0.5 * v + x
        s = self.fire(h - 1.0 - self.beta * a)
        return s, torch.where(s > 0, 0.0, h), 0.9 * a + s


@neuron("adaptive")
def adaptive(config, channels):
    given = config.surrogate
    return Adaptive(channels, Surrogate(given.shape, given.height, given.width))
