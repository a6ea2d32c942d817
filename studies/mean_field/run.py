"""What layers of spiking neurons do before training, predicted without data and without weights, beside what they do.

    python studies/mean_field/run.py

draws mean_field.png: gain by width and similarity by depth. Measured: fully connected nets of 20 layers (gain)
and of 12 (similarity) on Fashion-MNIST, T = 10, before training. Predicted:

In a wide layer a current is a sum of many spikes times random weights: Gaussian. All that the layers
below decide is how it is correlated: over time, and between images. So a layer is its neuron and a
covariance of its currents, [images, T, images, T]:

forward     A channel's currents are a part that all images share, drawn from the covariance of two different
            images, and a part of each image's own. Batch norm takes their mean over time away and divides by
            their standard deviation. What the neuron makes of them has the next layer's covariance.
backward    The gradient of a layer's spikes is g ~ N(0, C), C [T, T], whatever the spikes are. The neuron's own
            backward makes dL/dx of it, the norm divides that by the channel's standard deviation, and its
            covariance is the C of the layer below.

Within a time step a layer multiplies the gradient by about gamma sqrt(E[phi^2] / v), phi the surrogate and v
the variance of the spikes. Expectations are means over `CHANNELS` draws.

The method: Poole et al. 2016 (arXiv 1606.05340) and Schoenholz et al. 2017 (arXiv 1611.01232); with
batch norm, Yang et al. 2019 (arXiv 1902.08129).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn

from spiketriton.config import Recipe, load_recipe
from spiketriton.diagnose.ablations import Experiment
from spiketriton.diagnose.diagnosed import Subject
from spiketriton.gradients.prober import NOISE
from spiketriton.neurons import build_neuron
from spiketriton.show.figures import BLUE, GREY, ORANGE, STYLE, log_scale, new_figure
from spiketriton.system.errors import run_command

WIDTHS = (0.1, 0.2, 0.417, 1.0, 2.0, 4.0, 10.0)
CURVE = np.geomspace(0.1, 10, 13)
GAIN_DEPTH, DEPTH = 20, 12
PICTURE = Path(__file__).with_name("mean_field.png")

CHANNELS = 8_000


@dataclass(frozen=True)
class MeanField:
    """Layers of one kind in a row; the first one's currents are the same at all time steps.

    neuron: a module, currents [T, n] -> spikes [T, n].
    gamma: by what batch norm multiplies its normalised input.
    """

    neuron: nn.Module
    steps: int
    gamma: float = 1.0

    def gradient(self, depth: int) -> np.ndarray:
        """RMS of dL/dx of each of `depth` layers by that of the last, [depth]; the loss reads the mean over time."""
        generator = torch.Generator().manual_seed(0)
        covariance, layers = self._shown(torch.eye(2)), []
        for _ in range(depth):
            x, deviation = self._currents(covariance, generator)
            spikes = self.neuron(x.requires_grad_())
            covariance = _covariance(spikes.detach(), 2)
            layers.append((x, deviation, spikes))
        backward, sizes = torch.ones(self.steps, self.steps, dtype=torch.float64), []
        for x, deviation, spikes in reversed(layers):
            (grad,) = torch.autograd.grad(spikes, x, _draw(backward, generator, spikes.shape[1]))
            sizes.append(float(grad.square().mean().sqrt()))
            grad = self.gamma * grad / deviation
            backward = grad @ grad.T / grad.shape[1]
        return np.array(sizes[::-1]) / sizes[0]

    def gain(self, depth: int) -> float:
        """By what a layer multiplies the gradient's RMS: the geometric mean over `depth` layers."""
        return float(self.gradient(depth)[0] ** (1 / max(1, depth - 1)))

    @torch.no_grad()
    def overlap(self, depth: int, similar: float) -> np.ndarray:
        """What each layer keeps of an image, [depth], as `Prober.overlap` measures it.

        `similar`: the correlation of the first layer's currents for an image and for its noisy copy.
        """
        generator, kept = torch.Generator().manual_seed(0), []
        # two images and their copies
        copies = torch.eye(2).repeat(2, 2) * similar
        covariance = self._shown(copies.fill_diagonal_(1))
        for _ in range(depth):
            spikes = self.neuron(self._currents(covariance, generator)[0])
            covariance = _alike(_covariance(spikes, 4))
            rates = covariance.mean((1, 3))
            same, other = (float(rates[0, i] / rates[0, 0]) for i in (2, 1))
            kept.append((same - other) / (1 - other))
        return np.array(kept)

    def _shown(self, between: Tensor) -> Tensor:
        """The covariance of the first layer's currents, from their correlations between images."""
        return between.double()[:, None, :, None].expand(-1, self.steps, -1, self.steps)

    def _currents(self, covariance: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalised currents [T, images * CHANNELS], and the standard deviation that they had, of each."""
        images, steps = covariance.shape[:2]
        shared = covariance[0, :, 1]  # the first two images are different ones
        own = covariance - (shared + shared.T)[:, None] / 2
        common = _draw((shared + shared.T) / 2, generator)
        common = common - common.mean(0)
        each = _draw(own.reshape(images * steps, -1), generator).unflatten(0, (images, steps))
        variance = common.square().mean(0) + own[0, :, 0].trace() / steps
        normalised = (common + each) / variance.sqrt()
        x = self.gamma * normalised.transpose(0, 1).flatten(1)
        return x, variance.sqrt().repeat(images)


def _covariance(spikes: Tensor, images: int) -> Tensor:
    """Of spikes [T, images * n] over the channels, [images, T, images, T]."""
    each = spikes.unflatten(1, (images, -1))
    return torch.einsum("tan,sbn->atbs", each, each) / each.shape[-1]


def _alike(covariance: Tensor) -> Tensor:
    """The same for two images and their copies, all pairs of a kind alike."""
    found, kinds = torch.empty_like(covariance), torch.eye(2).repeat(2, 2)
    pairs = covariance.transpose(1, 2)
    for chosen in (torch.eye(4) > 0, kinds - torch.eye(4) > 0, kinds == 0):
        mean = pairs[chosen].mean(0)
        found.transpose(1, 2)[chosen] = (mean + mean.T) / 2
    return found


def _draw(covariance: Tensor, generator: torch.Generator, count: int = CHANNELS) -> Tensor:
    """Draws of a Gaussian of mean 0, [len(covariance), count]."""
    values, vectors = torch.linalg.eigh(covariance)
    normal = torch.randn(len(covariance), count, generator=generator, dtype=torch.float64)
    return vectors * values.clamp_min(0).sqrt() @ normal


def recipe(kind: str, depth: int) -> Recipe:
    changes = [f"neuron.kind={kind}", f"model.depth={depth}", "model.start=kaiming"]
    return load_recipe(Path(__file__).with_name("net.toml"), changes)


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
                layers,
                Experiment(Subject(recipe(kind, DEPTH), kind)).signal.overlap,
                "o",
                color=colour,
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
