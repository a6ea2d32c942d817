"""The picture of a sweep, norms.png: gradient against depth in the untrained nets."""

from __future__ import annotations

from collections.abc import Sequence
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

PICTURE = "norms.png"
MOST_PANELS = 12


def draw_sweep(groups: Sequence[Group], out: Path, synthetic: bool) -> list[Path]:
    """Draws norms.png where keys were swept; returns the paths."""
    keys = list(groups[0].values)
    if not keys:
        return []
    # a line for each width or depth where it was swept, else for each value of the first key
    along = next((key for key in ("neuron.surrogate.width", "model.depth") if key in keys), keys[0])
    note = synthetic_note(synthetic)
    return figures.save(out, {PICTURE: partial(norms, groups, along, note)})


def norms(groups: Sequence[Group], along: str, note: str) -> Figure | None:
    """RMS of dL/dx by layer at the first step (the untrained net), a line per value of `along`."""
    panels = _split(groups, along)
    if len(panels) > MOST_PANELS:
        return None
    # the key that varies fastest goes to the right
    others = [key for key in groups[0].values if key != along]
    columns = len({group.values[others[-1]] for group in groups}) if others else 1
    rows = len(panels) // columns  # whole, as the grid has every combination
    title = f"Gradient against spiking layer, before training{note}"
    figure = new_figure(4.2 * columns + 1.6, 3.1 * rows + 0.6, title)
    axes = figure.subplots(rows, columns, squeeze=False)
    values = _ordered({group.values[along] for group in groups})
    colours = dict(zip(values, _colours(len(values)), strict=True))
    drawn: dict[str, Any] = {}
    for ax, (name, members) in zip(axes.flat, panels.items(), strict=True):
        for group in sorted(members, key=lambda g: values.index(g.values[along])):
            found = filter(None, (_first(cell.path) for cell in group.cells))
            if lines := [measured.depth_profile for measured in found]:
                mean = np.exp(np.log(figures.positive(np.stack(lines))).mean(0))
                value = group.values[along]
                (drawn[value],) = ax.plot(mean, color=colours[value], label=value)
        figures.log_scale(ax, "y")
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("spiking layer")
        figures.whole_numbers(ax.xaxis)
        ax.set_ylabel("gradient (RMS)")
    if not drawn:
        return None
    handles = [drawn[value] for value in values if value in drawn]
    figure.legend(handles=handles, title=along.rpartition(".")[2], loc="outside right upper")
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
