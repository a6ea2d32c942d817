"""Pictures of evaluations: accuracy by time step, learning, rates, confusion, energy and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spiketriton.evaluate import event_pictures
from spiketriton.evaluate.results import Evaluation
from spiketriton.plugins.tasks import Score
from spiketriton.runs.rows import METRICS, Rows, replace_file
from spiketriton.show import figures
from spiketriton.show.figures import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    heat_map,
    layer_figure,
    new_figure,
)
from spiketriton.show.words import in_unit, scored, synthetic_note, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (
    "events.gif", "accuracy.png", "score.png", "learning.png", "latency.png", "events.png", "energy.png", "rates.png",
    "confusion.png", "sample.png"
)  # fmt: skip
"""Names of all files that ``draw_evaluations`` may write."""
COLOURS = (BLUE, ORANGE, PURPLE, RED, GREY)


def coloured(evaluations: list[Evaluation]) -> list[tuple[Evaluation, str]]:
    """Each run and its colour; ANNs are green in every picture."""
    others = cycle(COLOURS)
    return [(one, GREEN if one.kind == "ann" else next(others)) for one in evaluations]


def draw_evaluations(folder: Path, evaluations: list[Evaluation]) -> list[Path]:
    """Draws all pictures of the first run, with the other runs where they are compared."""
    main = evaluations[0]
    title = f"{main.recipe} on {main.data}{synthetic_note(main.synthetic)}"
    animated = [folder / "events.gif"] if main.samples else []
    for path in animated:
        replace_file(path, event_pictures.animation(main.samples[0]))
    return animated + figures.save(
        folder,
        {
            f"{'accuracy' if main.score == 'accuracy' else 'score'}.png": partial(
                accuracy, evaluations, title
            ),
            "learning.png": partial(learning, evaluations, title),
            "latency.png": partial(event_pictures.latency, evaluations, title),
            "events.png": partial(event_pictures.frames, main, title),
            "energy.png": partial(energy, evaluations, title),
            "rates.png": partial(rates, main, title),
            "confusion.png": partial(confusion, main, title),
            "sample.png": partial(sample, main, title),
        },
    )


def _drawn(one: Evaluation) -> np.ndarray:
    """Its values as an axis has them: a share in percent."""
    return np.array(one.values) * (100 if one.share else 1)


def _label(one: Evaluation) -> str:
    return f"test {unit(one.at(1))}"


def accuracy(evaluations: list[Evaluation], title: str) -> Figure:
    """The score by time step, of accuracy or another."""
    figure = new_figure(8, 5, title)
    axes = figure.subplots()
    longest = max(one.steps for one in evaluations)
    for one, colour in coloured(evaluations):
        values = _drawn(one)
        low, high = 100 * np.array(one.interval).T
        if one.kind == "ann" and one.steps == 1:
            axes.axhline(values[0], color=colour, ls=DASHES[colour], label=one.label)
            axes.axhspan(low[0], high[0], color=colour, alpha=0.12, lw=0)
            continue
        steps = np.arange(1, one.steps + 1)
        marker = "o" if one.steps <= 32 else None
        axes.plot(steps, values, color=colour, ls=DASHES[colour], marker=marker, label=one.label)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        _diamond(axes, one, steps, colour)
    if longest > 32:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        figures.whole_numbers(axes.xaxis)
    axes.set(title=_enough(evaluations[0]), ylabel=_label(evaluations[0]))
    axes.set_xlabel("time steps before the prediction" + (" (log scale)" if longest > 32 else ""))
    axes.legend(frameon=True)  # it may lie over a line
    band = "; band: 95 % interval of the accuracy on these images"
    known = not math.isnan(evaluations[0].interval[-1][0])
    figures.explain(figure, f"diamond: T of the recipe{band * known}")
    return figure


def _diamond(axes: Axes, one: Evaluation, x: Sequence[float] | np.ndarray, colour: str) -> None:
    """Where a line of accuracies over `x` has the T of the recipe."""
    at = one.time_steps - 1
    axes.plot(x[at], _drawn(one)[at], "D", color=colour, ms=7, mfc="white", mew=1.5)


def _enough(one: Evaluation) -> str:
    """After how many time steps more of them gain less than a point."""
    if one.steps == 1 or not one.share:
        last = one.at(one.time_steps)
        shown = f"{100 * last.value:.1f} %" if one.share else scored(last)
        return f"{one.label}: {shown}"
    near = next(t for t in range(1, one.steps + 1) if abs(one.values[t - 1] - one.best) <= 0.01)
    return f"{one.label} is within a point of its best after {near} time step{'s' * (near > 1)}"


def learning(evaluations: list[Evaluation], title: str) -> Figure | None:
    """Test score during training, of all runs; None unless there are several to compare."""
    figure = new_figure(8, 5, title)
    axes = figure.subplots()
    ends: dict[str, float] = {}
    for one, colour in coloured(evaluations):
        rows = Rows(Path(one.run) / "metrics.jsonl", METRICS).read()
        tests = [row for row in rows if row["kind"] == "eval"]
        scores = ((row["epoch"], Score.of_row(row)) for row in tests)
        if points := [(epoch, in_unit(found)) for epoch, found in scores if found]:
            look = {"color": colour, "ls": DASHES[colour], "marker": "o", "label": one.label}
            axes.plot(*zip(*points, strict=True), **look)
            ends[one.label] = points[-1][1]
    if len(ends) < 2:
        return None
    higher = evaluations[0].higher_is_better
    best = (max if higher else min)(ends.values())
    first = [name for name, end in ends.items() if end == best]
    side = "highest" if higher else "lowest"
    shown = f"{best:.1f} %" if evaluations[0].share else f"{best:.4g}"
    axes.set(title=f"{' and '.join(first)} end{'s' * (len(first) == 1)} {side}, at {shown}")
    axes.set(xlabel="epoch", ylabel=_label(evaluations[0]))
    figures.whole_numbers(axes.xaxis)
    axes.legend(frameon=True)  # it may lie over a line
    return figure


def energy(evaluations: list[Evaluation], title: str) -> Figure | None:
    """Score against energy of one image, by operations alone and with data movement; None where none is counted."""
    evaluations = [one for one in evaluations if not one.uncounted]
    if not evaluations:
        return None
    figure = new_figure(11, 4.8, title)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, field, name in (
        (panels[0], "energy_uj", "Operations alone"),
        (panels[1], "energy_with_data_uj", "With data movement"),
    ):
        first = evaluations[0]
        spent = getattr(first, field)[first.time_steps - 1]
        twin = next((getattr(one, field)[0] for one in evaluations if one.kind == "ann"), math.nan)
        of_twin = f", {spent / twin:.2g}x the ANN's" if twin > 0 and first.kind != "ann" else ""
        for one, colour in coloured(evaluations):
            marker, size = ("*", 11) if one.kind == "ann" else ("o", None)
            marker = marker if one.steps <= 32 else ""
            x, y = getattr(one, field), _drawn(one)
            look = {"color": colour, "ls": DASHES[colour], "label": one.label}
            axes.plot(x, y, marker=marker, ms=size, **look)
            if one.kind != "ann":
                _diamond(axes, one, x, colour)
        figures.log_scale(axes, "x")
        axes.set(title=f"{name}: {first.label} {spent:.3g} µJ{of_twin}")
        axes.set_xlabel(f"energy of one {first.what} (µJ, log scale)")
    panels[0].set_ylabel(_label(evaluations[0]))
    panels[0].legend(frameon=True)  # it may lie over a line
    figures.explain(
        figure,
        f"{'up' if evaluations[0].higher_is_better else 'down'} and left is better; a line begins after one time step "
        "and goes on to the last; diamond: T of the recipe.\n"
        "By convention, in a 45 nm chip: 0.9 pJ per accumulate (the weight of one spike), 4.6 pJ per "
        "multiply-accumulate, 5 pJ more for each word that is read or written",
    )
    return figure


def rates(one: Evaluation, title: str) -> Figure | None:
    """Firing rate by layer and time step, and what the layers cost; None where no layer is watched."""
    if not one.layers:
        return None
    names = [layer.name for layer in one.layers]
    figure = layer_figure(len(names), title)
    heat, bars = figure.subplots(1, 2)
    rate = np.array([layer.rate for layer in one.layers])
    unit = "fraction of values above 0" if one.kind == "ann" else "spikes per neuron and time step"
    what, most = "Activity by layer and time step", max(0.1, float(rate.max()))
    heat_map(heat, rate, names, what, unit, colours="magma", most=most)
    at = np.arange(len(names))
    dead = np.array([100 * layer.dead / layer.neurons for layer in one.layers])
    always = np.array([100 * layer.saturated / layer.neurons for layer in one.layers])
    bars.barh(at, dead, color=GREY, label=f"never within T = {one.time_steps}")
    bars.barh(at, always, left=dead, color=ORANGE, label="always")
    bars.set_ylim(heat.get_ylim())
    bars.set_xlim(0, 100)
    bars.set_yticks([])
    bars.set(title="Neurons that never spike, or always", xlabel="% of the layer's neurons")
    bars.legend(frameon=True)  # it may lie over bars
    return figure


def confusion(one: Evaluation, title: str) -> Figure | None:
    """Predictions by true class, in % of the class; names up to 120 classes, figures up to 20."""
    if not one.confusion:
        return None
    counts = np.array(one.confusion, float)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few, named = len(one.classes) <= 20, len(one.classes) <= 120
    side = 6.5 if few else 9.0
    figure = new_figure(side + 1, side, title)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.grid(False)
    axes.set(title="Predictions by true class", xlabel="prediction", ylabel="true class")
    figure.colorbar(image, ax=axes, label="% of the true class")
    ticks = range(len(one.classes))
    if named:
        size = min(9.0, 72 * 0.75 * side / len(one.classes))  # points, for a row of the picture
        angle = 45 if few else 90
        end = "right" if few else "center"
        axes.set_xticks(ticks, one.classes, rotation=angle, ha=end, fontsize=size)
        axes.set_yticks(ticks, one.classes, fontsize=size)
    if few:
        for row in ticks:
            for column in ticks:
                if share[row, column] >= 0.5:
                    colour = "white" if share[row, column] > 55 else "black"
                    text = f"{share[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", color=colour, size=8)
    return figure


def sample(one: Evaluation, title: str) -> Figure | None:
    """One test image, the prediction after each step, and the spikes of some neurons of every layer."""
    found = one.raster
    if found is None or not found.spikes:
        return None
    names = list(found.spikes)
    figure = new_figure(11, 2.6 + 0.3 * len(names), title)
    left, right = figure.subplots(1, 2, width_ratios=[1, 2.2])
    if one.sequences:
        shown = np.array(found.image)
        left.imshow(shown, cmap="magma", interpolation="nearest", aspect="auto", origin="lower")
        left.set_ylabel("channel")
    else:
        left.imshow(np.array(found.image), cmap="gray", interpolation="nearest")
    left.grid(False)
    left.set(xticks=[], yticks=[])
    answers = [
        f"after {t} of {len(found.answers)} steps: {answer} ({100 * share:.0f} %)"
        for t, (answer, share) in enumerate(zip(found.answers, found.shares, strict=True), 1)
    ]
    most = 8  # lines below the image; of more steps, the first and the last ones
    if len(answers) > most:
        answers = [*answers[: most // 2], "...", *answers[-most // 2 :]]
    if one.sequences:
        answers = ["time", *answers]
    left.set(title=f"A test {one.what} of class {found.label}", xlabel="\n".join(answers))
    height = 1
    for place, name in enumerate(names):
        spikes = np.array(found.spikes[name])  # [T, neurons]
        step, neuron = np.nonzero(spikes)
        heights = place + 0.1 + 0.8 * (neuron + 0.5) / spikes.shape[1]
        right.hlines(heights, step - 0.35, step + 0.35, lw=1.8, color=BLUE)
        height = len(spikes)
    right.set(title="Spikes of some neurons of each layer", xlabel="time step")
    right.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    right.set_ylim(len(names), 0)  # the input is at the top
    right.set_xticks(figures.thinned(height, 12))
    right.set_xlim(-0.5, height - 0.5)
    right.grid(False)
    return figure
