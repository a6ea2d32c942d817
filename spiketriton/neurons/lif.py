"""IF, LIF and PLIF: integrate-and-fire without a leak, with one, with a learnable one.

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
