"""Rows of result files, and the newest ones of every case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from profiling.harness.contenders import OURS, Row, Status
from profiling.harness.session import machine
from profiling.sections.kernels import gb_per_s
from spiketriton.system.errors import UserError

CASE = ("section", "op", "mode", "T", "shape", "dtype", "layout", "detach_reset")
CASE += ("recipe", "batch", "precision", "target", "card", "images_of", "augment", "tuned")
"""Keys that say what a case is: its contenders are compared within one run."""


def case_of(row: Row) -> str:
    return json.dumps([row.get(key) for key in CASE])


def read(folder: Path) -> list[Row]:
    """All rows of a folder's *.jsonl, oldest first. UserError: no file, or a line that is no row."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(
            f"{folder} holds no results (*.jsonl); python profiling/run.py all makes them"
        )
    rows: list[Row] = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}, line {number}: is not valid JSON ({error})") from error
            if "copy_gb_per_s" in row:  # older rows count 10 passes with a residual instead of 11
                row["gb_per_s"] = gb_per_s(row, row["median_ms"] / 1e3, row["contender"])
                row["of_copy"] = row["gb_per_s"] / row["copy_gb_per_s"]
            rows.append(row)
    return sorted(rows, key=lambda row: row["run"])


def newest(rows: Iterable[Row]) -> list[Row]:
    """For every machine and case the rows of the last run that measured it, rehearsals left out."""
    last: dict[tuple[str, str], str] = {}
    kept = [row for row in rows if not row["quick"] and row["status"] != Status.NOT_REACHED]
    for row in kept:
        last[machine(row), case_of(row)] = row["run"]
    return [row for row in kept if last[machine(row), case_of(row)] == row["run"]]


def by_case(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows grouped by case, in the order of their first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row), []).append(row)
    return list(groups.values())


def find(rows: Iterable[Row], contender: str) -> Row:
    """The row of a contender in a case's rows; empty if it took no part."""
    return next((row for row in rows if row.get("contender") == contender), {})


def times_ours(group: Iterable[Row], row: Row) -> float | None:
    """How many times ours a contender takes, round by round; None if either was not timed."""
    ours = find(group, OURS).get("median_ms")
    if ours is None or "median_ms" not in row:
        return None
    return row.get("times_ours", row["median_ms"] / ours)  # rows before times_ours have medians


def fastest_other(group: Iterable[Row]) -> float | None:
    """How many times ours the fastest other contender of a case takes; None where no other, or ours, was timed."""
    others = [row for row in group if row["contender"] not in ("copy", OURS)]
    ratios = [ratio for row in others if (ratio := times_ours(group, row)) is not None]
    return min(ratios, default=None)
