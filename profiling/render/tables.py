"""Rows as tables: for the terminal, and in Markdown for docs/performance.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from profiling.harness.attribution import by_part
from profiling.harness.contenders import OURS, Row, Status
from profiling.harness.session import machine
from profiling.render.rows import by_case, fastest_other, find, times_ours
from profiling.sections.gradients import OFF
from profiling.sections.step import FLOOR, TWIN

if TYPE_CHECKING:
    from rich.table import Table

BLANK = "-"
Cell = Callable[[Row, list[Row]], str]
"""The words of a row, one of the rows of its case."""


@dataclass
class Grid:
    """A table of strings; the first columns are aligned to the left, the others to the right."""

    title: str
    header: list[str]
    lines: list[list[str]]
    notes: list[str] = field(default_factory=list)
    left: int = 1

    def rich(self) -> Table:
        """For a terminal, where the package rich is installed."""
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", caption_justify="left")
        table.caption = "\n".join(self.notes) or None
        for i, name in enumerate(self.header):
            table.add_column(name, justify="right" if i >= self.left else "left", overflow="fold")
        for line in self.lines:
            table.add_row(*line, style="bold" if line[0].startswith(OURS) else None)
        return table

    def markdown(self) -> str:
        rule = ["---:" if i >= self.left else "---" for i in range(len(self.header))]
        lines = [self.header, rule, *self.lines]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "".join(f"\n\n{note}" for note in self.notes)
        return f"**{self.title}**\n\n{body}{notes}\n"


# ---- words


def number(value: float | None) -> str:
    """Three significant digits, without an exponent; thousands grouped."""
    if value is None or not math.isfinite(value):
        return BLANK
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, places):,.{places}f}"


def percent(value: float | None) -> str:
    return BLANK if value is None else f"{100 * value:.1f} %"


def times(value: float | None) -> str:
    return BLANK if value is None else f"{value:.2f}x"


def mark(row: Row) -> str:
    return " *" if row["status"] == Status.UNEQUAL else ""


def key(name: str, words: Callable = number) -> Cell:
    return lambda row, group: words(row.get(name))


def middle(row: Row, group: list[Row], scale: float = 1.0) -> str:
    """The median, or why there is none."""
    if "median_ms" not in row:
        return row.get("status", BLANK)
    return number(scale * row["median_ms"]) + mark(row)


def quantile(name: str, scale: float = 1.0) -> Cell:
    return lambda row, group: number(scale * row[name]) if name in row else BLANK


def spread(unit: str, scale: float = 1.0) -> dict[str, Cell]:
    """The columns of a time: its median, and between which two times three rounds in five are."""
    between = {"20 %": quantile("p20_ms", scale), "80 %": quantile("p80_ms", scale)}
    return {unit: partial(middle, scale=scale), **between}


def faster(row: Row, group: list[Row]) -> str:
    """How many times as fast ours is as a contender that does the same work."""
    return BLANK if row["contender"] in ("copy", FLOOR, TWIN) else times(times_ours(group, row))


def mebibytes(count: float | None) -> str:
    return f"{count / 2**20:,.1f}" if count else BLANK


def megabytes(count: float | None) -> str:
    return f"{count / 1e6:,.0f}" if count else BLANK


def of_ours(row: Row, group: list[Row]) -> str:
    peak, ours = row.get("peak_bytes"), find(group, OURS).get("peak_bytes")
    return times(peak / ours if peak and ours else None)


def setting(row: Row) -> str:
    reset = ", reset detached" if row.get("detach_reset") else ""
    return f"{row['dtype']}, {row['layout']}{reset}"


def about(row: Row) -> dict[str, str]:
    """What titles may name: a row's values, and its case in words."""
    words = {
        k: "x".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for k, v in row.items()
    }
    if "shape" in row:
        N = f"{math.prod(row['shape']):,}"
        words["case"] = f"T={row['T']}, N={N} ({words['shape']}), {setting(row)}"
    return words


def notes(rows: list[Row]) -> list[str]:
    """Why a contender is starred or has no number, once each; and what is special about a peer."""
    found: dict[str, None] = {}
    for row in rows:
        if row["status"] != Status.OK:
            star = "* " if mark(row) else ""
            found[f"{star}{row['contender']}: {row['status']}, {row.get('why', '')}"] = None
        if "because" in row.get("timed", ""):
            found[f"{row['contender']}: timed by {row['timed']}"] = None
        if "note" in row:
            found[f"{row['contender']}: {row['note']}"] = None
    return list(found)


def where(row: Row) -> str:
    """The machine and the versions of a row in words."""
    commit = f", commit {row['commit'][:8]}" if row.get("commit") else ""
    dirty = " with changes" if row.get("dirty") else ""
    triton = f", triton {row['triton']}" if row.get("triton") else ""
    return f"{machine(row)}, torch {row['torch']}{triton}{commit}{dirty}"


# ---- tables


NAME = key("contender", str)
OPERATION: dict[str, Cell] = {
    "contender": lambda row, group: row["contender"] + mark(row),
    "peak MiB": key("peak_bytes", mebibytes),
    "saved for backward MiB": key("saved_bytes", mebibytes),
    "peak B/element": key("peak_per_element"),
    "saved B/element": key("saved_per_element"),
}
LAYOUTS: list[tuple[str, str, str, dict[str, Cell]]] = [
    ("kernels", "op", "{op} {mode}: {case}", {
        "contender": NAME,
        **spread("ms"),
        "GB/s": key("gb_per_s"),
        "of copy": key("of_copy", percent),
        "time / spiketriton's": faster,
    }),
    ("step", "recipe", "training step of {recipe}: T={T}, batch {batch} of {image}, {precision}, {layout}", {
        "contender": NAME,
        **spread("ms"),
        "images/s": key("images_per_s"),
        "peak MB": key("peak_bytes", megabytes),
        "of T ANN steps": key("twin_ratio"),
        "time / spiketriton's": faster,
    }),
    ("step", "busy", "the GPU in a training step of {recipe}: T={T}, batch {batch} of {image}, {precision}", {
        "contender": NAME,
        "ms": key("median_ms"),
        "GPU ms": key("device_ms"),
        "GPU busy": key("busy", percent),
        "launches": key("launches"),
        "kernels": key("kernels"),
    }),
    ("modes", "recipe", "blocks and modes, training step of {recipe}: T={T}, batch {batch} of {image}, {precision}", {
        "blocks, mode": NAME,
        **spread("ms"),
        "images/s": key("images_per_s"),
        "GPU ms": key("device_ms"),
        "GPU busy": key("busy", percent),
        "launches": key("launches"),
        "kernels": key("kernels"),
    }),
    *((section, "parts", "where a step of {contender} goes: {recipe}, T={T}, batch {batch}, {precision}", {})
        for section in ("step", "modes")),
    ("memory", "op", "memory of {op}: {case}", OPERATION),
    ("memory", "recipe", "memory of a step of {recipe}: T={T}, batch {batch}",
        dict(list(OPERATION.items())[:3]) | {"peak / spiketriton's": of_ours}),
    ("gradients", "cost", "cost of the gradient monitor, of a training step", {
        "recipe": lambda row, group: "{recipe} (T={T}, batch {batch})".format(**row),
        "off, ms": lambda row, group: number(find(group, OFF).get("median_ms")),
        "measuring, ms": key("median_ms"),
        "cost": key("cost", percent),
        "20 %": key("cost_p20", percent),
        "80 %": key("cost_p80", percent),
        "measured every .. steps": key("measures_every", str),
        "cost in training": key("cost_in_training", percent),
    }),
    ("data", "recipe", "the loader alone, {recipe}: batch {batch}, augment {augment}, {cores} cores", {
        "loaded by": NAME,
        "workers": key("workers", lambda count: BLANK if count is None else str(count)),
        "images/s": key("images_per_s"),
        "frames/s": key("frames_per_s"),
        **spread("ms a batch"),
        "of what a step takes": key("of_step", times),
    }),
    ("data", "images_of", "images on one core: {images_of}, augment {augment}", {
        "prepared by": NAME,
        "images/s a core": key("images_per_s"),
        **spread("ms a batch"),
        "time / spiketriton's": faster,
    }),
    ("host", "op", "process time of one layer, forward and backward: T={T}, [B, C, H, W] = {shape}", {
        "layer": NAME,
        **spread("us", 1e3),
        "of F.batch_norm + relu": key("of_reference", times),
        "at most": key("allowed", times),
    }),
    ("compiled", "kernel", "kernels lowered for {target} ({card}), T={T}, {dtype}, {layout}", {
        "kernel": key("kernel", str),
        "regs": key("registers", str),
        "spills": key("spills", str),
        "shared": key("shared", str),
        "vector": key("vector_bytes", lambda width: "-" if width is None else str(width)),
        "loads": key("loads"),
        "stores": key("stores"),
        "B/elem.": key("bytes_per_element"),
        "instr.": key("instructions"),
        "B/request": key("bytes_per_request"),
        "occup.": key("occupancy", percent),
    }),
    ("compiled", "operation",
        "operations lowered for {target} ({card}), T={T}, {dtype}, {layout}, forward + backward", {
        "operation": key("operation", str),
        "passes (e)": key("passes"),
        "budget (e)": key("budget"),
        "+ checkpoints B/elem.": key("checkpoint_bytes"),
    }),
]  # fmt: skip
"""Section, the key that its rows have, title, and columns: a table for each case, in this order."""
SECTIONS = tuple(dict.fromkeys(section for section, *_ in LAYOUTS))


def tables(rows: list[Row], section: str) -> list[Grid]:
    """The tables of a section's rows; rows of `--minutes` that were over have none."""
    grids: list[Grid] = []
    rows = [r for r in rows if r["section"] == section and r["status"] != Status.NOT_REACHED]
    for group in by_case(rows):
        for _, having, title, columns in (layout for layout in LAYOUTS if layout[0] == section):
            chosen = [row for row in group if having in row]
            if chosen and having == "parts":
                grids += [of_parts(row, title.format(**about(row))) for row in chosen]
            elif chosen:
                lines = [[cell(row, group) for cell in columns.values()] for row in chosen]
                title = title.format(**about(chosen[0]))
                grids.append(Grid(title, list(columns), lines, notes=notes(chosen)))
    return grids


def of_parts(row: Row, title: str) -> Grid:
    """Parts of a step, the longest first, each with its kernels that take a hundredth of the step or more."""
    parts, whole = row["parts"], sum(one["ms"] for one in row["parts"])

    def line(one: Row, name: str) -> list[str]:
        moved = one["bytes"] / one["ms"] / 1e6 if one["bytes"] and one["ms"] else None
        shares = percent(one["ms"] / whole), megabytes(one["bytes"]), number(moved)
        return [name, number(one["calls"]), number(one["ms"]), *shares, percent(one["of_copy"])]

    lines: list[list[str]] = []
    for part in by_part(parts):
        lines.append(line(part, part["part"]))
        kernels = [one for one in parts if one["part"] == part["part"] and one["ms"] >= whole / 100]
        lines += [line(one, f"  {one['kernel']}"[:100]) for one in kernels]
    header = ["part, kernel", "calls", "ms", "of all", "MB", "GB/s", "of a copy"]
    return Grid(
        title,
        header,
        lines,
        notes=[f"trace: {row['trace']}, for chrome://tracing or ui.perfetto.dev"],
    )


def kernel_matrix(rows: list[Row]) -> list[Grid]:
    """One table for each operation and pass: a line for each case, a column for each contender."""
    grids = []
    for op, mode in dict.fromkeys((row["op"], row["mode"]) for row in rows):
        chosen = [row for row in rows if (row["op"], row["mode"]) == (op, mode)]
        names = list(dict.fromkeys(row["contender"] for row in chosen))
        title = f"{op}, {mode}: milliseconds"
        header = ["T", "N", "dtype, layout", "GB/s", "of a copy", *names, "fastest other / ours"]
        grid = Grid(title, header, [], notes=notes(chosen))
        for group in by_case(chosen):
            ours, first = find(group, OURS), group[0]
            line = [str(first["T"]), f"{math.prod(first['shape']):,}", setting(first)]
            line += [number(ours.get("gb_per_s")), percent(ours.get("of_copy"))]
            line += [middle(find(group, name), group) for name in names]
            grid.lines.append([*line, times(fastest_other(group))])
        grids.append(grid)
    return grids
