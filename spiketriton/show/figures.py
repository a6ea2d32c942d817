"""What all pictures share: style, colours, figures without a display, heat maps, saving.

matplotlib is imported when something is drawn, so that training itself does not wait for it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spiketriton.runs.rows import replace_file
from spiketriton.show.words import with_exponent
from spiketriton.system.errors import warn_once

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# what dL/dx is, where a picture has no room for docs/words.md
GRADIENT = (
    "gradient: how the loss changes with the input current of a neuron, dL/dx; its size is the RMS (root mean square) "
    "over the neurons"
)
# in every picture: blue for what is looked at, green for ANNs, orange and grey for what it is compared with
BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
PURPLE, RED = "#805ad5", "#c53030"
DASHES: dict[str, Any] = {
    BLUE: "-",
    GREEN: "--",
    ORANGE: "-.",
    GREY: ":",
    PURPLE: (0, (8, 2)),
    RED: (0, (1, 1, 5, 1)),
}
"""By its colour how a line is dashed beside others: printed in grey, the colours are much alike."""
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.handlelength": 2.8,  # a dash, a dot and a dash
    "legend.framealpha": 0.85,  # of those that may lie over a line
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.dpi": 110,
}

MORE_LETTERS = (
    "Noto Sans CJK SC, Noto Sans CJK TC, Noto Sans CJK JP, Noto Sans CJK KR, PingFang SC, Hiragino Sans, "
    "Microsoft YaHei, SimHei, Malgun Gothic, WenQuanYi Micro Hei, Arial Unicode MS, Noto Sans, Noto Sans Arabic, "
    "Noto Sans Devanagari, Noto Sans Hebrew"
)


def save(folder: Path, pictures: Mapping[str, Callable[[], Figure | None]]) -> list[Path]:
    """Draws each picture and saves it under its name; paths of those that had data."""
    paths = []
    with style():
        for name, draw in pictures.items():
            if (figure := draw()) is not None:
                write(figure, folder / name)
                paths.append(folder / name)
    return paths


def write(figure: Figure, path: Path) -> None:
    """Saves a picture as PNG, whole or not at all. UserError: it cannot be written."""
    replace_file(path, png(figure))


def png(figure: Figure, dpi: float | None = None) -> bytes:
    """The picture, with boxes for letters that no font here has: one line says so, matplotlib's many do not."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(buffer, dpi=dpi or figure.dpi)
    missing = ""
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+)", str(warning.message)):
            missing += chr(int(glyph[1]))
        else:
            warnings.warn(warning.message, warning.category)
    if missing:
        warn_once(
            f"pictures have boxes in place of {''.join(dict.fromkeys(missing))[:12]}, which no font here has; "
            "Noto Sans CJK has most letters"
        )
    return buffer.getvalue()


def style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context({**STYLE, "font.family": _families()})


@cache
def _families() -> list[str]:
    """matplotlib's own font, and behind it those that are installed and have more letters."""
    from matplotlib import font_manager

    there = {*font_manager.get_font_names()}
    return ["DejaVu Sans", *(name for name in MORE_LETTERS.split(", ") if name in there)]


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """A figure outside pyplot, in inches: it needs no display and leaves no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", wrap=True)
    return figure


def explain(figure: Figure, text: str) -> None:
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=GREY)


def through_depth(axes: Axes, heat: Axes, gain: float, end: str = "") -> None:
    """A panel of gradients by layer, drawn already, beside a heat map that has the same rows."""
    log_scale(axes, "x")
    whole_numbers(axes.yaxis)
    axes.set_ylim(heat.get_ylim())
    axes.set_title("Through depth" + (f": {gain:.3g}x per layer{end}" if gain else ""))


def legend_below(axes: Axes) -> None:
    """A legend in one row below the panel, where it lies over no line."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, borderaxespad=3.8, columnspacing=1.2
    )


def whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def layer_figure(layers: int, title: str) -> Figure:
    """A figure whose panels have a line for each layer."""
    return new_figure(11, 2.6 + 0.13 * max(layers, 18), title)


def heat_map(
    axes: Axes,
    values: np.ndarray,
    names: Sequence[str],
    title: str,
    unit: str,
    *,
    colours: str = "viridis",
    most: float | None = None,
    logs: bool = False,
) -> None:
    """`values` [layers, T]: layers downwards from the input, time steps to the right; colours from 0 to `most`.

    logs: of values above 0, the colours go by their logarithm, from the smallest to the largest.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shown = np.log10(positive(values)) if logs else values
    image = axes.imshow(shown, aspect="auto", cmap=colours, interpolation="nearest")
    if most is not None:
        image.set_clim(0, most)
    axes.grid(False)
    axes.set(title=title, xlabel=f"time step; colour: {unit}")
    axes.set_ylabel("spiking layer (input at the top)")
    axes.set_xticks(thinned(values.shape[1], 12))
    ticks = thinned(len(names), 26)
    axes.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=8)
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes)
    if logs:
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda log, _: short(10.0**log)))


def log_scale(axes: Axes, axis: Literal["x", "y"]) -> None:
    """A log scale with a few numbers that do not overlap, for what has been drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    ruler = axes.xaxis if axis == "x" else axes.yaxis
    low, high = ruler.get_view_interval()
    factors = (1,) if high >= 100 * low else (1, 2, 5)
    few = LogLocator(subs=factors, numticks=7) if high >= 5 * low else MaxNLocator(4)
    ruler.set_major_locator(few)
    ruler.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ruler.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """A number on an axis in few letters: `0.02`, `500`, `2e-5`, `1e12`."""
    if 1e-2 <= value < 1e4:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return with_exponent(value)


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of the places 0 to count - 1, at even distances from 0 on: 1 to 5, or round ones."""
    least = -(-count // most)
    distances = (1, 2, 3, 4, 5, *(n * 10**k for k in range(1, 6) for n in (1, 2, 5)))
    return list(range(0, count, next(n for n in distances if n >= least)))


def positive(values: np.ndarray) -> np.ndarray:
    """Finite `values` above 0, NaN (a gap in the picture) elsewhere."""
    return np.where((values > 0) & np.isfinite(values), values, np.nan)
