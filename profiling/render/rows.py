"""Rows of result files, and the newest ones of every case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from profiling.contenders import NOT_REACHED, OURS
from spiketriton.errors import UserError

Row = dict[str, Any]

CASE = ("section", "op", "mode", "T", "shape", "dtype", "layout", "detach_reset")
CASE += ("recipe", "batch", "precision", "target", "card")
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
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{file}, line {number}: is not JSON ({error})") from error
    return sorted(rows, key=lambda row: row["run"])


def newest(rows: Iterable[Row]) -> list[Row]:
    """For every machine and case the rows of the last run that measured it, rehearsals left out."""
    last: dict[tuple[str, int, str], str] = {}
    kept = [row for row in rows if not row["quick"] and row["status"] != NOT_REACHED]
    place = lambda row: (row["device"], row["threads"], case_of(row))  # noqa: E731
    for row in kept:
        last[place(row)] = row["run"]
    return [row for row in kept if last[place(row)] == row["run"]]


def by_case(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows grouped by case, in the order of their first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row), []).append(row)
    return list(groups.values())


def median(rows: Iterable[Row], contender: str) -> float | None:
    """Milliseconds of a contender in a case's rows; None if it was not timed."""
    found = [row for row in rows if row.get("contender") == contender and "median_ms" in row]
    return found[-1]["median_ms"] if found else None


def times_ours(group: Iterable[Row], row: Row) -> float | None:
    """How many times ours a contender takes, round by round; None if either was not timed."""
    ours = median(group, OURS)
    if ours is None or "median_ms" not in row:
        return None
    return row.get("times_ours", row["median_ms"] / ours)  # rows before times_ours have medians
