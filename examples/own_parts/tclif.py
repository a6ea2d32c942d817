"""TC-LIF, a published neuron (Zhang et al., AAAI 2024, arXiv:2308.13250), by its step: spiketriton train
examples/own_parts/tclif.toml"""

import torch
from torch import nn

from spiketriton.plugins import neuron
from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import SpikingNeuron


class TCLIF(SpikingNeuron):
    """Two compartments: the dendrite integrates the current, and both learn how strongly they read each other."""

    states = ("soma", "dendrite")  # the first one is the membrane that the monitor measures

    def __init__(self, surrogate):
        super().__init__(surrogate=surrogate)
        self.back, self.ahead = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def step(self, x, soma, dendrite):
        dendrite = dendrite - torch.sigmoid(self.back) * soma + x
        soma = soma + torch.sigmoid(self.ahead) * dendrite
        s = self.fire(soma - 1.0)
        return s, soma - s, dendrite - 0.5 * s


@neuron("tclif")
def tclif(config, channels):
    given = config.surrogate
    return TCLIF(Surrogate(given.shape, given.height, given.width))
