"""Random streams of events, for the tests of this folder."""

import numpy as np

from spiketriton.data.events import EVENT


def stream(count: int, *, seed: int = 0, side: int = 34, end: int = 300_000) -> np.ndarray:
    """Events anywhere on a square sensor, ordered by time; some at the same microsecond."""
    rng = np.random.default_rng(seed)
    events = np.empty(count, EVENT)
    events["t"] = np.sort(rng.integers(0, end, count))
    events["x"], events["y"] = rng.integers(0, side, (2, count))
    events["p"] = rng.integers(0, 2, count)
    return events
