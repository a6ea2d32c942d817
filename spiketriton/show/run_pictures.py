"""Pictures of a run, drawn from its rows: curves.png, gradients.png, firing.png.

matplotlib is imported when something is drawn, so that training itself does not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spiketriton.config import Recipe
from spiketriton.runs.folder import Row, RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 110,
}


def draw_run(folder: RunFolder, recipe: Recipe, synthetic: bool) -> list[Path]:
    """Draws all pictures for which the run has rows; returns their paths."""
    import matplotlib

    title = f"{recipe.name} on {recipe.data.name}" + (" (synthetic images)" if synthetic else "")
    pictures = []
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("curves.png", curves(folder.metrics.read(), title)),
            ("gradients.png", gradients(folder.gradients.read(), title)),
            ("firing.png", firing(folder.gradients.read(), title)),
        ):
            if figure is not None:
                figure.savefig(folder.path / name)
                pictures.append(folder.path / name)
    return pictures


def curves(rows: list[Row], title: str) -> Figure | None:
    """Loss, learning rate and test accuracy against epochs; None without rows."""
    train = [row for row in rows if row["kind"] == "train"]
    tests = [row for row in rows if row["kind"] == "eval"]
    if not train:
        return None
    figure = _figure(10, 7)
    loss, accuracy, rate, norm = figure.subplots(2, 2, sharex=True).flat
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")

    loss.plot(*_xy(train, "loss"), color=BLUE, lw=1.3, label="training")
    loss.plot(*_xy(tests, "test_loss"), color=ORANGE, marker="o", ms=4, lw=1.3, label="test")
    loss.set(title="Loss", ylabel="loss (nats)")
    loss.legend()

    x, y = _xy(tests, "test_accuracy")
    accuracy.plot(x, 100 * y, color=ORANGE, marker="o", ms=4, lw=1.3)
    best = f", best {100 * y.max():.2f} %" if len(y) else ""
    accuracy.set(title=f"Test accuracy{best}", ylabel="accuracy (%)")

    rate.plot(*_xy(train, "lr"), color=GREEN, lw=1.3)
    rate.set(title="Learning rate", ylabel="learning rate", xlabel="epoch")
    norm.plot(*_xy(train, "grad_norm"), color=GREY, lw=1.3)
    norm.set(title="Norm of the whole gradient", ylabel="norm (before clipping)", xlabel="epoch")
    norm.set_yscale("log")
    return figure


def gradients(rows: list[Row], title: str) -> Figure | None:
    """RMS of dL/dx by layer and time step, and its depth profile over training.

    None for a run that measured none: an ANN twin has no spiking layers and no time steps.
    """
    if not rows:
        return None
    measured = sorted({row["step"] for row in rows})
    chosen = sorted({measured[0], measured[len(measured) // 2], measured[-1]})
    names, last = _layers_by_time(rows, measured[-1], "grad_input_rms")
    figure = _figure(11, 2.6 + 0.13 * max(len(names), 18))
    heat, depth = figure.subplots(1, 2, width_ratios=[1.15, 1])
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")

    _heat_map(
        heat,
        _log10(last),
        names,
        "viridis",
        f"RMS of dL/dx at step {measured[-1]}",
        "log10 of the RMS of dL/dx",
    )
    colours = (GREY, GREEN, BLUE)[-len(chosen) :]
    for step, colour in zip(chosen, colours, strict=True):
        _, values = _layers_by_time(rows, step, "grad_input_rms")
        profile = np.sqrt(np.mean(values**2, axis=1))
        positive = np.where(profile > 0, profile, np.nan)
        depth.plot(positive, range(len(names)), color=colour, marker="o", ms=3, lw=1.3)
        depth.plot([], [], color=colour, marker="o", ms=3, label=f"step {step}")
    depth.set_xscale("log")
    depth.set_ylim(heat.get_ylim())
    depth.set(title="Depth profile during training", xlabel="RMS of dL/dx over all time steps")
    depth.set_ylabel("spiking layer (input at the top)")
    depth.legend()
    return figure


def firing(rows: list[Row], title: str) -> Figure | None:
    """Firing rate by layer and time step, and the share of neurons out of the surrogate's reach."""
    if not rows:
        return None
    step = max(row["step"] for row in rows)
    names, rate = _layers_by_time(rows, step, "firing_rate")
    _, outside = _layers_by_time(rows, step, "outside_share")
    figure = _figure(11, 2.6 + 0.13 * max(len(names), 18))
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    _heat_map(
        left,
        rate,
        names,
        "magma",
        f"Firing rate at step {step}",
        "spikes a neuron and time step",
        (0, max(0.1, np.nanmax(rate))),
    )
    _heat_map(
        right,
        100 * outside,
        names,
        "cividis",
        "Neurons without gradient",
        "surrogate below 1 % of its height (% of neurons)",
        (0, max(1, 100 * np.nanmax(outside))),
    )
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, outside pyplot: no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _heat_map(
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
    axes.set_xticks(_thinned(values.shape[1], 12))
    ticks = _thinned(len(names), 26)
    axes.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=8)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label=unit)


def _thinned(count: int, most: int) -> list[int]:
    return list(range(0, count, -(-count // most)))


def _layers_by_time(rows: list[Row], step: int, field: str) -> tuple[list[str], np.ndarray]:
    """Names and values [layers, T] of one measurement; what was not finite is NaN."""
    chosen = [row for row in rows if row["step"] == step]
    names = {row["index"]: row["layer"] for row in chosen}
    steps = 1 + max(row["time_step"] for row in chosen)
    values = np.full((len(names), steps), np.nan)
    for row in chosen:
        if row[field] is not None:
            values[row["index"], row["time_step"]] = row[field]
    return [names[index] for index in sorted(names)], values


def _log10(values: np.ndarray) -> np.ndarray:
    """log10 where it exists; zero gradients stay empty."""
    return np.log10(np.where(values > 0, values, np.nan))


def _xy(rows: list[Row], field: str) -> tuple[Any, Any]:
    """Epochs and values of the rows in which the field is a number."""
    kept = [(row["epoch"], row[field]) for row in rows if row[field] is not None]
    return np.array([x for x, _ in kept]), np.array([y for _, y in kept])
