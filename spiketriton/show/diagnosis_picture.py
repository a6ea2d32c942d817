"""The picture of a diagnosis: heat map, depth profile and time profile."""

from pathlib import Path

from spiketriton.gradients.diagnosis import Diagnosis
from spiketriton.gradients.variants import Change
from spiketriton.show import figures
from spiketriton.show.figures import BLUE, GREY, ORANGE, heat_map, log10, new_figure
from spiketriton.show.verdict import line


def draw(found: Diagnosis, path: Path) -> None:
    """Heat map, depth profile with the surrogate halved and doubled, and time profile, as PNG."""
    from matplotlib.ticker import MaxNLocator

    measured = found.measured
    note = " (synthetic images)" if found.synthetic else ""
    with figures.style():
        figure = new_figure(15, 3.4 + 0.13 * max(len(measured.names), 14))
        heat, depth, time, image = figure.subplots(1, 4, width_ratios=[1.2, 1, 0.8, 0.6])
        title = f"{found.subject.recipe.name}{note}: {line(found.verdict)}"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        logs = log10(measured.grad_input)
        names = list(measured.names)
        heat_map(
            heat,
            logs,
            names,
            "viridis",
            "Size of the gradient",
            "gradient (RMS, log scale)",
            logs=True,
        )
        lines = [("as it is", measured, BLUE)]
        for variant in found.variants:
            if variant.change is Change.HALF_WIDTH:
                lines.append(("half as wide", variant.measured, GREY))
            if variant.change is Change.TWICE_WIDTH:
                lines.append(("twice as wide", variant.measured, ORANGE))
        for label, shown, colour in lines:
            style = {"color": colour, "marker": "o", "label": label}
            profile = figures.positive(shown.depth_profile)
            depth.plot(profile, range(len(profile)), **style)
            time.plot(figures.positive(shown.time_profile), **style)
        image.plot(found.overlap, range(len(found.overlap)), color=BLUE, marker="o")
        if found.predicted is not None:
            image.plot(
                found.predicted.overlap,
                range(len(found.overlap)),
                color=GREY,
                ls="--",
                label="predicted",
            )
            image.legend(fontsize=8)
        image.set_title(f"Forward signal: {found.overlap[-1]:.2f}")
        image.set_xlabel("similarity (1: same)")
        image.set_xlim(-0.05, 1.05)
        figures.log_scale(depth, "x")
        for axes in (depth, image):
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(heat.get_ylim())
        gain = measured.depth_gain
        depth.set_title("Through depth" + (f": {gain:.3g}x per layer" if gain else ""))
        depth.set_xlabel("gradient (RMS, log scale)")
        depth.legend(fontsize=8, title="surrogate", title_fontsize=8, frameon=True, framealpha=0.85)
        figures.log_scale(time, "y")
        ratio = measured.time_ratio
        time.set_title("Through time" + (f": {ratio:.3g}x" if ratio else ""))
        time.set(xlabel="time step", ylabel="gradient (RMS, mean over layers)")
        figures.explain(
            figure,
            f"{figures.GRADIENT}. Per layer: its growth from a layer to the one before.\nForward signal: "
            "similarity of the spikes for an image and for a copy with 5 % noise, at the last layer",
        )
        figures.write(figure, path)
