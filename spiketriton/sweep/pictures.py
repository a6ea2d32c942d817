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
    """RMS of dL/dx by layer, a line per value of `along`: of the untrained nets, as far as it reaches all layers then.

    In nets whose residual branches start at zero it reaches those inside later, and they are drawn then.
    """
    panels = _split(groups, along)
    if len(panels) > MOST_PANELS:
        return None
    # the key that varies fastest goes to the right
    others = [key for key in groups[0].values if key != along]
    columns = len({group.values[others[-1]] for group in groups}) if others else 1
    rows = len(panels) // columns  # whole, as the grid has every combination
    found = {id(g): [m for cell in g.cells if (m := _first(cell.path))] for g in groups}
    when = _when({step for measured in found.values() for step, _ in measured})
    title = f"Gradient against spiking layer, {when}{note}"
    figure = new_figure(4.2 * columns + 1.6, 3.1 * rows + 0.6, title)
    axes = figure.subplots(rows, columns, squeeze=False)
    values = _ordered({group.values[along] for group in groups})
    colours = dict(zip(values, _colours(len(values)), strict=True))
    drawn: dict[str, Any] = {}
    for ax, (name, members) in zip(axes.flat, panels.items(), strict=True):
        for group in sorted(members, key=lambda g: values.index(g.values[along])):
            if lines := [measured.depth_profile for _, measured in found[id(group)]]:
                mean = np.exp(np.log(figures.positive(np.stack(lines))).mean(0))
                value, style = group.values[along], {"marker": "o", "markersize": 3}
                (drawn[value],) = ax.plot(mean, color=colours[value], label=value, **style)
        if not ax.lines:  # ANNs, of which nothing is measured
            ax.set_visible(False)
            continue
        figures.log_scale(ax, "y")
        ax.set_title(name, fontsize=9)
        gaps = any(np.isnan(line.get_ydata()).any() for line in ax.lines)
        ax.set_xlabel("spiking layer" + "; without a point: gradient 0" * gaps)
        ax.set_xlim(-0.5, max(len(line.get_ydata()) for line in ax.lines) - 0.5)
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


def _first(path: Path) -> tuple[int, Measurement] | None:
    """Of the first step in which a gradient reached every layer, or else of the first; None: an ANN."""
    rows = RunFolder(path).gradients.read()
    steps = dict.fromkeys(row["step"] for row in rows)
    measured = [(step, Measurement.of_step(rows, step)) for step in steps]
    whole = (m for m in measured if (m[1].depth_profile > 0).all())
    return next(whole, measured[0] if measured else None)


def _when(steps: set[int]) -> str:
    first, last = min(steps, default=1), max(steps, default=1)
    if last == 1:
        return "before training"
    return f"at step {last}" if first == last else f"at steps {first} to {last}"


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
