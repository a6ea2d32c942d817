"""Rows as pictures that tell at a glance: bandwidth against the roof, growth, steps and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from profiling.cases import BATCH_NORM
from profiling.contenders import NOT_REACHED, OURS, UNEQUAL
from profiling.networks import TWIN
from profiling.rows import Row, by_case
from profiling.tables import number, where
from spiketriton.show.figures import BLUE, GREEN, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = (
    (OURS, BLUE),
    ("torch.compile", ORANGE),
    ("eager", "#b7791f"),
    ("copy", "#1a202c"),
    ("spikingjelly default", "#9ae6b4"),
    ("spikingjelly", GREEN),
    ("snntorch", "#805ad5"),
    ("norse", "#d53f8c"),
)
TITLES = {
    "lif": "neuron",
    "bn_lif": "batch norm + neuron",
    "bn_lif_residual": "batch norm + residual + neuron",
}


def draw(rows: Iterable[Row], place: Callable[[str], Path]) -> list[Path]:
    """Every picture that the rows suffice for, at `place(what)`; rows of one machine."""
    import matplotlib

    rows = [row for row in rows if row["status"] != NOT_REACHED]
    kernels = [row for row in rows if row["section"] == "kernels" and "median_ms" in row]
    timed = [row for row in kernels if row["mode"] == "training" and not row["detach_reset"]]
    drawn = []
    with matplotlib.rc_context(STYLE):
        for what, figure in (
            ("bandwidth", bandwidth(timed)),
            ("growth", growth(timed)),
            *((f"step-{recipe}", steps(rows, recipe)) for recipe in _recipes(rows)),
            ("saved", saved(rows)),
        ):
            if figure is not None:
                drawn.append(place(what))
                figure.savefig(drawn[-1])
    return drawn


def _recipes(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["recipe"] for row in rows if row["section"] == "step"))


def bandwidth(rows: list[Row]) -> Figure | None:
    """GB/s at the floor's bytes against the number of neurons, the copy as the roof."""
    rows = _usual(rows, "T")
    ops = [op for op in TITLES if len({row["N"] for row in rows if row["op"] == op}) > 1]
    if not ops:
        return None
    figure = _figure(5.4 * len(ops) + 1.6, 4.8)
    for axes, op in zip(figure.subplots(1, len(ops), squeeze=False)[0], ops, strict=True):
        chosen = [row for row in rows if row["op"] == op]
        _lines(axes, chosen, "N", "gb_per_s", roof=True)
        _log(axes.xaxis, 2)
        axes.set_ylim(bottom=0)
        axes.set(title=f"{TITLES[op]}, {_setting(chosen[0], 'T')}", xlabel="neurons N")
        axes.set_ylabel("useful GB/s (floor bytes / time)")
    _legend(figure)
    _head(figure, "Achieved bandwidth against a copy, forward + backward", rows[0])
    return figure


def growth(rows: list[Row]) -> Figure | None:
    """Time against N and against T."""
    ops = [op for op in ("lif", "bn_lif") if any(row["op"] == op for row in rows)]
    panels = [(op, axis) for op in ops for axis in ("N", "T")]
    panels = [(op, axis) for op, axis in panels if len(_along(rows, op, axis)) > 1]
    if not panels:
        return None
    figure = _figure(11, 3.9 * math.ceil(len(panels) / 2) + 0.9)
    grid = list(figure.subplots(math.ceil(len(panels) / 2), 2, squeeze=False).flat)
    for axes, (op, axis) in zip(grid, panels, strict=False):
        at = _along(rows, op, axis)
        chosen = [row for group in at.values() for row in group if row["contender"] != "copy"]
        _lines(axes, chosen, axis, "median_ms")
        _log(axes.xaxis, 2)
        _log(axes.yaxis, 10)
        fixed = f"T={chosen[0]['T']}" if axis == "N" else f"N={chosen[0]['N']:,}"
        axes.set(title=TITLES[op], ylabel="ms")
        axes.set_xlabel(f"neurons N, at {fixed}" if axis == "N" else f"time steps T, at {fixed}")
        if axis == "T":
            axes.set_xticks(sorted({row["T"] for row in chosen}))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _legend(figure)
    _head(figure, "How the cost grows, forward + backward", rows[0])
    return figure


def steps(rows: list[Row], recipe: str) -> Figure | None:
    """Bars of the step's time beside T steps of the ANN twin, and of its peak memory."""
    of = [row for row in rows if row.get("recipe") == recipe]
    timed = [row for row in of if row["section"] == "step" and "median_ms" in row]
    heavy = [row for row in of if row["section"] == "memory" and "peak_bytes" in row]
    if not timed:
        return None
    panels = [("ms a training step", {r["contender"]: r["median_ms"] for r in timed}, timed)]
    if heavy:
        peaks = {r["contender"]: r["peak_bytes"] / 2**20 for r in heavy}
        panels.append(("peak MiB of tensors in a step", peaks, heavy))
    names = len({name for _, values, _ in panels for name in values})
    figure = _figure(6.2 * len(panels) + 2.0, 2.0 + 0.42 * names)
    for axes, (unit, values, group) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        T, twin = group[0]["T"], values.get(TWIN)
        bars = dict(values)
        if twin is not None:
            bars[f"{T} x {TWIN}"] = T * twin
        _bars(axes, bars, {r["contender"] for r in group if r["status"] == UNEQUAL})
        if twin is not None:
            axes.axvline(T * twin, color=GREEN, lw=1.2, ls="--")
        axes.set(xlabel=unit)
    first = timed[0]
    about = f"{recipe}, T={first['T']}, batch {first['batch']}, {first['precision']}"
    stars = "; * its result is not equal" if any(r["status"] == UNEQUAL for r in timed) else ""
    _head(figure, f"Training step of {about}{stars}", first)
    return figure


def saved(rows: list[Row]) -> Figure | None:
    """Bytes an element that each contender keeps for its backward pass."""
    heavy = [r for r in rows if r["section"] == "memory" and "saved_per_element" in r]
    groups = by_case(heavy)
    if not groups:
        return None
    most = max(len(group) for group in groups)
    figure = _figure(5.6 * len(groups), 1.7 + 0.42 * most)
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        bars = {row["contender"]: row["saved_per_element"] for row in group}
        _bars(axes, bars, {r["contender"] for r in group if r["status"] == UNEQUAL})
        axes.set(title=TITLES[group[0]["op"]], xlabel="bytes an element and time step")
    about = f"T={groups[0][0]['T']}, {groups[0][0]['dtype']}"
    _head(figure, f"What forward keeps for backward, {about}", heavy[0])
    return figure


def _usual(rows: list[Row], axis: str) -> list[Row]:
    """Rows of the dtype, layout and `axis` value that most rows share, for each operation."""
    kept: list[Row] = []
    for op in dict.fromkeys(row["op"] for row in rows):
        chosen = [row for row in rows if row["op"] == op]
        key = lambda row: (row["dtype"], row["layout"], row[axis])  # noqa: E731
        keys = [key(row) for row in chosen]
        usual = max(dict.fromkeys(keys), key=keys.count)
        kept += [row for row in chosen if key(row) == usual]
    return kept


def _along(rows: list[Row], op: str, axis: str) -> dict[int, list[Row]]:
    """Rows of an operation by their value on an axis, all else as in most of them."""
    other = "T" if axis == "N" else "N"
    usual = _usual([row for row in rows if row["op"] == op], "T")
    if axis == "T" and usual:
        same = [r for r in rows if r["op"] == op]
        same = [r for r in same if all(r[k] == usual[0][k] for k in ("dtype", "layout"))]
        most_windows = lambda n: len({r["T"] for r in same if r[other] == n})  # noqa: E731
        best = max({r[other] for r in same}, key=most_windows)
        usual = [r for r in same if r[other] == best]
    found: dict[int, list[Row]] = {}
    for row in sorted(usual, key=lambda row: row[axis]):
        found.setdefault(row[axis], []).append(row)
    return found


def _setting(row: Row, axis: str) -> str:
    return f"{axis}={row[axis]}, {row['dtype']}, {row['layout'].replace('_', ' ')}"


def _lines(axes: Axes, rows: list[Row], x: str, y: str, roof: bool = False) -> None:
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
        label = "copy (the roof)" if name == "copy" and roof else name
        axes.plot([a for a, _ in of], [b for _, b in of], label=label, **style)


def _log(axis: Axis, base: int) -> None:
    """A logarithmic axis with plain numbers at its ticks: 64 Ki, 0.5, 20."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def words(value: float, _: int) -> str:
        for unit, size in (("Mi", 2**20), ("Ki", 2**10)):
            if base == 2 and value >= size:
                return f"{value / size:g} {unit}"
        return f"{value:g}"

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log", base=base)
    ticks = (1.0, 2.0, 5.0) if base == 10 else (1.0,)
    axis.set_major_locator(LogLocator(base, subs=ticks, numticks=6))
    axis.set_major_formatter(FuncFormatter(words))
    axis.set_minor_formatter(NullFormatter())


def _colour(name: str) -> str:
    """One colour for a contender in every picture, behind torch's batch norm too."""
    name = name.removeprefix(BATCH_NORM)
    return next((colour for start, colour in COLOURS if name.startswith(start)), GREY)


def _bars(axes: Axes, values: dict[str, float], starred: set[str]) -> None:
    names = sorted(values, key=lambda name: -values[name])
    colours = [BLUE if name.startswith(OURS) else GREEN if TWIN in name else GREY for name in names]
    axes.barh(range(len(names)), [values[n] for n in names], color=colours, height=0.66)
    axes.set_yticks(range(len(names)), [n + (" *" if n in starred else "") for n in names])
    axes.grid(False, axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.14)
    for i, name in enumerate(names):
        axes.annotate(
            number(values[name]), (values[name], i), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One legend for all panels, at the right."""
    lines = {
        str(line.get_label()): line
        for axes in figure.axes
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    figure.legend(list(lines.values()), list(lines), loc="outside right center")


def _head(figure: Figure, title: str, row: Row) -> None:
    """What the picture shows, and below it, in smaller words, where it was measured."""
    rehearsal = "  (quick rehearsal, not a measurement)" if row["quick"] else ""
    figure.suptitle(f"{title}{rehearsal}\n", x=0.01, ha="left", fontsize=11, fontweight="bold")
    inches = figure.get_figheight()
    figure.text(0.01, 1 - 0.3 / inches, where(row), ha="left", va="top", fontsize=8, color=GREY)
