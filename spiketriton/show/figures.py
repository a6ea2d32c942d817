"""What all pictures share: style, colours, figures without a display, heat maps, saving.

matplotlib is imported when something is drawn, so that training itself does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.dpi": 110,
}


def save(folder: Path, pictures: Mapping[str, Callable[[], Figure | None]]) -> list[Path]:
    """Draws each picture and saves it under its name; paths of those that had data."""
    import matplotlib

    paths = []
    with matplotlib.rc_context(STYLE):
        for name, draw in pictures.items():
            if (figure := draw()) is not None:
                figure.savefig(folder / name)
                paths.append(folder / name)
    return paths


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """A figure outside pyplot, in inches: it needs no display and leaves no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def layer_figure(layers: int, title: str) -> Figure:
    """A figure whose panels have a line for each layer."""
    return new_figure(11, 2.6 + 0.13 * max(layers, 18), title)


def heat_map(
    axes: Axes,
    values: np.ndarray,
    names: list[str],
    colours: str,
    title: str,
    unit: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """`values` [layers, T]: layers downwards from the input, time steps to the right."""
    low, high = limits or (None, None)
    image = axes.imshow(
        values, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest"
    )
    axes.grid(False)
    axes.set(title=title, xlabel="time step", ylabel="spiking layer (input at the top)")
    axes.set_xticks(thinned(values.shape[1], 12))
    ticks = thinned(len(names), 26)
    axes.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=8)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label=unit)


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of the places 0 to count - 1, at even distances from 0 on."""
    return list(range(0, count, -(-count // most)))


def positive(values: np.ndarray) -> np.ndarray:
    """Finite `values` above 0, NaN (a gap in the picture) elsewhere."""
    return np.where((values > 0) & np.isfinite(values), values, np.nan)


def log10(values: np.ndarray) -> np.ndarray:
    """log10 of `positive`."""
    return np.log10(positive(values))
