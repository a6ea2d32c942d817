"""Rows as pictures: bandwidth against the roof, growth, steps and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from profiling.harness.contenders import OURS, Status
from profiling.harness.session import Row
from profiling.render.rows import by_case
from profiling.render.tables import number, where
from profiling.sections.kernels import BATCH_NORM
from profiling.sections.step import TWIN
from spiketriton.show.figures import BLUE, GREEN, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    OURS: BLUE,
    "torch.compile": ORANGE,
    "eager": "#b7791f",
    "copy": "#1a202c",
    "spikingjelly default": "#9ae6b4",
    "spikingjelly": GREEN,
    "snntorch": "#805ad5",
    "norse": "#d53f8c",
}
TITLES = {
    "lif": "neuron",
    "bn_lif": "batch norm + neuron",
    "bn_lif_residual": "batch norm + residual + neuron",
}
LABELS = {"gb_per_s": "useful GB/s (floor bytes / time)", "median_ms": "ms"}


def draw(rows: Iterable[Row], stem: Path) -> list[Path]:
    """Every picture that the rows suffice for, at `<stem>-<what>.png`; rows of one machine."""
    import matplotlib

    rows = [row for row in rows if row["status"] != Status.NOT_REACHED]
    kernels = [row for row in rows if row["section"] == "kernels" and "median_ms" in row]
    timed = [row for row in kernels if row["mode"] == "training" and not row["detach_reset"]]
    recipes = dict.fromkeys(row["recipe"] for row in rows if row["section"] == "step")
    drawn = []
    with matplotlib.rc_context(STYLE):
        roof = [(op, "N", "gb_per_s") for op in TITLES]
        cost = [(op, axis, "median_ms") for op in ("lif", "bn_lif") for axis in ("N", "T")]
        raced = [row for row in timed if row["contender"] != "copy"]
        figures = {
            "bandwidth": curves(timed, "Achieved bandwidth against a copy", roof),
            "growth": curves(raced, "How the cost grows", cost),
        }
        figures |= {f"step-{recipe}": steps(rows, recipe) for recipe in recipes}
        for what, figure in (figures | {"saved": saved(rows)}).items():
            if figure is not None:
                drawn.append(Path(f"{stem}-{what}.png"))
                figure.savefig(drawn[-1])
    return drawn


def curves(rows: list[Row], title: str, axes_of: list[tuple[str, str, str]]) -> Figure | None:
    """A panel for each (operation, N or T, key of the value) that rows have points enough for."""
    panels = [(*one, chosen) for one in axes_of if (chosen := _along(rows, *one[:2]))]
    if not panels:
        return None
    lines = math.ceil(len(panels) / 3)
    figure, grid = _figure(16, 0.9 + 3.9 * lines, math.ceil(len(panels) / lines), lines)
    for axes, (op, axis, key, chosen) in zip(grid, panels, strict=False):
        first = chosen[0]
        fixed = f"T={first['T']}" if axis == "N" else f"N={first['N']:,}"
        layout = first["layout"].replace("_", " ")
        axes.set(title=f"{TITLES[op]}, {fixed}, {first['dtype']}, {layout}", ylabel=LABELS[key])
        axes.set_xlabel({"N": "neurons N", "T": "time steps T"}[axis])
        _lines(axes, chosen, axis, key)
    _legend(figure)
    _head(figure, f"{title}, forward + backward", rows[0])
    return figure


def steps(rows: list[Row], recipe: str) -> Figure | None:
    """Bars of the step's time, with T steps of the ANN twin, and of its peak memory."""
    panels = []
    for section, key, unit, scale in (
        ("step", "median_ms", "ms a training step", 1),
        ("memory", "peak_bytes", "peak MiB of tensors in a step", 2**20),
    ):
        group = [r for r in rows if r.get("recipe") == recipe and r["section"] == section]
        values = {r["contender"]: r[key] / scale for r in group if key in r}
        if values:
            panels.append((unit, values, group))
    if not panels or panels[0][2][0]["section"] != "step":
        return None
    first, T = panels[0][2][0], panels[0][2][0]["T"]
    bars = len({name for _, values, _ in panels for name in values})
    figure, grid = _figure(6.2 * len(panels) + 2.0, 2.0 + 0.42 * bars, len(panels))
    for axes, (unit, values, group) in zip(grid, panels, strict=True):
        if TWIN in values:
            values[f"{T} x {TWIN}"] = T * values[TWIN]
            axes.axvline(T * values[TWIN], color=GREEN, lw=1.2, ls="--")
        _bars(axes, values, group)
        axes.set(xlabel=unit)
    unequal = any(row["status"] == Status.UNEQUAL for row in panels[0][2])
    stars = "; * its result is not equal" if unequal else ""
    about = f"{recipe}, T={T}, batch {first['batch']}, {first['precision']}"
    _head(figure, f"Training step of {about}{stars}", first)
    return figure


def saved(rows: list[Row]) -> Figure | None:
    """Bytes an element that each contender keeps for its backward pass."""
    groups = by_case(r for r in rows if r["section"] == "memory" and "saved_per_element" in r)
    if not groups:
        return None
    most = max(len(group) for group in groups)
    figure, grid = _figure(5.6 * len(groups), 1.7 + 0.42 * most, len(groups))
    for axes, group in zip(grid, groups, strict=True):
        _bars(axes, {row["contender"]: row["saved_per_element"] for row in group}, group)
        axes.set(title=TITLES[group[0]["op"]], xlabel="bytes an element and time step")
    first = groups[0][0]
    about = f"T={first['T']}, {first['dtype']}"
    _head(figure, f"What forward keeps for backward, {about}", first)
    return figure


def _along(rows: list[Row], op: str, axis: str) -> list[Row]:
    """Rows of an operation along `axis` (N or T), all else as in the most points; [] for one point."""
    rows = [row for row in rows if row["op"] == op]
    fixed = ("dtype", "layout", "T" if axis == "N" else "N")
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in fixed), []).append(row)
    points = lambda line: len({row[axis] for row in line})  # noqa: E731
    best = max(lines.values(), key=points, default=[])
    return best if points(best) > 1 else []


def _lines(axes: Axes, rows: list[Row], x: str, y: str) -> None:
    names = list(dict.fromkeys(row["contender"] for row in rows))
    for name in sorted(names, key=lambda name: (name != "copy", name != OURS)):
        of = sorted((row[x], row[y]) for row in rows if row["contender"] == name)
        style = dict(color=_colour(name), marker="o", ms=4, lw=1.4)
        if name == "copy":
            style |= dict(ls="--", marker="")
        if name == OURS:
            style |= dict(lw=2.4, zorder=3)
        if name.startswith(BATCH_NORM):
            style |= dict(ls="-.", marker="s")
        label = "copy (the roof)" if name == "copy" else name
        axes.plot(*zip(*of, strict=True), label=label, **style)
    axes.set_xscale("log", base=2)
    if y == "median_ms":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _colour(name: str) -> str:
    """One colour for a contender in every picture, behind torch's batch norm too."""
    name = name.removeprefix(BATCH_NORM)
    return next((colour for start, colour in COLOURS.items() if name.startswith(start)), GREY)


def _bars(axes: Axes, values: dict[str, float], group: list[Row]) -> None:
    """The largest at the bottom; a star behind contenders whose result is not equal."""
    starred = {row["contender"] for row in group if row["status"] == Status.UNEQUAL}
    names = sorted(values, key=lambda name: -values[name])
    colours = [BLUE if name.startswith(OURS) else GREEN if TWIN in name else GREY for name in names]
    bars = axes.barh(
        [n + (" *" if n in starred else "") for n in names],
        [values[n] for n in names],
        color=colours,
        height=0.66,
    )
    axes.bar_label(bars, [number(values[n]) for n in names], padding=4, fontsize=9)
    axes.grid(False, axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.14)


def _figure(width: float, height: float, panels: int, lines: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(lines, panels, squeeze=False).flat)


def _legend(figure: Figure) -> None:
    """One legend for all panels, at the right."""
    pairs = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {label: line for found in pairs for line, label in zip(*found, strict=True)}
    figure.legend(list(lines.values()), list(lines), loc="outside right center")


def _head(figure: Figure, title: str, row: Row) -> None:
    """What the picture shows, and below it, in smaller letters, where it was measured."""
    rehearsal = "  (quick rehearsal, not a measurement)" if row["quick"] else ""
    figure.suptitle(f"{title}{rehearsal}\n", x=0.01, ha="left", fontsize=11, fontweight="bold")
    inches = figure.get_figheight()
    figure.text(0.01, 1 - 0.3 / inches, where(row), ha="left", va="top", fontsize=8, color=GREY)
