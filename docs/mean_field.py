"""Draws docs/img/mean_field.png: gain by width and similarity by depth, predicted and measured.

    python docs/mean_field.py

Measured: fully connected nets of 20 layers (gain) and of 12 (similarity) on Fashion-MNIST, T = 10, before training.
"""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

from spiketriton.config import Recipe, load_recipe
from spiketriton.diagnose.ablations import Experiment
from spiketriton.diagnose.diagnosed import Subject
from spiketriton.diagnose.mean_field import MeanField
from spiketriton.neurons import build_neuron
from spiketriton.show.figures import BLUE, GREY, ORANGE, STYLE, log_scale, new_figure
from spiketriton.system.errors import run_command
from spiketriton.training.probing import NOISE

WIDTHS = (0.1, 0.2, 0.417, 1.0, 2.0, 4.0, 10.0)
CURVE = np.geomspace(0.1, 10, 13)
GAIN_DEPTH, DEPTH = 20, 12
PICTURE = Path(__file__).parent / "img" / "mean_field.png"


def recipe(kind: str, depth: int) -> Recipe:
    changes = [f"neuron.kind={kind}", f"model.depth={depth}", "model.start=kaiming"]
    return load_recipe(Path(__file__).parent / "gradient_flow.toml", changes)


def predicted(kind: str, width: float) -> MeanField:
    neuron = recipe(kind, 2).neuron
    surrogate = replace(neuron.surrogate, width=float(width))
    return MeanField(build_neuron(replace(neuron, surrogate=surrogate)), recipe(kind, 2).time_steps)


def main(arguments: list[str]) -> None:
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11, 4.2)
        gains, kept = figure.subplots(1, 2)
        for kind, colour in (("lif", BLUE), ("if", ORANGE)):
            theory = [predicted(kind, w).gain(GAIN_DEPTH) for w in CURVE]
            experiment = Experiment(Subject(recipe(kind, GAIN_DEPTH), kind))
            measured = [
                experiment.prober(scale=w / experiment.width).measure().depth_gain for w in WIDTHS
            ]
            print(kind, "measured", [f"{g:.2f}" for g in measured], flush=True)
            print(kind, "predicted", [f"{predicted(kind, w).gain(GAIN_DEPTH):.2f}" for w in WIDTHS])
            gains.plot(CURVE, theory, color=colour, label=f"{kind.upper()}, predicted")
            gains.plot(WIDTHS, measured, "o", color=colour, label=f"{kind.upper()}, measured")
            layers = range(1, DEPTH + 1)
            similar = 1 / math.sqrt(1 + NOISE**2)
            kept.plot(layers, predicted(kind, 1.0).overlap(DEPTH, similar), color=colour)
            kept.plot(
                layers, Experiment(Subject(recipe(kind, DEPTH), kind)).overlap, "o", color=colour
            )
        gains.axhline(1, color="0.7", lw=1, zorder=0)
        gains.text(10, 1.03, "above: explodes", ha="right", va="bottom", color=GREY)
        gains.text(10, 0.97, "below: vanishes", ha="right", va="top", color=GREY)
        gains.axvline(0.3, color=GREY, ls="--", lw=1, zorder=0)
        gains.text(0.31, 4.8, "default", color=GREY, va="top")
        log_scale(gains, "x")
        log_scale(gains, "y")
        gains.set_xlabel("surrogate width, in units of the membrane")
        gains.set(
            ylabel="gradient at a layer / at the next",
            title="The width decides how the gradient grows per layer",
        )
        gains.legend(fontsize=8)
        kept.set(
            xlabel="layer",
            ylabel="similarity to a noisy copy (1: same)",
            title="From the usual start, ten layers lose the signal",
        )
        kept.set_ylim(-0.05, 1.05)
        figure.savefig(PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    run_command(main)
