"""docs/performance.md from result files: the bars first, then every table, then the pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from profiling import pictures, tables
from profiling.cases import BATCH_NORM
from profiling.contenders import OK, OURS
from profiling.networks import EVERY, TWIN
from profiling.rows import Row, by_case, median, newest, read, times_ours
from profiling.session import file_name
from profiling.tables import Grid, percent, where
from spiketriton.errors import UserError

START, END = "<!-- results: python profiling/run.py report -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Bar:
    """A promise, what was measured, and whether it is met."""

    promise: str
    measured: str
    met: bool


def bars(rows: list[Row]) -> list[Bar]:
    """The bars of the device that the rows are of, as far as they have been measured."""
    on_gpu = rows[0]["device_type"] == "cuda"
    return list(_gpu_bars(rows) if on_gpu else _cpu_bars(rows))


def _cases(rows: list[Row], op: str, **wanted: object) -> Iterator[list[Row]]:
    for group in by_case(row for row in rows if row["section"] == "kernels"):
        first = {"detach_reset": False, "mode": "training"} | wanted
        if group[0]["op"] == op and all(group[0][k] == v for k, v in first.items()):
            yield group


def _largest(rows: list[Row], op: str, **wanted: object) -> list[Row]:
    """The case with most neurons; empty without one."""
    groups = [g for g in _cases(rows, op, **wanted) if median(g, OURS)]
    return max(groups, key=lambda g: next(r["N"] for r in g if "N" in r), default=[])


def _faster(
    group: list[Row], rivals: Callable[[str], bool], least: float, promise: str
) -> Iterator[Bar]:
    """Ours against the best of some contenders of a case."""
    ratios = [
        (ratio, row["contender"])
        for row in group
        if rivals(row["contender"]) and (ratio := times_ours(group, row)) is not None
    ]
    if ratios:
        ratio, best = min(ratios)
        yield Bar(f"{promise}: at least {least:g}x", f"{ratio:.2f}x {best}", ratio >= least)


def _cpu_bars(rows: list[Row]) -> Iterator[Bar]:
    lif = _largest(rows, "lif", dtype="fp32", T=10)
    eager = ("spikingjelly default", "snntorch", "norse")
    about = f"neuron, {tables.case_words(lif[0])}" if lif else ""
    yield from _faster(
        lif, lambda n: n == "spikingjelly compiled", 1.0, f"{about}, against the best compiled peer"
    )
    yield from _faster(lif, lambda n: n == "torch.compile", 1.0, f"{about}, against torch.compile")
    yield from _faster(lif, lambda n: n in eager, 5.0, f"{about}, against the best eager peer")
    bn = _largest(rows, "bn_lif", dtype="fp32", T=10, layout="channels_last")
    yield from _faster(
        bn,
        lambda n: n == "BatchNorm2d + torch.compile",
        1.5,
        "batch norm + neuron, against torch.nn.BatchNorm2d and the compiled definition",
    )
    for group in by_case(row for row in rows if row["section"] == "step"):
        recipe = group[0]["recipe"]
        yield from _twin(group, 1.15)
        for name, least in (("spikingjelly default", 1.5), ("spikingjelly compiled", 1.0)):
            same = lambda n, name=name: n == name  # noqa: E731
            yield from _faster(group, same, least, f"step of {recipe}, against {name}")
    yield from _monitor(rows, 0.03)


def _gpu_bars(rows: list[Row]) -> Iterator[Bar]:
    for group in _cases(rows, "lif"):
        for row in group:
            if row["contender"] == OURS and row.get("N", 0) * row["T"] >= 32e6 and "of_copy" in row:
                promise = f"neuron, {tables.case_words(row)}: at least 85 % of a copy's bandwidth"
                yield Bar(promise, percent(row["of_copy"]), row["of_copy"] >= 0.85)
        name = f"neuron, {tables.case_words(group[0])}, against torch.compile"
        yield from _faster(group, lambda n: n == "torch.compile", 1.0, name)
    for group in _cases(rows, "bn_lif", layout="channels_last"):
        yield from _faster(
            group,
            lambda n: n.startswith(BATCH_NORM),
            1.6,
            f"batch norm + neuron, {tables.case_words(group[0])}, against torch's and a neuron",
        )
    for group in by_case(row for row in rows if row["section"] == "step"):
        recipe = group[0]["recipe"]
        yield from _twin(group, 1.0)
        theirs = lambda n: n.startswith("spikingjelly")  # noqa: E731
        yield from _faster(group, theirs, 2.0, f"step of {recipe}, against spikingjelly")
    for group in by_case(r for r in rows if r["section"] == "memory" and "recipe" in r):
        peaks = {row["contender"]: row["peak_bytes"] for row in group if "peak_bytes" in row}
        best = min((v for k, v in peaks.items() if k.startswith("spikingjelly")), default=None)
        if best and OURS in peaks:
            share, recipe = peaks[OURS] / best, group[0]["recipe"]
            promise = f"peak memory of a step of {recipe}: at most 0.6 of spikingjelly's"
            yield Bar(promise, f"{share:.2f}", share <= 0.6)
    yield from _monitor(rows, 0.01)


def _twin(group: list[Row], most: float) -> Iterator[Bar]:
    for row in group:
        if row["contender"] == OURS and "twin_ratio" in row:
            promise = f"step of {row['recipe']} by T={row['T']} steps of its {TWIN}: at most {most}"
            yield Bar(promise, f"{row['twin_ratio']:.2f}", row["twin_ratio"] <= most)


def _monitor(rows: list[Row], most: float) -> Iterator[Bar]:
    for row in rows:
        if row.get("contender") == EVERY and "cost" in row:
            promise = (
                f"gradient monitor, a measured step of {row['recipe']}: at most {percent(most)}"
            )
            measured = f"{percent(row['cost'])} ({percent(row['cost_in_training'])} in training)"
            yield Bar(promise, measured, row["cost"] <= most)


def bars_grid(rows: list[Row]) -> Grid | None:
    found = bars(rows) if rows else []
    grid = Grid("the bars", ["promise", "measured", "verdict"], left=3)
    grid.lines = [[b.promise, b.measured, "met" if b.met else "MISSED"] for b in found]
    return grid if found else None


def write(folder: Path, page: Path) -> list[Path]:
    """Rewrites the results in `page` and the pictures in `folder`; returns what was written.

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
    written = [page]
    parts = []
    for machine in dict.fromkeys(_machine(row) for row in rows):
        mine = [row for row in rows if _machine(row) == machine]
        stem = file_name(machine)
        drawn = pictures.draw(mine, lambda what, stem=stem: folder / f"{stem}-{what}.png")
        written += drawn
        parts.append(f"### {machine}\n")
        grid = bars_grid(mine)
        if grid:
            parts.append(grid.markdown())
        parts += [f"![{path.stem}]({_relative(path, page)})\n" for path in drawn]
        for section in tables.TABLES:
            chosen = [row for row in mine if row["section"] == section]
            if chosen:
                parts.append(_section(section, chosen))
    head, rest = text.split(START)[0], text.split(END)[1]
    page.write_text(f"{head}{START}\n\n" + "\n".join(parts) + f"\n{END}{rest}")
    return written


def _section(name: str, rows: list[Row]) -> str:
    make = tables.kernel_matrix if name == "kernels" else tables.TABLES[name]
    commands = dict.fromkeys(
        f"`{row['command']}` ({row['run'][:10]}, {where(row)})" for row in rows
    )
    lines = [f"#### {name}\n", *(f"{command}\n" for command in commands)]
    allocators = dict.fromkeys(row["allocator"] for row in rows if row["status"] == OK)
    if name not in ("compiled", "memory"):
        lines.append(f"Allocator: {', '.join(allocators)}.\n")
    return "\n".join(lines + [grid.markdown() for grid in make(rows)])


def _machine(row: Row) -> str:
    return row["device"] + (f", {row['threads']} threads" if row["device_type"] == "cpu" else "")


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()
