"""What is compared: a contender builds its work, the work is checked, and only then measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from profiling.memory import Memory
from profiling.timing import Effort, Timing

OURS = "spiketriton"

OK = "ok"
UNEQUAL = "not equal"  # measured; the row says why its result is another
WRONG = "wrong result"  # not measured
MISSING = "missing"  # a package or device is not there, or an option does not exist
TOO_LARGE = "out of memory"
FAILED = "failed"
NOT_REACHED = "not reached"  # --minutes were over

Spec = dict[str, Any]
"""What a case is, in words that JSON holds: another process can build the same."""


@dataclass(frozen=True)
class Options:
    """What the command line chose for every section."""

    device: torch.device
    quick: bool = False
    peers: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # patterns of contenders' names; empty: all


EXCUSED = 0.05
"""Share of spikes that may differ where a contender cannot agree: a rounded membrane moves few, and
a gradient through the reset none."""


@dataclass(frozen=True)
class Verdict:
    """How a contender's result compares with the definition; `numbers` go into the row."""

    status: str
    why: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return self.status in (OK, UNEQUAL)


class Work(Protocol):
    """A contender's work on its data, ready to be checked, timed and weighed."""

    def check(self) -> Verdict: ...

    def prepare(self, effort: Effort) -> None: ...

    def sample(self) -> float: ...

    def memory(self) -> Memory: ...


@dataclass(frozen=True)
class Contender:
    """`build` may raise Unavailable; `facts` go into the row."""

    name: str
    build: Callable[[], Work]
    facts: dict[str, Any] = field(default_factory=dict)


class Section(Protocol):
    """One kind of measurement: its cases, who takes part in a case, and what is made of it."""

    name: str

    def specs(self, options: Options) -> list[Spec]: ...

    def contenders(self, spec: Spec, options: Options) -> list[Contender]: ...


class Timed(Section, Protocol):
    """Contenders take turns; `numbers` are what a row tells beside its milliseconds."""

    def numbers(self, spec: Spec, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]: ...


class Weighed(Section, Protocol):
    """Contenders are weighed; `weigh` makes a row of the bytes."""

    def weigh(self, spec: Spec, memory: Memory) -> dict[str, float]: ...


def agreement(
    differ: float, error: float, allowed: tuple[float, float], unequal: str = ""
) -> Verdict:
    """The verdict on a share of differing spikes and a relative error of gradients.

    `unequal` says why a contender cannot agree: it is measured with that label, unless its spikes
    are beyond `EXCUSED` or its gradients are not finite, which no such reason explains.
    """
    numbers = {"spikes_differ": differ, "gradient_error": error}
    if differ <= allowed[0] and error <= allowed[1]:  # NaN is not
        return Verdict(OK, "", numbers)
    if unequal and differ <= max(EXCUSED, allowed[0]) and math.isfinite(error):
        return Verdict(UNEQUAL, unequal, numbers)
    return Verdict(
        WRONG,
        f"spikes differ: {differ:.2g} (allowed {allowed[0]:.2g}), gradients by {error:.2g} (allowed {allowed[1]:.2g})",
        numbers,
    )
