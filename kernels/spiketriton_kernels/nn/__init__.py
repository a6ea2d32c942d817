"""Modules over the kernels, for any PyTorch project: currents [T, B, ...] in, spikes out, nothing kept by default.

The neurons are those of ``neurons/``; ``Delays`` makes their currents; ``swap`` puts them into a network of another
library, and ``Leaky`` is LIF in the words of snnTorch and norse (``adopt/``).
"""

from .. import neurons
from ..adopt.leaky import Leaky
from ..adopt.swap import SwapReport, swap
from ..convolutions.delays import Delays
from ..neurons import *  # noqa: F403 - all that ``neurons`` names

__all__ = ["Delays", "Leaky", "SwapReport", "swap"]
__all__ += neurons.__all__
