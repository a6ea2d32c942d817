"""Modules over the kernels, for any PyTorch project: currents [T, B, ...] in, spikes out, nothing kept by default.

The neurons are those of ``neurons/``. swap.py replaces another library's neurons by what peers.py reads of them;
fuse.py finds the norms that neurons take over, which then hand them what neurons/handed.py holds.
"""

from .. import neurons
from ..neurons import *  # noqa: F403 - all that ``neurons`` names
from .swap import SwapReport, swap

__all__ = ["SwapReport", "swap"]
__all__ += neurons.__all__
