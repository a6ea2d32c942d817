"""Rows as tables: for the terminal, and in Markdown for docs/performance.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.table import Table

from profiling.contenders import OK, OURS, UNEQUAL
from profiling.networks import EVERY, OFF, TWIN
from profiling.rows import Row, by_case, median, times_ours

BLANK = "-"


@dataclass
class Grid:
    """A table of strings; `left` columns are aligned to the left, the others to the right."""

    title: str
    header: list[str]
    left: int = 1
    lines: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", caption_justify="left")
        table.caption = "\n".join(self.notes) or None
        for i, name in enumerate(self.header):
            table.add_column(name, justify="left" if i < self.left else "right", overflow="fold")
        for line in self.lines:
            ours = any(cell.startswith(OURS) for cell in line[: self.left])
            table.add_row(*line, style="bold" if ours else None)
        return table

    def markdown(self) -> str:
        rule = ["---" if i < self.left else "---:" for i in range(len(self.header))]
        lines = [self.header, rule, *self.lines]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "".join(f"\n\n{note}" for note in self.notes)
        return f"**{self.title}**\n\n{body}{notes}\n"


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, without an exponent; thousands grouped."""
    if value is None or not math.isfinite(value):
        return BLANK
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{round(value, places):,.{places}f}"


def percent(value: float | None) -> str:
    return BLANK if value is None else f"{100 * value:.1f} %"


def mebibytes(value: float | None) -> str:
    return BLANK if value is None else f"{value / 2**20:,.1f}"


def times(value: float | None) -> str:
    return BLANK if value is None else f"{value:.2f}x"


def spread(row: Row) -> str:
    """`12.3 (12.1-12.9)`: median, 20 % and 80 %."""
    if "median_ms" not in row:
        return row["status"]
    low, high = number(row["p20_ms"]), number(row["p80_ms"])
    return f"{number(row['median_ms'])} ({low}-{high})" + _mark(row)


def _mark(row: Row) -> str:
    return " *" if row["status"] == UNEQUAL else ""


def _notes(rows: list[Row]) -> list[str]:
    """Why a contender is starred or has no number, once each; and what a peer was told."""
    found: dict[str, None] = {}
    for row in rows:
        star = "* " if row["status"] == UNEQUAL else ""
        if row["status"] != OK:
            found[f"{star}{row['contender']}: {row['status']}, {row.get('why', '')}"] = None
        if "note" in row:
            found[f"{row['contender']}: {row['note']}"] = None
    return list(found)


def where(row: Row) -> str:
    """The machine of a row in words."""
    threads = f", {row['threads']} threads" if row["device_type"] == "cpu" else ""
    commit = f", commit {row['commit'][:8]}" if row.get("commit") else ""
    dirty = " with changes" if row.get("dirty") else ""
    triton = f", triton {row['triton']}" if row.get("triton") else ""
    return f"{row['device']}{threads}, torch {row['torch']}{triton}{commit}{dirty}"


def case_words(row: Row) -> str:
    shape = "x".join(str(n) for n in row["shape"])
    size = math.prod(row["shape"])
    reset = ", reset detached" if row.get("detach_reset") else ""
    return f"T={row['T']}, N={size:,} ({shape}), {row['dtype']}, {row['layout']}{reset}"


# ---- one function for each section


def kernels(rows: list[Row]) -> list[Grid]:
    grids = []
    for group in by_case(rows):
        first = group[0]
        grid = Grid(
            f"{first['op']} {first['mode']}: {case_words(first)}",
            ["contender", "ms (20-80 %)", "GB/s", "of copy", "ours is faster by"],
            notes=_notes(group),
        )
        for row in group:
            grid.lines.append(
                [
                    row["contender"],
                    spread(row),
                    number(row.get("gb_per_s")),
                    percent(row.get("of_copy")),
                    times(times_ours(group, row) if row["contender"] != "copy" else None),
                ]
            )
        grids.append(grid)
    return grids


def kernel_matrix(rows: list[Row]) -> list[Grid]:
    """One table for each operation and pass: a line for each case, a column for each contender."""
    grids = []
    for op, mode in dict.fromkeys((row["op"], row["mode"]) for row in rows):
        chosen = [row for row in rows if (row["op"], row["mode"]) == (op, mode)]
        names = list(dict.fromkeys(row["contender"] for row in chosen))
        grid = Grid(
            f"{op}, {mode}: milliseconds (and how many times ours)",
            ["T", "N", "dtype, layout", "GB/s (of copy)", *names],
            left=0,
            notes=_notes(chosen),
        )
        for group in by_case(chosen):
            ours = next((row for row in group if row["contender"] == OURS), {})
            of = {row["contender"]: row for row in group}
            first = group[0]
            reset = ", reset detached" if first.get("detach_reset") else ""
            line = [str(first["T"]), f"{math.prod(first['shape']):,}"]
            line += [f"{first['dtype']}, {first['layout']}{reset}"]
            line += [f"{number(ours.get('gb_per_s'))} ({percent(ours.get('of_copy'))})"]
            for name in names:
                row = of.get(name)
                if row is None or "median_ms" not in row:
                    line.append(BLANK if row is None else row["status"])
                    continue
                ratio = ""
                by_ours = times_ours(group, row)
                if name not in ("copy", OURS) and by_ours is not None:
                    ratio = f" ({by_ours:.2f}x)"
                line.append(number(row["median_ms"]) + ratio + _mark(row))
            grid.lines.append(line)
        grids.append(grid)
    return grids


def step(rows: list[Row]) -> list[Grid]:
    grids = []
    for group in by_case(rows):
        first = group[0]
        image = "x".join(str(n) for n in first["image"])
        grid = Grid(
            f"training step of {first['recipe']}: T={first['T']}, batch {first['batch']} of {image}, "
            f"{first['precision']}, {first['layout']}",
            ["contender", "ms (20-80 %)", "images/s", "of T ANN steps", "ours is faster by"],
            notes=_notes(group),
        )
        for row in group:
            ratio = times_ours(group, row) if row["contender"] != TWIN else None
            grid.lines.append(
                [
                    row["contender"],
                    spread(row),
                    number(row.get("images_per_s")),
                    number(row.get("twin_ratio")),
                    times(ratio),
                ]
            )
        grids.append(grid)
    return grids


def memory(rows: list[Row]) -> list[Grid]:
    grids = []
    for group in by_case(rows):
        first = group[0]
        if "op" in first:
            title = f"memory of {first['op']}: {case_words(first)}"
        else:
            title = f"memory of a step of {first['recipe']}: T={first['T']}, batch {first['batch']}"
        per = "op" in first
        header = ["contender", "peak MiB", "saved for backward MiB"]
        header += ["peak B/element", "saved B/element"] if per else ["peak, of ours"]
        grid = Grid(title, header, notes=_notes(group))
        ours = next((row for row in group if row["contender"] == OURS), {}).get("peak_bytes")
        for row in group:
            peak, saved = row.get("peak_bytes"), row.get("saved_bytes")
            line = [row["contender"], mebibytes(peak), mebibytes(saved)]
            if peak is None:
                line[1] = row["status"]
            if per:
                line += [number(row.get("peak_per_element")), number(row.get("saved_per_element"))]
            else:
                line.append(times(peak / ours if peak and ours else None))
            line[0] += _mark(row)
            grid.lines.append(line)
        grids.append(grid)
    return grids


def gradients(rows: list[Row]) -> list[Grid]:
    grid = Grid(
        "cost of the gradient monitor, of a training step",
        ["recipe", "off, ms", "measuring, ms", "cost (20-80 %)", "in training"],
    )
    for group in by_case(rows):
        on = next((row for row in group if row["contender"] == EVERY), {})
        cost = BLANK
        if "cost" in on:
            cost = f"{percent(on['cost'])} ({percent(on['cost_p20'])} to {percent(on['cost_p80'])})"
        every = group[0]["measures_every"]
        grid.lines.append(
            [
                f"{group[0]['recipe']} (T={group[0]['T']}, batch {group[0]['batch']})",
                number(median(group, OFF)),
                number(median(group, EVERY)),
                cost,
                f"{percent(on.get('cost_in_training'))} (every {every} steps)",
            ]
        )
    return [grid]


def data(rows: list[Row]) -> list[Grid]:
    grids = []
    for group in by_case(rows):
        first = group[0]
        grid = Grid(
            f"the loader alone, {first['recipe']}: batch {first['batch']}, "
            f"augment {first['augment']}, {first['cores']} cores",
            ["loaded by", "images/s", "ms a batch (20-80 %)", "of what a step takes"],
            notes=_notes(group),
        )
        for row in group:
            workers = f" ({row['workers']} workers)" if "workers" in row else ""
            images = number(row.get("images_per_s"))
            grid.lines.append(
                [row["contender"] + workers, images, spread(row), times(row.get("of_step"))]
            )
        grids.append(grid)
    return grids


def compiled(rows: list[Row]) -> list[Grid]:
    grids = []
    for group in by_case(rows):
        first = group[0]
        about = f"{first['target']} ({first['card']}), T={first['T']}, {first['dtype']}, {first['layout']}"
        each = Grid(
            f"kernels lowered for {about}",
            ["kernel", "regs", "spills", "shared", "vector", "loads", "stores", "B/elem."]
            + ["instr.", "occup.", "predicted ms"],
        )
        total = Grid(
            f"operations lowered for {about}, forward + backward",
            ["operation", "passes (e)", "budget (e)", "+ checkpoints B/elem.", "predicted ms"],
            notes=[
                "Predicted, not measured: the longer of memory at the data sheet's bandwidth and "
                f"instructions at its issue rate, for x of {_times_of(group)}."
            ],
        )
        for row in group:
            if "kernel" in row:
                keys = ("loads", "stores", "bytes_per_element", "instructions")
                line = [row["kernel"]]
                line += [str(row[key]) for key in ("registers", "spills", "shared", "vector_bytes")]
                line += [number(row[key]) for key in keys] + [percent(row["occupancy"])]
                bound = f" ({row['bound_by']})" if row["bound_by"] else ""
                each.lines.append([*line, number(row["predicted_ms"]) + bound])
            elif "operation" in row:
                line = [row["operation"], number(row["passes"]), number(row["budget"])]
                extra, ms = number(row["checkpoint_bytes"]), number(row["predicted_ms"])
                total.lines.append([*line, extra, ms])
        grids += [each, total]
    return grids


def _times_of(group: list[Row]) -> str:
    shapes = [row["predicted_for"] for row in group if "predicted_for" in row]
    return "x".join(str(n) for n in shapes[0]) if shapes else BLANK


TABLES: dict[str, Callable[[list[Row]], list[Grid]]] = {
    "kernels": kernels,
    "step": step,
    "memory": memory,
    "gradients": gradients,
    "data": data,
    "compiled": compiled,
}
