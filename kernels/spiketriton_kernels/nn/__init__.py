"""Modules over the kernels, for any PyTorch project: currents [T, B, ...] in, spikes out, nothing kept by default.

The neurons are those of ``neurons/``; ``Delays`` makes their currents; ``swap`` puts them into a network of another
library (``adopt/``).
"""

from .. import neurons
from ..adopt.swap import SwapReport, swap
from ..convolutions.delays import Delays
from ..neurons import *  # noqa: F403 - all that ``neurons`` names

__all__ = ["Delays", "SwapReport", "swap"]
__all__ += neurons.__all__
