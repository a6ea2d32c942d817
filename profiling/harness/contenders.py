"""What is compared: a contender builds its work, the work is checked, and only then measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from profiling.harness.timing import Timed, Timing

OURS = "spiketriton"

EXCUSED = 0.05
"""Share of spikes that may differ where a contender cannot agree: a rounded membrane moves few, and
a gradient through the reset none."""


class Status:
    """What became of a contender, in its row."""

    OK = "ok"
    UNEQUAL = "not equal"  # measured; the row says why its result differs
    WRONG = "wrong result"  # not measured
    MISSING = "missing"  # a package or device is not there, or an option does not exist
    TOO_LARGE = "out of memory"
    FAILED = "failed"
    NOT_REACHED = "not reached"  # --minutes were over


class Unavailable(Exception):
    """A contender cannot run here, and why: a package, a device or an option is missing."""


@dataclass(frozen=True)
class Options:
    """What the command line chose for every section."""

    device: torch.device
    quick: bool = False
    peers: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # patterns of contenders' names; empty: all


@dataclass(frozen=True)
class Verdict:
    """How a contender's result compares with the definition; `numbers` go into the row."""

    status: str
    why: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return self.status in (Status.OK, Status.UNEQUAL)


class Work(Timed):
    """A contender's work on its data, ready to be checked, timed and weighed."""

    def check(self) -> Verdict:
        raise NotImplementedError

    def device_time(self, seconds: float) -> dict[str, Any]:
        """What the device does during a call that takes `seconds`, for the row."""
        return {}

    def memory(self) -> dict[str, Any]:
        """`peak_bytes` and `saved_bytes`, for the row."""
        raise Unavailable("it has no backward")


@dataclass(frozen=True)
class Contender:
    """`build` may raise Unavailable; `facts` go into the row."""

    name: str
    build: Callable[[], Work]
    facts: dict[str, Any] = field(default_factory=dict)


class Case:
    """What contenders are compared in; `spec` says what it is, in values that JSON can hold.

    Once the contender `first` is measured, the others are left out when time is over.
    """

    spec: dict[str, Any]
    first = OURS

    def contenders(self, options: Options) -> list[Contender]:
        raise NotImplementedError

    def numbers(self, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
        """What the contenders' rows hold besides their milliseconds."""
        raise NotImplementedError


OF_ITS_OWN = 2
"""In half precision, and for contenders whose batch norm is torch's, this many times the distance is allowed too
that the definition itself has from float64 in the precision that is measured: in channels_last torch's batch
norm loses digits of the variance (profiling/LOG.md)."""


def wider(allowed: tuple[float, float], own: tuple[float, float]) -> tuple[float, float]:
    """Allows what the definition itself is off by, too."""
    return max(allowed[0], OF_ITS_OWN * own[0]), max(allowed[1], OF_ITS_OWN * own[1])


def agreement(
    differ: float, error: float, allowed: tuple[float, float], unequal: str = ""
) -> Verdict:
    """The verdict on a share of differing spikes and a relative error of gradients.

    `unequal` says why a contender cannot agree: it is measured with that label, unless its spikes
    are beyond `EXCUSED` or its gradients are not finite, which no such reason explains.
    """
    numbers = {"spikes_differ": differ, "gradient_error": error}
    if differ <= allowed[0] and error <= allowed[1]:  # NaN is not
        return Verdict(Status.OK, "", numbers)
    if unequal and differ <= max(EXCUSED, allowed[0]) and math.isfinite(error):
        return Verdict(Status.UNEQUAL, unequal, numbers)
    why = f"spikes differ: {differ:.2g} (allowed {allowed[0]:.2g}), "
    why += f"gradients by {error:.2g} (allowed {allowed[1]:.2g})"
    return Verdict(Status.WRONG, why, numbers)
