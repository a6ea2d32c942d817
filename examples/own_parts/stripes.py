"""A network and a data set of one's own. Train them: spiketriton train examples/own_parts/stripes.toml"""

from dataclasses import dataclass

import numpy as np

from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit
from spiketriton.models.feedforward import FeedForward, Layer
from spiketriton.plugins import PartOptions, Range, data, key, model

__version__ = "1.0"

CLASSES = ("level", "upright", "rising", "falling")


@dataclass(frozen=True, kw_only=True)
class TwoLayersOptions(PartOptions):
    """The keys of [model.two_layers]."""

    hidden: int = key(16, "channels of both convolutions", Range(1, 4096))


@model("two_layers", options=TwoLayersOptions)
def two_layers(recipe, parts, *, classes, channels, image_size):
    """Two spiking convolutions, each of which halves the image."""
    hidden = recipe.model.options.hidden
    layers = [
        Layer(parts.conv(channels, hidden, 5, 2), parts.norm(hidden), parts.neuron(hidden)),
        Layer(parts.conv(hidden, hidden, 3, 2), parts.norm(hidden), parts.neuron(hidden)),
    ]
    return FeedForward(parts, channels, layers, hidden, classes)


@dataclass(frozen=True, kw_only=True)
class StripesOptions(PartOptions):
    """The keys of [data.stripes]."""

    images: int = key(400, "training images", Range(16, 1_000_000))
    noise: float = key(0.2, "deviation of the noise, of full brightness", Range(0, 1))


@data("stripes", options=StripesOptions)
def stripes(config):
    """Grey images of 16x16 with stripes in one of four directions, at a random place, with noise."""
    options = config.options

    def split(count, seed):
        draws = np.random.default_rng(seed)
        labels = np.arange(count) % len(CLASSES)
        x, y = np.meshgrid(np.arange(16), np.arange(16))
        along = np.stack([y, x, (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)])[labels]
        phase = draws.uniform(0, 2 * np.pi, (count, 1, 1))
        bright = 0.5 + 0.4 * np.sin(along + phase) + draws.normal(0, options.noise, along.shape)
        return ArraySplit((bright.clip(0, 1) * 255).astype(np.uint8)[:, None], labels)

    return Source(
        train=split(options.images, seed=0),
        test=split(200, seed=1),
        classes=CLASSES,
        move="affine",
    )
