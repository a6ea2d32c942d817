"""Random streams of events, and SpikingJelly's data sets, for the tests of this folder."""

import functools
import importlib
import sys
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest

from spiketriton.data.events import EVENT


def stream(count: int, *, seed: int = 0, side: int = 34, end: int = 300_000) -> np.ndarray:
    """Events anywhere on a square sensor, ordered by time; some at the same microsecond."""
    rng = np.random.default_rng(seed)
    events = np.empty(count, EVENT)
    events["t"] = np.sort(rng.integers(0, end, count))
    events["x"], events["y"] = rng.integers(0, side, (2, count))
    events["p"] = rng.integers(0, 2, count)
    return events


@functools.cache
def spikingjelly(name: str) -> ModuleType:
    """The module spikingjelly.datasets.<name>, without torchaudio, which only its sounds need."""
    pytest.importorskip("spikingjelly")
    with patch.dict(sys.modules, {"torchaudio": ModuleType("torchaudio")}):
        return importlib.import_module(f"spikingjelly.datasets.{name}")
