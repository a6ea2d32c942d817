"""docs/performance.md and a README.md beside result files, from these: a summary of each machine, and every table."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from profiling.harness.contenders import Row, Status
from profiling.harness.session import file_name, machine
from profiling.render import pictures, tables
from profiling.render.rows import by_case, fastest_other, find, newest, read
from profiling.render.tables import BLANK, Grid, number, times
from spiketriton.system.errors import UserError

START, END = "<!-- results: python profiling/run.py report -->", "<!-- end of results -->"
SETTING = {"recipe": "recipe", "precision": "precision", "time steps": "T", "batch": "batch"}
"""The first columns of a table of steps, and what they show of a row."""
HEAD = """\
# All results

For whoever checks a number of [docs/performance.md](../../../docs/performance.md): every case, with its command.
`python profiling/run.py report` writes this page from the `.jsonl` files beside it. Times are medians; that page
explains the columns.
"""


def write(folder: Path, page: Path) -> list[Path]:
    """Rewrites the results in `page`, and in `folder` README.md and the pictures; returns what was written.

    UserError: no results but rehearsals, or the page has no place for them.
    """
    rows = newest(read(folder))
    if not rows:
        raise UserError(
            f"{folder} holds only --quick rehearsals; python profiling/run.py all measures"
        )
    text = page.read_text()
    if START not in text or END not in text:
        raise UserError(f"{page} has no lines {START!r} and {END!r} to write between")
    written, short, long = [page, folder / "README.md"], [], [HEAD]
    for place in dict.fromkeys(map(machine, rows)):
        mine = [row for row in rows if machine(row) == place]
        drawn = pictures.draw(mine, folder / file_name(place))
        written += drawn
        days = sorted({row["run"][:10] for row in mine})
        measured = f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}.\n"
        short += [f"### {place}\n", measured, *(grid.markdown() for grid in summary(mine))]
        long += [f"## {place}\n", *(f"![{_words(path)}]({path.name})\n" for path in drawn)]
        long += [
            _section(section, chosen)
            for section in tables.SECTIONS
            if (chosen := [row for row in mine if row["section"] == section])
        ]
    head, rest = text.split(START)[0], text.split(END)[1]
    page.write_text(f"{head}{START}\n\n" + "\n".join(short) + f"\n{END}{rest}")
    written[1].write_text("\n".join(long))
    return written


def _words(picture: Path) -> str:
    return "time and memory of a training step, " + picture.stem.partition("-step-")[2]


def _section(name: str, rows: list[Row]) -> str:
    made = (f"`{row['command']}` ({row['run'][:10]}, {tables.where(row)})\n" for row in rows)
    grids = tables.kernel_matrix(rows) if name == "kernels" else tables.tables(rows, name)
    lines = [f"### {name}\n", *dict.fromkeys(made)]
    if name not in ("compiled", "memory"):
        allocators = dict.fromkeys(row["allocator"] for row in rows if row["status"] == Status.OK)
        lines.append(f"Allocator: {', '.join(allocators)}.\n")
    return "\n".join(lines + [grid.markdown() for grid in grids])


# ---- the summary of one machine


def summary(rows: list[Row]) -> list[Grid]:
    """Training steps and kernels, as far as this machine has them."""
    steps, kernels = ([r for r in rows if r["section"] == name] for name in ("step", "kernels"))
    return [grid for grid in (*_steps(steps), _kernels(kernels)) if grid.lines]


def _kernels(rows: list[Row]) -> Grid:
    """How many times as fast as the fastest other contender of a case, in the median; and the lowest."""
    found: dict[tuple[str, int], list[float]] = {}
    for group in by_case(rows):
        if (ratio := fastest_other(group)) is not None:
            first = group[0]
            name = f"`{first['op']}` {first['mode']}, {first['dtype']}"
            found.setdefault((name, first["T"]), []).append(ratio)
    windows = sorted({T for _, T in found})
    several = {name: sum(len(found.get((name, T), [])) for T in windows) for name, _ in found}
    names = sorted(name for name, count in several.items() if count > 1) or sorted(several)
    lines = []
    for name in names:
        windows_of = [found.get((name, T), []) for T in windows]
        medians = (times(median(ratios)) if ratios else BLANK for ratios in windows_of)
        lowest = min(min(ratios) for ratios in windows_of if ratios)
        lines.append([name, *medians, times(lowest), str(several[name])])
    cases = [ratio for ratios in found.values() for ratio in ratios]
    notes = []
    if cases:
        slower = sum(ratio < 1 for ratio in cases)
        notes = [
            f"All {len(cases)} cases: {times(median(cases))} in the median; slower than the fastest other in {slower}."
        ]
    title = "Kernels: how many times as fast as the fastest other, median of the cases"
    header = ["operation", *(f"T = {T}" for T in windows), "lowest", "cases"]
    return Grid(title, header, lines, notes=notes)


def _steps(rows: list[Row]) -> tuple[Grid, Grid]:
    """Images per second and, where it was measured, the peak of memory; a line for each setting."""
    groups = by_case(rows)
    groups.sort(key=lambda group: (group[0]["recipe"], group[0]["T"]))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    speeds, peaks = [], []
    for group in groups:
        setting = [str(group[0][name]) for name in SETTING.values()]
        found = [find(group, name) for name in names]
        speed = (
            number(row.get("images_per_s")) + (tables.mark(row) if row else "") for row in found
        )
        speeds.append([*setting, *speed])
        if any("peak_bytes" in row for row in found):
            peak = (
                tables.megabytes(row["peak_bytes"]) if "peak_bytes" in row else BLANK
                for row in found
            )
            peaks.append([*setting, *peak])
    return (
        Grid("Training step, images/s", [*SETTING, *names], speeds, left=2),
        Grid("Training step, peak MB", [*SETTING, *names], peaks, left=2),
    )
