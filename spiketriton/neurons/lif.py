"""The neurons of recipes: the kernels' modules, watched.

Equations and arguments are those of `spiketriton_kernels.nn`.
"""

from spiketriton.neurons.base import SpikingNeuron
from spiketriton_kernels import nn as kernels


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
