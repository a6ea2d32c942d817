"""Honest timing: warm-up, data beyond the cache, contenders taking turns, the median and its spread.

One sample is a handful of calls timed together: with CUDA events on a GPU, where no call waits for
another, and with perf_counter on a CPU. Contenders of a case are sampled in turn within one run, so
that what disturbs the machine disturbs them alike; who starts changes from round to round.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

CACHES = 4
"""Rotating buffers span so many times the last-level cache."""
MOST_BUFFERS = 256


@dataclass(frozen=True)
class Effort:
    """How long a case is measured: the samples of each contender, but no more after `patience`
    seconds than the `least`; the seconds of a sample, and of the warm-up, at least."""

    rounds: int
    seconds: float
    warm_up: float
    least: int = 5
    patience: float = 60.0


FULL = Effort(rounds=15, seconds=0.02, warm_up=0.2)
QUICK = Effort(rounds=3, seconds=0.0, warm_up=0.0, least=3)


class Sampled(Protocol):
    """What can be timed, here or in another process."""

    def prepare(self, effort: Effort) -> None: ...

    def sample(self) -> float:
        """Seconds of one call."""
        ...


class Sampler:
    """Times a call of this process; its work is on `device`."""

    def __init__(self, call: Callable[[], object], device: torch.device) -> None:
        self.call, self.device, self.calls = call, device, 1

    def prepare(self, effort: Effort) -> None:
        """Warms up, at least twice, and settles how many calls fill a sample."""
        self._seconds(1)  # compiles and allocates
        start, fastest = time.perf_counter(), self._seconds(1)
        while time.perf_counter() - start < effort.warm_up:
            fastest = min(fastest, self._seconds(1))
        self.calls = max(1, math.ceil(effort.seconds / max(fastest, 1e-7)))

    def sample(self) -> float:
        return self._seconds(self.calls) / self.calls

    def _seconds(self, calls: int) -> float:
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(calls):
                self.call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        begin = time.perf_counter()
        for _ in range(calls):
            self.call()
        return time.perf_counter() - begin


@dataclass(frozen=True)
class Timing:
    """Seconds per call of every sample, in the order of the rounds."""

    seconds: tuple[float, ...]

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share))

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    def row(self) -> dict[str, float | int]:
        """The numbers of a row, in milliseconds."""
        return {
            "median_ms": 1e3 * self.median,
            "p20_ms": 1e3 * self.quantile(0.2),
            "p80_ms": 1e3 * self.quantile(0.8),
            "samples": len(self.seconds),
        }

    def ratio_to(self, other: Timing) -> Timing:
        """This by the other, round by round: what disturbed a round divides out."""
        return Timing(tuple(a / b for a, b in zip(self.seconds, other.seconds, strict=True)))


def race(contenders: Mapping[str, Sampled], effort: Effort) -> dict[str, Timing]:
    """Samples prepared contenders in turn, as often as the effort allows, all equally often."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    with no_garbage_collection():
        for turn in range(effort.rounds):
            if turn >= effort.least and time.perf_counter() - start > effort.patience:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(contenders[name].sample())
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector runs before, and not inside."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def last_level_cache(device: torch.device) -> int:
    """Bytes of the cache that all cores share; 32 MiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [
        int(path.read_text().strip().removesuffix("K")) * 1024
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=32 * 2**20)


def buffers_beyond_cache(bytes_of_one: int, device: torch.device) -> int:
    """How many sets of buffers to rotate, so that a call finds none of its data in the cache."""
    wanted = math.ceil(CACHES * last_level_cache(device) / bytes_of_one)
    return min(max(wanted, 2), MOST_BUFFERS)
