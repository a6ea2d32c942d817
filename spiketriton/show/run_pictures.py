"""Pictures of a run, drawn from its rows: curves.png, gradients.png, firing.png."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spiketriton.gradients.measurement import Measurement
from spiketriton.plugins.tasks import Score
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import Row
from spiketriton.show import figures
from spiketriton.show.figures import BLUE, DASHES, GREY, ORANGE, heat_map, layer_figure, positive
from spiketriton.show.words import in_unit, in_words, scored, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_run(folder: RunFolder, title: str) -> list[Path]:
    rows, gradient_rows = folder.metrics.read(), folder.gradients.read()
    return figures.save(
        folder.path,
        {
            "curves.png": partial(curves, rows, title),
            "gradients.png": partial(gradients, gradient_rows, title),
            "firing.png": partial(firing, gradient_rows, title),
        },
    )


def curves(rows: list[Row], title: str) -> Figure | None:
    """Loss, learning rate and test score against epochs; None without rows."""
    train = [row for row in rows if row["kind"] == "train"]
    tests = [row for row in rows if row["kind"] == "eval"]
    if not train:
        return None
    figure = figures.new_figure(10, 7, title)
    loss, score, rate, norm = figure.subplots(2, 2, sharex=True).flat

    loss.plot(*_xy(train, "loss"), color=BLUE, label="training")
    loss.plot(*_xy(tests, "test_loss"), color=ORANGE, ls=DASHES[ORANGE], marker="o", label="test")
    loss.set(title="Loss", ylabel="loss (nats)")
    loss.legend()

    last, kind = "", Score(value=0.0)
    for of, label, colour, marker in (
        ("test", "test", ORANGE, "o"),
        ("ema", "test, averaged weights", GREY, "."),
        ("validation", "validation", BLUE, "."),
    ):
        found = [(row["epoch"], one) for row in tests if (one := Score.of_row(row, of))]
        if not found:
            continue
        kind = found[-1][1]
        x, y = zip(*((epoch, in_unit(one)) for epoch, one in found), strict=True)
        score.plot(x, y, color=colour, ls=DASHES[colour], marker=marker, label=label)
        last = last or f", last {scored(kind)}"
        if of != "test":
            score.legend()
    score.set(title=f"Test {in_words(kind)}{last}", ylabel=unit(kind))

    rate.plot(*_xy(train, "lr"), color=GREY)
    rate.set(title="Learning rate", ylabel="learning rate", xlabel="epoch")
    norm.plot(*_xy(train, "grad_norm"), color=GREY)
    norm.set(title="Norm of the whole gradient", ylabel="norm (before clipping)", xlabel="epoch")
    figures.log_scale(norm, "y")
    return figure


def gradients(rows: list[Row], title: str) -> Figure | None:
    """The gradient by layer and time step, and by layer over training; None for an ANN.

    ValueError: the rows are not those of one network.
    """
    if not rows:
        return None
    steps = sorted({row["step"] for row in rows})
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    last = Measurement.of_step(rows, steps[-1])
    figure = layer_figure(len(last.names), title)
    heat, depth = figure.subplots(1, 2, width_ratios=[1.15, 1])
    size = f"Size of the gradient at step {steps[-1]}"
    heat_map(heat, last.grad_input_rms, last.names, size, "gradient (RMS, log scale)", logs=True)
    for step, colour in zip(chosen, (GREY, ORANGE, BLUE)[-len(chosen) :], strict=True):
        profile = positive(Measurement.of_step(rows, step).depth_profile)
        if len(profile) != len(last.names):
            layers = f"{len(profile)} layers, step {steps[-1]} has {len(last.names)}"
            raise ValueError(f"step {step} has {layers}")
        look = {"color": colour, "ls": DASHES[colour], "marker": "o", "label": f"step {step}"}
        depth.plot(profile, range(len(profile)), **look)
    figures.through_depth(depth, heat, last.depth_gain, " at the end")
    depth.set_xlabel("gradient (RMS over all time steps, log scale)")
    figures.legend_below(depth)
    no_dot = "No dot: the gradient is 0, as inside blocks that start at zero"
    figures.explain(figure, f"{figures.GRADIENT}.\n{no_dot}")
    return figure


def firing(rows: list[Row], title: str) -> Figure | None:
    if not rows:
        return None
    step = max(row["step"] for row in rows)
    measured = Measurement.of_step(rows, step)
    rate, outside = measured.firing_rate, 100 * measured.outside_share
    figure = layer_figure(len(measured.names), title)
    left, right = figure.subplots(1, 2)
    names, most = measured.names, max(0.1, np.nanmax(rate))
    what, unit = f"Firing rate at step {step}", "spikes per neuron and time step"
    heat_map(left, rate, names, what, unit, colours="magma", most=most)
    most = max(1, np.nanmax(outside))
    what = "Neurons that get hardly any gradient"
    unit = "less than 1 % of the peak gradient (% of neurons)"
    heat_map(right, outside, names, what, unit, colours="cividis", most=most)
    return figure


def _xy(rows: list[Row], field: str) -> tuple[Any, Any]:
    """Epochs and values of the rows in which the field is a number."""
    kept = [(row["epoch"], row[field]) for row in rows if row[field] is not None]
    return np.array([x for x, _ in kept]), np.array([y for _, y in kept])
