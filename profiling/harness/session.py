"""A session of measurements: facts of the machine, rows on disk as they come, progress, patience."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from profiling.harness import device
from profiling.harness.contenders import OURS, Case, Options, Row, Status, Unavailable, Work
from profiling.harness.timing import FULL, QUICK, race
from spiketriton.runs.folder import make_writable
from spiketriton.system.errors import UserError, one_line
from spiketriton.training import environment

LATE = {"status": Status.NOT_REACHED, "why": "--minutes are over"}

PREPARING = 30.0, 120.0
"""Seconds that a contender may compile where --minutes are given: what is left of them, but so much and no more."""


class _TooLong(BaseException):
    """Not an Exception, which torch.compile would report as a mistake of its backend."""


ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc keeps freed memory instead of returning it and faulting it in anew, page by page, as the
trainer sets it; all contenders on the CPU run under it."""


def facts(options: Options) -> Row:
    """What every number of this process depends on."""
    known = environment.describe(options.device)
    on_gpu = options.device.type == "cuda"
    malloc = " ".join(f"{name}={os.environ[name]}" for name in ALLOCATOR if name in os.environ)
    keys = "cpu threads spiketriton commit dirty python torch triton cuda platform command"
    return {
        "device": known["device"] if on_gpu else known["cpu"],
        "device_type": options.device.type,
        **{key: known[key] for key in keys.split()},
        "allocator": "torch's caching allocator" if on_gpu else malloc or "default",
        "quick": options.quick,
    }


def machine(row: Row) -> str:
    """`AMD EPYC, 2 threads`, `NVIDIA H100 80GB HBM3`."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return row["device"] + (f", {threads}" if row["device_type"] == "cpu" else "")


def file_name(text: str) -> str:
    """Lower-case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Session:
    """Measures cases one after the other and appends the rows of each to a file at once.

    Args:
        options: shared by all sections.
        out: the folder of rows and pictures; made at once, so that nothing is measured in vain.
        minutes: cases, and contenders of a case that has ours, which have not begun by then are
            not measured, and rows say so; what compiles longer is stopped. 0: no limit.
        total: the number of cases, of which progress tells.

    UserError: nothing can be written to `out`.
    """

    def __init__(self, options: Options, out: Path, minutes: float = 0, total: int = 0) -> None:
        try:
            make_writable(out)
        except OSError as error:
            accepted = "accepted: a folder to write to"
            raise UserError(f"--out {str(out)!r}: {error.strerror}; {accepted}") from error
        self.options, self.effort = options, QUICK if options.quick else FULL
        self.facts = facts(options)
        self.run = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.stem = out / f"{file_name(machine(self.facts))}-{time.strftime('%Y-%m-%d')}"
        self.file = Path(f"{self.stem}.jsonl")
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.rows: list[Row] = []
        self.cases, self.total = 0, total

    def add(self, section: str, rows: Iterable[Row]) -> None:
        """Keeps rows, in memory and on disk; prints a line for each that has no number."""
        now = {"section": section, "run": self.run}
        made = [now | row | self.facts | device.clocks(self.options.device) for row in rows]
        with self.file.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
        self.rows += made
        for row in made:
            if row["status"] not in (Status.OK, Status.NOT_REACHED):
                about = f"{row['contender']}: " if "contender" in row else ""
                self.say(f"{section}: {about}{row['status']}: {row.get('why', '')}")

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def say(self, text: str) -> None:
        print(one_line(text), file=sys.stderr, flush=True)

    def begin(self, case: str) -> None:
        self.cases += 1
        self.say(f"[{self.cases}/{self.total}] {case}")

    def measure(self, section: str, cases: Sequence[Case]) -> None:
        """How long the contenders of each case take (`memory`: how much memory)."""
        for case in cases:
            if self.late:
                self.add(section, [case.spec | LATE])
                continue
            self.begin(f"{section} {short(case.spec)}")
            self.add(section, self._case(case, section))

    def _case(self, case: Case, section: str) -> list[Row]:
        weighs = section == "memory"
        works: dict[str, Work] = {}
        rows: dict[str, Row] = {}
        for one in case.contenders(self.options):
            wanted = any(fnmatchcase(one.name, pattern) for pattern in self.options.only)
            if one.name == "copy":
                wanted = not weighs
            if not wanted:
                continue
            late = case.first in rows and self.late
            row = rows[one.name] = {**case.spec, "contender": one.name, **one.facts, "why": ""}
            if late:
                row |= LATE
                continue
            with refusals(row), within(self.deadline - time.monotonic()):
                work = one.build()
                work.compile_ahead()
                row |= work.check()
                if weighs and row["status"] in Status.MEASURED:
                    row |= work.memory()
                elif row["status"] in Status.MEASURED:
                    work.prepare(self.effort)
                    works[one.name] = work
        if works:
            patience = min(self.effort.patience, max(0.0, self.deadline - time.monotonic()))
            timings = race(works, replace(self.effort, patience=patience))
            derived = case.numbers(timings)
            for name, timing in timings.items():
                rows[name] |= timing.row() | derived.get(name, {})
                if works[name].timed:
                    rows[name]["timed"] = works[name].timed
                with refusals(rows[name]):
                    rows[name] |= works[name].device_time(timing.median)
                    if self.options.trace:
                        words = section, short(case.spec), case.spec.get("precision", ""), name
                        file = f"{self.stem.name}-{file_name(' '.join(words))}.trace.json.gz"
                        rows[name] |= works[name].kernels(self.stem.with_name(file))
                    if case.weighed:
                        rows[name] |= works[name].memory()
                if OURS in timings:  # round by round: noise in one leaves the median alone
                    rows[name]["times_ours"] = timing.ratio_to(timings[OURS]).median
        return list(rows.values())


@contextmanager
def within(left: float) -> Iterator[None]:
    """Raises _TooLong in the block after the seconds that are left, but `PREPARING`: a compiler, too, is stopped."""

    def stop(*_: object) -> None:
        raise _TooLong

    if left == float("inf"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(PREPARING[1], max(PREPARING[0], left)))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def refusals(row: Row) -> Iterator[None]:
    """What keeps a contender from being measured goes into its row; the others are measured."""
    try:
        yield
    except (Unavailable, UserError) as reason:  # UserError: a recipe's data are not there
        row |= {"status": Status.MISSING, "why": one_line(reason)}
    except _TooLong:
        row |= {"status": Status.NOT_REACHED, "why": "stopped while it was built and checked"}
    except torch.OutOfMemoryError as error:
        row |= {"status": Status.TOO_LARGE, "why": one_line(error)[:200]}
    except Exception as error:  # a compiler's, a peer's: named in the row and on the screen
        row |= {"status": Status.FAILED, "why": f"{type(error).__name__}: {one_line(error)[:300]}"}
    if row["status"] in (Status.TOO_LARGE, Status.FAILED) and torch.cuda.is_available():
        torch.cuda.empty_cache()


def short(spec: Row) -> str:
    """A case in a few words."""
    if "recipe" in spec:
        return spec["recipe"]
    if "images_of" in spec:
        return "{images_of}, {augment}".format(**spec)
    shape = "x".join(map(str, spec["shape"]))
    return "{op} {mode} T={T} {0} {dtype} {layout}".format(shape, **spec)


def reexecute(argv: list[str], environ: dict[str, str]) -> None:
    """Starts this process anew under ALLOCATOR, which glibc reads at its start (Linux only).

    And without the lines that torch's profiler prints to stderr each time it starts.
    """
    if sys.platform == "linux" and not all(name in environ for name in ALLOCATOR):
        quiet = {"KINETO_LOG_LEVEL": "6"}
        os.execve(sys.executable, [sys.executable, *argv], quiet | environ | ALLOCATOR)
