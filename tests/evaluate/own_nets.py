"""Networks of one's own, as a plugin registers them: their `features` is not their layers in a row."""

import torch
from torch import nn

from spiketriton.models.feedforward import FeedForward, Layer
from spiketriton.models.graph import Node
from spiketriton.models.layers import folded
from spiketriton.plugins import model


class Twice(FeedForward):
    """Uses a layer twice, with a skip around it."""

    def features(self, images, steps):
        first, second = self.layers
        spikes = second(first(images, steps))
        return (spikes + second(spikes)).mean((3, 4))


class Pooled(FeedForward):
    """Has a pool between its layers, of which the class knows nothing."""

    def __init__(self, *args):
        super().__init__(*args)
        self.pool = nn.AvgPool2d(2)

    def features(self, images, steps):
        first, second = self.layers
        return second(folded(self.pool, first(images, steps))).mean((3, 4))


class WithGraph(Pooled):
    def graph(self):
        nodes, last = {}, "input"

        def add(name, kind, module=None, norm=None):
            nonlocal last
            nodes[name] = Node(name, kind, () if kind == "input" else (last,), module, norm)
            last = name

        add("input", "input")
        for i, layer in enumerate(self.layers):
            add(f"layers.{i}.weights", "weights", layer.weights, layer.bn)
            add(f"layers.{i}.neuron", "neuron", layer.neuron)
            if i == 0:
                add("pool", "avgpool", self.pool)
        add("mean", "mean")
        add("fc", "weights", self.fc)
        return nodes


class Recurrent(FeedForward):
    """Calls its second neuron for each time step, which it could not be measured by."""

    def features(self, images, steps):
        first, second = self.layers
        spikes = first(images, steps)
        last, seen = spikes[:1], []
        for now in spikes:
            last = second.neuron(folded(second.weights, last + now[None]))
            seen.append(last)
        return torch.cat(seen).mean((3, 4))


def _registered(made):
    @model(f"own_{made.__name__.lower()}")
    def make(recipe, parts, *, classes, channels, image_size):
        kinds = [(parts.conv(old, 4, 3), parts.norm(4), parts.neuron(4)) for old in (channels, 4)]
        layers = [Layer(*kind) for kind in kinds]
        return made(parts, channels, layers, 4, classes)


for _made in (Twice, Pooled, WithGraph, Recurrent):
    _registered(_made)
