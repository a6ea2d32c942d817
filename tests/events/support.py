"""Random streams of events, and SpikingJelly's data sets, for the tests of this folder."""

import functools
import importlib
import sys
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest

from tests.small_events import random_events


def stream(count: int, *, seed: int = 0, side: int = 34, end: int = 300_000) -> np.ndarray:
    """Events anywhere on a square sensor, ordered by time; some at the same microsecond."""
    return random_events(np.random.default_rng(seed), count, (side, side), end=end)


@functools.cache
def spikingjelly(name: str) -> ModuleType:
    """The module spikingjelly.datasets.<name>, without torchaudio, which only its sounds need."""
    pytest.importorskip("spikingjelly")
    with patch.dict(sys.modules, {"torchaudio": ModuleType("torchaudio")}):
        return importlib.import_module(f"spikingjelly.datasets.{name}")
