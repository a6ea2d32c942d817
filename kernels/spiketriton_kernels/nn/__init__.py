"""Modules over the kernels, for any PyTorch project: currents [T, B, ...] in, spikes out, nothing kept by default.

The neurons are those of ``neurons/``. swap.py replaces another library's neurons by what peers.py reads of them;
fuse.py finds the norms that neurons take over, which then hand them what neurons/handed.py holds.
"""

from ..neurons import (
    ALIF,
    CLIF,
    IF,
    ILIF,
    LIF,
    PLIF,
    PSN,
    BatchNormLIF,
    CuBaLIF,
    Leaky,
    MaskedPSN,
    ParallelNeuron,
    SlidingPSN,
    SpikingNeuron,
)
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
