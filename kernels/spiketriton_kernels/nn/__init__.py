"""Modules over the kernels, for any PyTorch project: currents [T, B, ...] in, spikes out, nothing kept by default.

Read neurons.py (what every neuron has, and LIF), states.py and parallel.py (the other kinds), norm.py (batch norm in
front). swap.py replaces another library's neurons by what peers.py reads of them; fuse.py finds the norms that neurons
take over, which then hand them what handed.py holds.
"""

from .leaky import Leaky
from .neurons import IF, LIF, PLIF, SpikingNeuron
from .norm import BatchNormLIF
from .parallel import PSN, MaskedPSN, ParallelNeuron, SlidingPSN
from .states import ALIF, CLIF, ILIF, CuBaLIF
from .swap import SwapReport, swap

__all__ = [
    "ALIF",
    "CLIF",
    "IF",
    "ILIF",
    "LIF",
    "PLIF",
    "PSN",
    "BatchNormLIF",
    "CuBaLIF",
    "Leaky",
    "MaskedPSN",
    "ParallelNeuron",
    "SlidingPSN",
    "SpikingNeuron",
    "SwapReport",
    "swap",
]
