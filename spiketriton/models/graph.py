"""A network as a graph of weights, neurons and pools, for counting, conversion and export: see `describe`, `graph`.

A node reads the sum of its inputs, so that residual connections are plain edges.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spiketriton.neurons import Norm
from spiketriton.system.errors import UserError
from spiketriton_kernels.nn import Delays

Kind = Literal["input", "weights", "norm", "neuron", "maxpool", "avgpool", "mean", "flatten"]
Value = tuple[str, ...]  # the nodes of which it is the sum
Signal = Literal["image", "currents", "spikes"]


@dataclass(frozen=True)
class Node:
    """One operation on the sum of its inputs, at each time step; names are those of the network's modules.

    "weights" is a convolution or linear layer, also with delays, with the norm that follows, "norm" one that takes a
    sum, "neuron" also the ANN twin's ReLU, "avgpool" the mean over windows, "mean" the mean over space.
    """

    name: str
    kind: Kind
    inputs: Value
    module: nn.Module | None = None
    norm: Norm | None = None


Graph = dict[str, Node]  # by name, each node after its inputs


_KINDS: dict[Kind, tuple[type[nn.Module], ...]] = {
    "weights": (nn.Conv2d, nn.Linear, Delays),
    "norm": (Norm,),
    "maxpool": (nn.MaxPool2d,),
    "avgpool": (nn.AvgPool2d,),
}
"""The modules of each kind of node; any other is a neuron."""


class Builder:
    """Adds nodes to a graph; a value is what the next node reads."""

    def __init__(self) -> None:
        self.nodes: Graph = {"input": Node("input", "input", ())}
        self.input: Value = ("input",)

    def add(
        self, name: str, inputs: Value, module: nn.Module | None, norm: nn.Module | None = None
    ) -> Value:
        """A node of a module; nothing where there is none, or one that does nothing.

        norm: behind weights; the stem of a converted net has its max-pool there.
        """
        if module is None or isinstance(module, nn.Identity):
            return inputs
        kinds = [kind for kind, types in _KINDS.items() if isinstance(module, types)]
        batch_norm = norm if isinstance(norm, Norm) else None
        self.nodes[name] = Node(name, kinds[0] if kinds else "neuron", inputs, module, batch_norm)
        return self.add("maxpool", (name,), getattr(norm, "pool", None))

    def read(self, kind: Literal["mean", "flatten"], inputs: Value) -> Value:
        """A node of the whole image, which has no module."""
        self.nodes[kind] = Node(kind, kind, inputs)
        return (kind,)

    def row(self, name: str, value: Value, layers: Iterable[Any]) -> Value:
        """Layers or blocks of the list `name`, each as it describes itself, with the pool behind it."""
        for number, layer in enumerate(layers):
            value = layer.describe(self, f"{name}.{number}.", value)
            value = self.add(f"{name}.{number}.pool", value, layer.pool)
        return value

    def read_by(self, fc: nn.Module, value: Value) -> Graph:
        """The whole graph, whose classifier reads `value`."""
        self.add("fc", value, fc)
        return self.nodes


def graph_of(model: nn.Module) -> Graph:
    """The graph of a network, from "input" to "fc"."""
    nodes = getattr(model, "graph", lambda: None)()
    if nodes is None:
        raise UserError(
            f"{getattr(model, 'name', type(model).__name__)} has no graph by which operations are counted and networks "
            "converted and exported; accepted: a ResNet, FeedForward, VGG or BlockNet of spiketriton.models, a "
            "subclass of one, or a network with a method graph()"
        )
    return nodes


def carries(nodes: Graph, node: Node) -> Signal:
    """What a node outputs: the constant image, analog currents at each step, or spikes."""
    outputs: dict[Kind, Signal] = {
        "input": "image",
        "weights": "currents",
        "norm": "currents",
        "neuron": "spikes",
    }
    return outputs.get(node.kind) or arrives(nodes, node)


def arrives(nodes: Graph, node: Node) -> Signal:
    """What a node reads."""
    (kind,) = {carries(nodes, nodes[name]) for name in node.inputs}
    return kind


def channels_of(nodes: Graph, node: Node) -> int:
    """Channels, or features, of a node's output."""
    if isinstance(node.module, nn.Conv2d):
        return node.module.out_channels
    if isinstance(node.module, nn.Linear | Delays):
        return node.module.out_features
    return channels_of(nodes, nodes[node.inputs[0]])


def shapes_of(nodes: Graph, image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of each node's output at a time step, (C, H, W) or (F,), of an image [C, H, W] or a sequence's step [C]"""
    shapes: dict[str, tuple[int, ...]] = {"input": image}
    for node in nodes.values():
        if node.kind != "input":
            shapes[node.name] = _shape(node, shapes[node.inputs[0]])
    return shapes


def _shape(node: Node, given: tuple[int, ...]) -> tuple[int, ...]:
    module = node.module
    if node.kind in ("norm", "neuron"):
        return given
    if node.kind == "mean":
        return given[:1]
    if node.kind == "flatten":
        return (math.prod(given),)
    if isinstance(module, nn.Linear | Delays):
        return (module.out_features,)
    assert isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    geometry = (module.kernel_size, module.stride, module.padding)
    kernel, stride, padding = (_pair(value) for value in geometry)
    channels = module.out_channels if isinstance(module, nn.Conv2d) else given[0]
    sides = ((given[1 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    return (channels, *sides)


def _pair(value: object) -> tuple[int, int]:
    """Height and width, where torch also accepts one number for both."""
    height, width = value if isinstance(value, tuple) else (value, value)
    return int(height), int(width)


@torch.no_grad()
def folded_weights(node: Node) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer, its batch norm (in eval mode) folded in, in float64. ValueError: it is TEBN."""
    layer, norm = node.module, node.norm
    assert isinstance(layer, nn.Conv2d | nn.Linear | Delays)
    weight = layer.weight.double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
    if norm is None:
        return weight, bias.double()
    if norm.step_gain is not None:
        raise ValueError(f"{node.name} is followed by TEBN, whose gains differ by time step")
    gain = norm.weight.double() * norm.scale / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - gain * norm.running_mean.double()
    return weight * gain.view(-1, *[1] * (weight.ndim - 1)), bias.double() * gain + shift


def layers(nodes: Graph, kind: Kind) -> Iterator[Node]:
    """The nodes of one kind, in forward order."""
    return (node for node in nodes.values() if node.kind == kind)
