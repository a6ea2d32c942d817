"""Modules over the kernels, for any PyTorch project: currents [T, B, ...] in, spikes out, nothing kept by default."""

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
