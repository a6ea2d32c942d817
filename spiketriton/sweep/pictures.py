"""Pictures of a sweep: norms.png, times.png, accuracy.png and, when depth was swept, depth.png."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spiketriton.gradients.measurement import Measurement
from spiketriton.runs.folder import RunFolder
from spiketriton.show import figures
from spiketriton.show.figures import new_figure
from spiketriton.show.words import synthetic_note
from spiketriton.sweep.grid import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 12
WIDTH = "neuron.surrogate.width"
PROFILES = {"depth_profile": "spiking layer", "time_profile": "time step"}  # of a `Measurement`


def draw_sweep(groups: Sequence[Group], out: Path, synthetic: bool) -> list[Path]:
    """Draws what the swept keys allow; returns the paths."""
    keys = list(groups[0].values)
    if not keys:
        return []
    note = synthetic_note(synthetic)
    # the key along the axis: the width or the depth where it was swept, else the first
    along = next((key for key in (WIDTH, "model.depth") if key in keys), keys[0])
    pictures: dict[str, Callable[[], Figure | None]] = {
        "norms.png": partial(norms, groups, along, "depth_profile", note),
        "times.png": partial(norms, groups, along, "time_profile", note),
        "accuracy.png": partial(accuracy, groups, along, note),
    }
    if "model.depth" in keys and along != "model.depth":
        pictures["depth.png"] = partial(accuracy, groups, "model.depth", note)
    return figures.save(out, pictures)


def norms(groups: Sequence[Group], along: str, profile: str, note: str) -> Figure | None:
    """RMS of dL/dx at the first step (the untrained net), a line per value of `along`."""
    panels = _split(groups, along)
    if len(panels) > MOST_PANELS:
        return None
    # the key that varies fastest goes to the right
    others = [key for key in groups[0].values if key != along]
    columns = len({group.values[others[-1]] for group in groups}) if others else 1
    rows = len(panels) // columns  # whole, as the grid has every combination
    label = PROFILES[profile]
    title = f"Gradient against {label}, before training{note}"
    figure = new_figure(4.2 * columns + 1.6, 3.1 * rows + 0.6, title)
    axes = figure.subplots(rows, columns, squeeze=False)
    values = _ordered({group.values[along] for group in groups})
    colours = dict(zip(values, _colours(len(values)), strict=True))
    drawn: dict[str, Any] = {}
    for ax, (name, members) in zip(axes.flat, panels.items(), strict=True):
        for group in sorted(members, key=lambda g: values.index(g.values[along])):
            found = filter(None, (_first(cell.path) for cell in group.cells))
            if lines := [getattr(measured, profile) for measured in found]:
                mean = np.exp(np.log(figures.positive(np.stack(lines))).mean(0))
                value = group.values[along]
                (drawn[value],) = ax.plot(mean, color=colours[value], label=value)
        figures.log_scale(ax, "y")
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(label)
        figures.whole_numbers(ax.xaxis)
        ax.set_ylabel("gradient (RMS)")
    if not drawn:
        return None
    handles = [drawn[value] for value in values if value in drawn]
    figure.legend(handles=handles, title=along.rpartition(".")[2], loc="outside right upper")
    return figure


def accuracy(groups: Sequence[Group], along: str, note: str) -> Figure:
    """Final test accuracy against `along`, mean and spread over seeds, a line per combination."""
    panels = _split(groups, along)
    fixed = [g for g in groups if along == WIDTH or _number(g.values[along]) is not None]
    figure = new_figure(8.4, 4.6)
    ax = figure.subplots()
    colours = _colours(len(panels))
    names = _ordered({g.values[along] for g in groups})
    for colour, (name, members) in zip(colours, panels.items(), strict=True):
        points = []
        for group in members:
            number = group.width if along == WIDTH else _number(group.values[along])
            x = number if fixed else names.index(group.values[along])
            if x is not None and not math.isnan(group.mean):
                error = 0.0 if math.isnan(group.spread) else group.spread
                points.append((x, 100 * group.mean, 100 * error))
        if points:
            x, y, e = np.array(sorted(points)).T
            ax.errorbar(x, y, e, color=colour, marker="o", capsize=2)
        ax.plot([], [], color=colour, marker="o", label=name or "accuracy")
    if fixed:
        figures.log_scale(ax, "x")
    else:
        ax.set_xticks(range(len(names)), names)
    if along == "model.depth" and fixed:
        ticks = sorted({number for g in fixed if (number := _number(g.values[along])) is not None})
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.set(xlabel=along, ylabel="test accuracy (%)", title=f"Final accuracy{note}")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _split(groups: Sequence[Group], along: str) -> dict[str, list[Group]]:
    panels: dict[str, list[Group]] = {}
    for group in groups:
        rest = [f"{k.rpartition('.')[2]} {v}" for k, v in group.values.items() if k != along]
        panels.setdefault(", ".join(rest), []).append(group)
    return panels


def _first(path: Path) -> Measurement | None:
    """What was measured first; None for an ANN."""
    rows = RunFolder(path).gradients.read()
    return Measurement.of_step(rows, rows[0]["step"]) if rows else None


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _ordered(values: set[str]) -> list[str]:
    return sorted(values, key=lambda v: (_number(v) is None, _number(v) or 0.0, v))


def _colours(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, max(count, 2)))[:count]
