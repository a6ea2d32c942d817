"""Command `compare`: two result files, case by case."""

from __future__ import annotations

import json
from pathlib import Path

from profiling.harness.contenders import OURS, Row, Status
from profiling.harness.session import machine, short
from profiling.render.rows import case_of
from profiling.render.tables import Grid, number, times
from spiketriton.system.errors import UserError


def rows_of(file: Path) -> dict[tuple[str, str], Row]:
    """The last measured row of each case and contender. UserError: it is no result file."""
    found: dict[tuple[str, str], Row] = {}
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for row in rows:
            if row["status"] in Status.MEASURED and "median_ms" in row:
                found[case_of(row), row["contender"]] = row
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} is no result file (*.jsonl) of profiling: {why}") from None
    return found


def compare(before: Path, after: Path, threshold: float) -> tuple[Grid, bool]:
    """What takes more or less time than before by over `threshold` (0.1: a tenth), the slowest first.

    And whether spiketriton is slower anywhere. UserError: the files have no case in common, or are of two machines.
    """
    old, new = rows_of(before), rows_of(after)
    both = [key for key in old if key in new]
    if not both:
        raise UserError(f"{before} and {after} have no measured case in common")
    machines = {machine(rows[both[0]]) for rows in (old, new)}
    if len(machines) > 1:
        raise UserError(
            f"{before} and {after} are of {' and '.join(sorted(machines))}; accepted: rows of one machine"
        )
    ratios = {key: new[key]["median_ms"] / old[key]["median_ms"] for key in both}
    apart = [k for k in both if not 1 / (1 + threshold) <= ratios[k] <= 1 + threshold]
    lines = []
    for key in sorted(apart, key=lambda key: -ratios[key]):
        row = new[key]
        case = f"{row['section']} {row.get('recipe') or short(row)}"
        times_ms = (number(old[key]["median_ms"]), number(row["median_ms"]))
        lines.append([row["contender"], case, *times_ms, times(ratios[key])])
    grid = Grid(
        f"{len(apart)} of {len(both)} differ by more than {100 * threshold:g} %",
        ["contender", "case", "ms before", "ms after", "after / before"],
        lines,
        [f"before: {_commit(old[both[0]])}; after: {_commit(new[both[0]])}"],
    )
    slower = any(key[1].startswith(OURS) and ratios[key] > 1 + threshold for key in both)
    return grid, slower


def _commit(row: Row) -> str:
    return f"commit {str(row.get('commit'))[:9]}, {row.get('run')}"
