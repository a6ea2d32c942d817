"""The neurons: a file each, with its equations (``step``), constants and options; nn/ has them beside ``swap``.

Read base.py (what a call does), stepping.py (how a step becomes kernels), lif.py (a neuron). handed.py and norm.py are
the batch norm in front.
"""

from .alif import ALIF
from .base import SpikingNeuron
from .clif import CLIF
from .cuba import CuBaLIF
from .ilif import ILIF
from .lif import IF, LIF
from .norm import BatchNormLIF
from .plif import PLIF
from .psn import PSN, MaskedPSN, ParallelNeuron, SlidingPSN
from .recurrent import Recurrent

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
    "MaskedPSN",
    "ParallelNeuron",
    "Recurrent",
    "SlidingPSN",
    "SpikingNeuron",
]
