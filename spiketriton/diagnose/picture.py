"""The picture of a diagnosis: heat map, depth profile and time profile, and how far back the gradient reaches."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from spiketriton.diagnose.ablations import Change
from spiketriton.diagnose.diagnosis import Diagnosis
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.verdict import FAINT
from spiketriton.show import figures
from spiketriton.show.figures import BLUE, DASHES, GREY, ORANGE, heat_map, new_figure, positive
from spiketriton.show.verdict import line

LEAST = 1e-4  # the darkest share


def draw(found: Diagnosis, path: Path) -> None:
    """Heat map, depth profile with the surrogate halved and doubled, and time profile, as PNG."""
    measured = found.measured
    note = " (synthetic images)" if found.synthetic else ""
    with figures.style():
        layers = 0.16 * max(len(measured.names), 14) + 0.9  # inches of a panel with a row for each
        title = f"{found.subject.recipe.name}{note}: {line(found.verdict)}"
        told = not np.isnan(measured.credit).all() and measured.credit.shape[1] > 1
        reached = 0.1 * max(len(measured.names), 14) + 0.9  # inches
        figure = new_figure(11, layers + 3.4 + told * (reached + 0.6), title)
        heights = [layers, 1.6, reached][: 2 + told]
        grid = figure.add_gridspec(
            len(heights), 3, width_ratios=[1.2, 1, 0.75], height_ratios=heights
        )
        heat, depth, image = (figure.add_subplot(grid[0, i]) for i in range(3))
        time = figure.add_subplot(grid[1, :2])
        size, unit = "Size of the gradient", "gradient (RMS, log scale)"
        heat_map(heat, measured.grad_input_rms, measured.names, size, unit, logs=True)
        lines = [("branches opened" if found.opened else "as it is", measured, BLUE)]
        for ablation in found.ablations:
            if ablation.change == Change.HALF_WIDTH:
                lines.append(("half as wide", ablation.measured, GREY))
            if ablation.change == Change.TWICE_WIDTH:
                lines.append(("twice as wide", ablation.measured, ORANGE))
        for label, shown, colour in lines:
            style: dict[str, Any] = {"color": colour, "ls": DASHES[colour], "marker": "o"}
            style["label"] = label
            profile = positive(shown.depth_profile)
            depth.plot(profile, range(len(profile)), **style)
            time.plot(positive(shown.time_profile), **style)
        image.plot(found.signal.overlap, range(len(found.signal.overlap)), color=BLUE, marker="o")
        image.set_title(f"Forward signal: {found.signal.overlap[-1]:.2f}")
        image.set_xlabel("similarity (1: same)")
        image.set_xlim(-0.05, 1.05)
        figures.whole_numbers(image.yaxis)
        image.set_ylim(heat.get_ylim())
        figures.through_depth(depth, heat, measured.depth_gain)
        depth.set_xlabel("gradient (RMS, log scale)")
        figures.log_scale(time, "y")
        ratio = measured.time_ratio
        time.set_title("Through time" + (f": {ratio:.3g}x" if ratio else ""))
        time.set(xlabel="time step", ylabel="gradient (RMS)")
        figures.whole_numbers(time.xaxis)
        key = figure.add_subplot(grid[1, 2])
        key.axis("off")
        key.legend(handles=depth.get_lines(), title="surrogate", loc="center left")
        if told:
            _reaches(figure.add_subplot(grid[2, :]), measured)
        figures.explain(
            figure,
            f"{figures.GRADIENT}. Per layer: its growth from a layer to the one before.\nForward signal: "
            "similarity of the spikes for an image and for a copy with 5 % noise, at the last layer",
        )
        figures.write(figure, path)


def _reaches(axes: Axes, measured: Measurement) -> None:
    """What of the last step's gradient reaches each layer and time step, and as far back as it is a hundredth."""
    arriving = measured.arriving
    unit = f"share of the last step's gradient ({LEAST:g} and less: darkest)"
    shown = np.clip(arriving, LEAST, 10)
    back = (arriving >= FAINT).argmax(1)
    reached = (arriving >= FAINT).any(1)
    heat_map(axes, shown, measured.names, "How far back the gradient reaches", unit, logs=True)
    axes.plot(
        np.where(reached, back, np.nan) - 0.5,
        range(len(back)),
        color=ORANGE,
        marker="<",
        clip_on=False,
        label="a hundredth reaches so far",
    )
    shade = {"frameon": True, "facecolor": "black", "edgecolor": "none", "framealpha": 0.6}
    axes.legend(loc="lower left", fontsize=8, labelcolor="white", **shade)
