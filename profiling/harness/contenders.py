"""What is compared: a contender builds its work, the work is checked, and only then measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from profiling.harness.timing import Timed, Timing

OURS = "spiketriton"

EXCUSED = 0.05
"""Share of spikes that may differ where a contender cannot agree: a rounded membrane moves few, and
a gradient through the reset none."""

Row = dict[str, Any]


class Status:
    """What became of a contender, in its row."""

    OK = "ok"
    UNEQUAL = "not equal"  # measured; the row says why its result differs
    WRONG = "wrong result"  # not measured
    MISSING = "missing"  # a package or device is not there, or an option does not exist
    TOO_LARGE = "out of memory"
    FAILED = "failed"
    NOT_REACHED = "not reached"  # --minutes were over
    MEASURED = OK, UNEQUAL


class Unavailable(Exception):
    """A contender cannot run here, and why: a package, a device or an option is missing."""


@dataclass(frozen=True)
class Options:
    """What the command line chose for every section."""

    device: torch.device
    quick: bool = False
    peers: tuple[str, ...] = ()
    only: tuple[str, ...] = ("*",)  # patterns of contenders' names
    trace: bool = False  # whether steps are told apart by kernels


class Work(Timed):
    """A contender's work on its data, ready to be checked, timed and weighed; each returns a part of its row."""

    def compile_ahead(self) -> None:
        """The kernels of a call that Triton compiles, all at once, as a training does before its first step."""

    def check(self) -> Row:
        """At least the `status`; unless it is OK also `why`."""
        return {"status": Status.OK}

    def device_time(self, seconds: float) -> Row:
        """What the device does during a call that takes `seconds`."""
        return {}

    def kernels(self, trace: Path) -> Row:
        """Whose milliseconds a call's are, and its trace in a file."""
        return {}

    def memory(self) -> Row:
        """`peak_bytes` and `saved_bytes`."""
        raise Unavailable("it has no backward")


@dataclass(frozen=True)
class Contender:
    """`build` may raise Unavailable; `facts` go into the row."""

    name: str
    build: Callable[[], Work]
    facts: Row = field(default_factory=dict)


class Case:
    """What contenders are compared in; `spec` says what it is, in values that JSON can hold.

    Once the contender `first` is measured, the others are left out when time is over.
    """

    spec: Row
    first = OURS
    weighed = False  # whether each contender's memory is measured after its time

    def contenders(self, options: Options) -> list[Contender]:
        raise NotImplementedError

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        """What the contenders' rows hold besides their milliseconds."""
        raise NotImplementedError


def wider(allowed: tuple[float, float], own: tuple[float, float]) -> tuple[float, float]:
    """Allows twice what the definition itself is off by from float64, in the precision that is measured, too.

    For half precision, and for contenders whose batch norm is torch's: in channels_last it loses digits of the
    variance (studies/speed/log.md).
    """
    return max(allowed[0], 2 * own[0]), max(allowed[1], 2 * own[1])


def agreement(differ: float, error: float, allowed: tuple[float, float], unequal: str = "") -> Row:
    """The verdict on a share of differing spikes and a relative error of gradients.

    `unequal` says why a contender cannot agree: it is measured with that label, unless its spikes
    are beyond `EXCUSED` or its gradients are not finite, which no such reason explains.
    """
    status, why = Status.WRONG, ""
    if differ <= allowed[0] and error <= allowed[1]:  # NaN is not
        status = Status.OK
    elif unequal and differ <= max(EXCUSED, allowed[0]) and math.isfinite(error):
        status, why = Status.UNEQUAL, unequal
    else:
        why = f"spikes differ: {differ:.2g} (allowed {allowed[0]:.2g}), "
        why += f"gradients by {error:.2g} (allowed {allowed[1]:.2g})"
    return {"status": status, "why": why, "spikes_differ": differ, "gradient_error": error}
