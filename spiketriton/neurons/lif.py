"""The neurons of recipes: IF, LIF and PLIF; I-LIF, whose spikes are whole numbers; CLIF and ALIF, with a second state.

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
