"""A session of measurements: facts of the machine, rows on disk as they come, progress, patience."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from profiling.contenders import (
    FAILED,
    MISSING,
    NOT_REACHED,
    OURS,
    TOO_LARGE,
    WRONG,
    Contender,
    Options,
    Section,
    Spec,
    Work,
)
from profiling.peers import Unavailable
from profiling.timing import FULL, QUICK, Timing, race
from spiketriton.errors import UserError, one_line
from spiketriton.training import environment

Row = dict[str, Any]

BESIDE = 44
"""Columns that the progress bar, its count and its times take beside the words."""

LATE = {"status": NOT_REACHED, "why": "--minutes are over"}

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc keeps freed memory instead of giving it back and faulting it in anew, page by page, as the
trainer tells it to; all contenders on the CPU run under it."""


def facts(options: Options) -> Row:
    """What every number of this process depends on."""
    known = environment.describe(options.device)
    on_gpu = options.device.type == "cuda"
    told = [f"{name}={os.environ[name]}" for name in ALLOCATOR if name in os.environ]
    allocator = " ".join(told) or "default"
    return {
        "device": known["device"] if on_gpu else known["cpu"],
        "device_type": options.device.type,
        **{key: known[key] for key in ("cpu", "threads", "spiketriton", "commit", "dirty")},
        **{key: known[key] for key in ("python", "torch", "triton", "cuda", "platform")},
        "allocator": "torch's caching allocator" if on_gpu else allocator,
        "quick": options.quick,
    }


def device_name(options: Options) -> str:
    """The machine in a file name: `nvidia-h100-80gb-hbm3`, `amd-epyc-2-threads`."""
    known = facts(options)
    name = known["device"]
    if options.device.type == "cpu":
        name += f" {known['threads']} threads"
    return file_name(name)


def file_name(text: str) -> str:
    """Lower-case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Session:
    """Measures sections one after the other and appends each case's rows to a file at once.

    Args:
        options: shared by all sections.
        out: the folder of rows and pictures; made at once, so that nothing is measured in vain.
        minutes: cases, and contenders of a case that has ours, which have not begun by then are
            not measured, and rows say so; 0: no end.
        extend: adds contenders (another commit's) to a case of the section of that name.

    UserError: nothing can be written to `out`.
    """

    def __init__(
        self,
        options: Options,
        out: Path,
        minutes: float = 0,
        extend: Callable[[str, Spec], Iterable[Contender]] = lambda section, spec: (),
    ) -> None:
        refuse_unwritable(out)
        self.options, self.out, self.extend = options, out, extend
        self.effort = QUICK if options.quick else FULL
        self.facts = facts(options) | {"command": environment.command_line()}
        self.run = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.stem = f"{device_name(options)}-{time.strftime('%Y-%m-%d')}"
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.rows: list[Row] = []
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=0)

    @property
    def file(self) -> Path:
        return self.out / f"{self.stem}.jsonl"

    def picture(self, what: str) -> Path:
        return self.out / f"{self.stem}-{what}.png"

    def add(self, section: str, rows: Iterable[Row]) -> None:
        """Keeps rows, in memory and on disk; prints a line for each that has no number."""
        made = [{"section": section, "run": self.run, **row, **self.facts} for row in rows]
        with self.file.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
        self.rows += made
        for row in made:
            if row["status"] not in ("ok", NOT_REACHED):
                about = f"{row['contender']}: " if "contender" in row else ""
                self.say(f"{section}: {about}{row['status']}: {row.get('why', '')}")

    def say(self, text: str) -> None:
        self.console.print(one_line(text), soft_wrap=True, markup=False)

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """Shows a bar for so many cases."""
        self.bar.update(self.task, total=total)
        with self.bar:
            yield

    def at(self, what: str, advance: int = 0) -> None:
        """Says what is being done; without a terminal, once a case."""
        if advance and not self.console.is_terminal:
            done = int(self.bar.tasks[0].completed) + advance
            self.say(f"[{done}/{int(self.bar.tasks[0].total or 0)}] {what}")
        room = max(8, min(60, self.console.width - BESIDE))
        self.bar.update(self.task, description=what[:room].ljust(room), advance=advance)

    def measure(self, section: Section, specs: list[Spec]) -> None:
        """All cases of a section: how long each contender takes (`memory`: how much memory)."""
        how = "memory" if section.name == "memory" else "time"
        for spec in specs:
            label = f"{section.name} {short(spec)}"
            over = self.seconds_left < 0
            self.add(section.name, [spec | LATE] if over else self._case(section, spec, label, how))
            self.at(label, advance=1)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def _wanted(self, name: str) -> bool:
        only = self.options.only
        return not only or name == "copy" or any(fnmatchcase(name, pattern) for pattern in only)

    def _case(self, section: Section, spec: Spec, label: str, how: str) -> list[Row]:
        contenders = [c for c in section.contenders(spec, self.options) if self._wanted(c.name)]
        contenders += self.extend(section.name, spec)
        works: dict[str, Work] = {}
        rows: dict[str, Row] = {}
        for contender in contenders:
            row: Row = {**spec, "contender": contender.name, **contender.facts}
            if OURS in rows and self.seconds_left < 0:
                rows[contender.name] = row | LATE
                continue
            self.at(f"{label}: {contender.name}")
            with refusals(row):
                work = contender.build()
                verdict = work.check()
                row |= {"status": verdict.status, "why": verdict.why, **verdict.numbers}
                if verdict.measured and how == "time":
                    work.prepare(self.effort)
                    works[contender.name] = work
                elif verdict.measured:
                    row |= section.weigh(spec, work.memory())
            rows[contender.name] = row
        if works:
            self.at(f"{label}: {len(works)} taking turns")
            patience = min(self.effort.patience, max(0.0, self.seconds_left))
            timings = race(works, replace(self.effort, patience=patience))
            for name, numbers in section_numbers(section, spec, timings).items():
                rows[name] |= numbers
        return list(rows.values())


def section_numbers(section: Section, spec: Spec, timings: dict[str, Timing]) -> dict[str, Row]:
    """The timings' rows, with what the section makes of them (GB/s, images/s, ratios).

    `times_ours` is the median of the ratios round by round, which noise in a round leaves alone.
    """
    derived = section.numbers(spec, timings)
    rows = {name: timing.row() | derived[name] for name, timing in timings.items()}
    if OURS in timings:
        for name, timing in timings.items():
            rows[name]["times_ours"] = timing.ratio_to(timings[OURS]).median
    return rows


@contextmanager
def refusals(row: Row) -> Iterator[None]:
    """What keeps a contender from being measured goes into its row; the others go on."""
    try:
        yield
    except (Unavailable, UserError) as reason:  # of a recipe's: its data are not there
        row |= {"status": MISSING, "why": one_line(reason)}
    except torch.OutOfMemoryError as error:
        row |= {"status": TOO_LARGE, "why": one_line(error)[:200]}
    except Exception as error:  # a compiler's, a peer's: named in the row and on the screen
        row |= {"status": FAILED, "why": f"{type(error).__name__}: {one_line(error)[:300]}"}
    if row["status"] in (TOO_LARGE, FAILED) and torch.cuda.is_available():
        torch.cuda.empty_cache()


def refuse_unwritable(folder: Path) -> None:
    """Makes the folder. UserError: there can be none, or no file in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--out {str(folder)!r}: {error.strerror}; accepted: a folder to write to"
        ) from error


def short(spec: Spec) -> str:
    """A case in a few words, for the progress bar."""
    if "op" in spec:
        words = [spec["op"], spec["mode"], f"T={spec['T']}", "x".join(map(str, spec["shape"]))]
        return " ".join([*words, spec["dtype"], spec["layout"]])
    return " ".join(str(spec[key]) for key in ("recipe", "mode", "target") if key in spec)


def ours_failed(rows: Iterable[Row]) -> list[Row]:
    """Rows of ours that are wrong or broken: such a session does not end well."""
    return [
        row
        for row in rows
        if str(row.get("contender", "")).startswith(OURS) and row["status"] in (WRONG, FAILED)
    ]


def reexecute(argv: list[str], environ: dict[str, str]) -> None:
    """Starts this process anew under ALLOCATOR, which glibc reads at its start (Linux only).

    And without the words that torch's profiler prints to stderr each time it starts.
    """
    if sys.platform == "linux" and not all(name in environ for name in ALLOCATOR):
        quiet = {"KINETO_LOG_LEVEL": "6"}
        os.execve(sys.executable, [sys.executable, *argv], quiet | environ | ALLOCATOR)
