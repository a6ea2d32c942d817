"""One picture of a recipe's training step: bars of its time and of its peak memory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from profiling.harness.contenders import OURS, Row, Status
from profiling.render.tables import number, where
from profiling.sections.step import FLOOR, TWIN
from spiketriton.show.figures import BLUE, GREEN, GREY, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("step", "median_ms", "ms per training step", 1),
    ("memory", "peak_bytes", "peak MiB of tensors in a step", 2**20),
)


def draw(rows: Iterable[Row], stem: Path) -> list[Path]:
    """`<stem>-step-<recipe>-T<T>-batch<batch>-<precision>.png` of every step that was timed; rows of one machine."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if "recipe" in row:
            name = "{recipe}-T{T}-batch{batch}-{precision}".format(**row)
            groups.setdefault(f"{stem.name}-step-{name}.png", []).append(row)
    timed = {name: group for name, group in groups.items() if _panels(group)[0]}
    return save(stem.parent, {name: partial(steps, group) for name, group in timed.items()})


def _panels(rows: list[Row]) -> list[list[Row]]:
    return [
        [r for r in rows if r["section"] == section and key in r] for section, key, *_ in PANELS
    ]


def steps(rows: list[Row]) -> Figure:
    """Bars, the largest at the bottom, T steps of the ANN twin among them; a star: not equal."""
    groups = _panels(rows)
    first = groups[0][0]
    about = "{recipe}, T={T}, batch {batch}, {precision}".format(**first)
    rehearsal = " (quick rehearsal, not a measurement)" if first["quick"] else ""
    unequal = " (* not equal)" if any(row["status"] == Status.UNEQUAL for row in rows) else ""
    timed = {row["contender"]: row["median_ms"] for row in groups[0]}
    others = [name for name in timed if not name.startswith((OURS, TWIN, FLOOR))]
    lead = ""
    if OURS in timed and others:  # by the bars' own numbers
        fastest = min(others, key=timed.__getitem__)
        lead = f"{OURS} takes {timed[OURS] / timed[fastest]:.2f} of the time of {fastest}\n"
    title = f"{lead}Training step of {about}{unequal}{rehearsal}\n{where(first)}"
    panels = [pair for pair in zip(groups, PANELS, strict=True) if pair[0]]
    figure = new_figure(2 + 6.2 * len(panels), 2.6 + 0.42 * len(groups[0]), title)
    for i, (group, (_, key, unit, scale)) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), i)
        bars = []
        for row in group:
            name, value = row["contender"], row[key] / scale
            colour = BLUE if name.startswith(OURS) else GREEN if name == TWIN else GREY
            bars.append((value, name + " *" * (row["status"] == Status.UNEQUAL), colour))
            if name == TWIN:
                bars.append((value * row["T"], f"{row['T']} x {TWIN}", GREEN))
        values, names, colours = zip(*sorted(bars, reverse=True), strict=True)
        drawn = axes.barh(names, values, color=colours, height=0.66)
        axes.bar_label(drawn, [number(value) for value in values], padding=4, fontsize=9)
        axes.set(xlabel=unit, axisbelow=True)
        axes.grid(False, axis="y")
        axes.margins(x=0.14)
    return figure
