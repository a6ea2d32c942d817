"""Honest timing: warm-up, data beyond the cache, contenders in turn, the median and its spread.

A sample is a handful of calls timed together: by CUDA events on a GPU, where no call waits for
another; on a CPU by the clock, on one thread of it by the processor's time, of which work of others on the core
takes nothing. Calls of less than a millisecond on a GPU are captured in a CUDA graph
and its replays are timed: events around calls would measure Python. The contenders of a case are sampled
in turn within one run, so that what disturbs the machine disturbs all of them; who starts changes from
round to round.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spiketriton.system.errors import one_line
from spiketriton.training.gpu import graphs

CACHES = 4
"""Rotating buffers span this many times the last-level cache."""
MOST_BUFFERS = 256

SHORT = 1e-3
"""Seconds of a call on a GPU below which the host that launches it may take longer than the GPU."""


@dataclass(frozen=True)
class Effort:
    """How long a case is measured.

    `rounds`: samples of each contender, fewer (but `least`) when they take over `patience` seconds.
    `seconds`, `warm_up`: the shortest sample and warm-up.
    """

    rounds: int
    seconds: float
    warm_up: float
    least: int = 5
    patience: float = 60.0


FULL = Effort(rounds=15, seconds=0.02, warm_up=0.2)
QUICK = Effort(rounds=3, seconds=0.0, warm_up=0.0, least=3)


class Timed:
    """Something whose call can be timed; it computes on `device`."""

    device: torch.device
    calls = 1
    captures = False  # whether a CUDA graph of calls does the same as they do
    rotation = 1  # calls after which the same data are used again
    timed = ""  # on a GPU: what is timed
    _replay: Callable[[], object] | None = None
    _in_replay = 1  # calls

    def __call__(self) -> object:
        raise NotImplementedError

    def prepare(self, effort: Effort) -> None:
        """Warms up, at least twice, and determines how many calls fill a sample."""
        self._seconds(1)  # compiles and allocates
        start, fastest = time.perf_counter(), self._seconds(1)
        while time.perf_counter() - start < effort.warm_up:
            fastest = min(fastest, self._seconds(1))
        if self.device.type == "cuda":
            fastest = self._captured(fastest) if self.captures and fastest < SHORT else fastest
            self.timed = self.timed or "calls, by CUDA events"
        self.calls = max(1, math.ceil(effort.seconds / max(fastest, 1e-7)))

    def sample(self) -> float:
        """Seconds of one call."""
        return self._seconds(self.calls) / (self.calls * self._in_replay)

    def _captured(self, fastest: float) -> float:
        """Captures as many calls as fill a millisecond and rotate through all data; seconds of a replay."""
        count = min(MOST_BUFFERS, max(self.rotation, math.ceil(SHORT / max(fastest, 1e-7))))
        try:
            replay = capture(self, count, self.device)
        except Exception as error:  # of a contender that waits for the GPU, calls are timed
            self.timed = f"calls, by CUDA events, because {one_line(error)[:150]}"
            return fastest
        self._replay, self._in_replay = replay, count
        self.timed = f"replays of a CUDA graph of {count} calls"
        self._seconds(1)
        return self._seconds(1)

    def _seconds(self, calls: int) -> float:
        run = self._replay or self
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        begin = clock()
        for _ in range(calls):
            run()
        return clock() - begin


def capture(call: Callable[[], object], count: int, device: torch.device) -> Callable[[], object]:
    """A CUDA graph of `count` calls, as a function that replays it."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream(device).wait_stream(stream)

    def calls() -> None:
        for _ in range(count):
            call()

    replay, _ = graphs.capture(calls, stream, device)
    return replay


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
        shares = {"median_ms": 0.5, "p20_ms": 0.2, "p80_ms": 0.8}
        row = {name: 1e3 * self.quantile(share) for name, share in shares.items()}
        return {**row, "samples": len(self.seconds)}

    def ratio_to(self, other: Timing) -> Timing:
        """This by the other, round by round: what disturbed a round divides out."""
        return Timing(tuple(a / b for a, b in zip(self.seconds, other.seconds, strict=True)))


def race(contenders: Mapping[str, Timed], effort: Effort) -> dict[str, Timing]:
    """Samples prepared contenders in turn, as often as the effort allows, all equally often."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()  # before, and not inside
    collects = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    try:
        for turn in range(effort.rounds):
            if turn >= effort.least and time.perf_counter() - start > effort.patience:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(contenders[name].sample())
    finally:
        if collects:
            gc.enable()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


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
