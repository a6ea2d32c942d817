"""A network as a graph of weights, neurons and pools, for counting, conversion and export.

A node reads the sum of its inputs, so that residual connections are plain edges: the shortcut of a
`plain` block ends at its last neuron, those of `sew` and `ms` blocks at the nodes that follow.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from spiketriton.errors import UserError, one_line
from spiketriton.models.feedforward import MLP, FeedForward, Layer
from spiketriton.models.layers import folded
from spiketriton.models.network import Network
from spiketriton.models.pooled import VGG, BlockNet
from spiketriton.models.preact import PreActBlock, PreActResNet
from spiketriton.models.resnet import Block, MSBlock, PlainBlock, ResNet, ResNet19, SEWBlock
from spiketriton.neurons import Norm, one_by_one

Kind = Literal["input", "weights", "norm", "neuron", "maxpool", "avgpool", "mean", "flatten"]
Value = tuple[str, ...]  # the nodes of which it is the sum
Signal = Literal["image", "currents", "spikes"]


@dataclass(frozen=True)
class Node:
    """One operation on the sum of its inputs, at each time step.

    "weights" is a convolution or linear layer with the norm that follows, "norm" one that takes a
    sum, "neuron" a spiking neuron or the ANN twin's ReLU, "avgpool" the mean over windows, "mean"
    the mean over space. Names are those of the network's modules.
    """

    name: str
    kind: Kind
    inputs: Value
    module: nn.Module | None = None
    norm: Norm | None = None


Graph = dict[str, Node]  # by name, each node after its inputs


def graph_of(model: Network) -> Graph:
    """The graph of a network, from "input" to "fc": its own, or that of its class."""
    if isinstance(model, Network) and (own := model.graph()) is not None:
        return own
    if not isinstance(model, ResNet | PreActResNet | FeedForward | VGG | BlockNet):
        raise UserError(
            f"{type(model).__name__} has no graph by which operations are counted and networks "
            "converted and exported; accepted: a ResNet, PreActResNet, FeedForward, VGG or BlockNet "
            "of spiketriton.models, a subclass of one, or a network with a method graph()"
        )
    build = _Builder()
    value = build.add("input", "input", ())
    if isinstance(model, VGG | BlockNet):
        value = _pooled(build, model, value)
    elif isinstance(model, PreActResNet):
        value = build.weights("conv1", value, model.conv1, None)
        if model.maxpool is not None:
            value = build.add("maxpool", "maxpool", value, model.maxpool)
        for name, preact in model.blocks():
            value = _preact(build, f"{name}.", preact, value)
        value = build.norm("bn_last", value, model.bn_last)
        value = build.add("neuron_last", "neuron", value, model.neuron_last)
    elif isinstance(model, ResNet):
        value = build.weights("conv1", value, model.conv1, model.bn1)
        if model.neuron1 is not None:
            value = build.add("neuron1", "neuron", value, model.neuron1)
        if model.maxpool is not None:
            value = build.add("maxpool", "maxpool", value, model.maxpool)
        for stage in model.stage_names:
            for number, block in model.get_submodule(stage).named_children():
                value = _BLOCKS[type(block)](build, f"{stage}.{number}.", block, value)
        if model.neuron_last is not None:
            value = build.add("neuron_last", "neuron", value, model.neuron_last)
    else:
        if isinstance(model, MLP):
            value = build.add("flatten", "flatten", value)
        for i, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            value = build.weights(f"layers.{i}.weights", value, layer.weights, layer.bn)
            value = build.add(f"layers.{i}.neuron", "neuron", value, layer.neuron)
    if not isinstance(model, MLP | VGG | BlockNet):
        value = build.add("mean", "mean", value)
    if isinstance(model, ResNet19):
        value = build.weights("fc1", value, model.fc1, None)
        value = build.add("neuron_fc1", "neuron", value, model.neuron_fc1)
    build.weights("fc", value, model.fc, None)
    return build.nodes


def _pooled(build: "_Builder", model: VGG | BlockNet, value: Value) -> Value:
    """Layers with pools behind some of them, up to the flattened image and what reads it."""
    if isinstance(model, BlockNet):
        value = build.weights("conv1", value, model.conv1, model.bn1)
        if model.neuron1 is not None:
            value = build.add("neuron1", "neuron", value, model.neuron1)
    for number, layer in enumerate(model.layers, 1):
        name = f"layers.{number - 1}."
        if isinstance(layer, Layer):
            value = build.weights(f"{name}weights", value, layer.weights, layer.bn)
            value = build.add(f"{name}neuron", "neuron", value, layer.neuron)
        else:
            value = _BLOCKS[type(layer)](build, name, layer, value)
        if number in model.pooled_after:
            pool = model.pooled_after.index(number)
            value = build.add(
                f"pools.{pool}", cast(Kind, model.pool_kind), value, model.pools[pool]
            )
    if isinstance(model, BlockNet) and model.neuron_last is not None:
        value = build.add("neuron_last", "neuron", value, model.neuron_last)
    value = build.add("flatten", "flatten", value)
    for number, layer in enumerate(model.hidden if isinstance(model, VGG) else ()):
        assert isinstance(layer, Layer)
        value = build.weights(f"hidden.{number}.weights", value, layer.weights, layer.bn)
        value = build.add(f"hidden.{number}.neuron", "neuron", value, layer.neuron)
    return value


AGREEMENT = 1e-3  # of the mean current: rounding may flip a spike that meets its threshold


def noise(model: Network, image: tuple[int, int, int], frames: bool) -> Tensor:
    """Two images [2, C, H, W] or recordings [T, 2, C, H, W] to compare a graph with its network by."""
    generator = torch.Generator().manual_seed(0)
    steps = (model.time_steps,) if frames else ()
    return torch.rand(*steps, 2, *image, generator=generator)


def counted_graph(model: Network, images: Tensor) -> Graph:
    """The graph of a network, if it gives the network's answers to images [B, C, H, W] or [T, B, C, H, W].

    A subclass may compute something else than the layers that it has from its class. In float64, on the CPU.

    UserError: there is no graph, or it is one of another network.
    """
    graph_of(model)
    twin = copy.deepcopy(model).cpu().double().eval()
    images = images.cpu().double()
    steps = len(images) if images.ndim == 5 else twin.time_steps
    twin.reset()
    with torch.inference_mode(), one_by_one(twin):
        ours = twin(images)
        try:
            theirs = _answers(graph_of(twin), images, steps).float()
            far = (ours - theirs).abs().mean() / ours.abs().mean().clamp_min(1e-30)
        except (RuntimeError, KeyError, TypeError) as error:  # shapes or names that do not fit
            raise UserError(f"its graph cannot be computed: {one_line(error)}") from None
    if not far <= AGREEMENT:
        raise UserError(
            f"the graph of {type(model).__name__} does not give its answers (currents differ by {far:.2g} of their "
            "mean): its features() computes something else than its layers in a row; accepted: a method graph()"
        )
    return graph_of(model)


def _answers(nodes: Graph, images: Tensor, steps: int) -> Tensor:
    """The currents [T, B, K] that a graph computes."""
    values: dict[str, Tensor] = {}
    for node in nodes.values():
        if node.kind == "input":
            shown = images if images.ndim == 5 else images.expand(steps, *images.shape)
            values[node.name] = shown
            continue
        x = functools.reduce(torch.add, (values[name] for name in node.inputs))
        if node.kind == "mean":
            x = x.mean((3, 4))
        elif node.kind == "flatten":
            x = x.flatten(2)
        else:
            assert node.module is not None
            timed = node.kind in ("neuron", "norm")
            x = node.module(x) if timed else folded(node.module, x)
            x = x if node.norm is None else node.norm(x)
        values[node.name] = x
    return values["fc"]


class _Builder:
    def __init__(self) -> None:
        self.nodes: Graph = {}

    def add(
        self,
        name: str,
        kind: Kind,
        inputs: Value,
        module: nn.Module | None = None,
        norm: Norm | None = None,
    ) -> Value:
        self.nodes[name] = Node(name, kind, inputs, module, norm)
        return (name,)

    def weights(self, name: str, inputs: Value, layer: nn.Module, norm: nn.Module | None) -> Value:
        """Weights and norm; the stem of a converted net has its max-pool in place of the norm."""
        batch_norm = norm if isinstance(norm, Norm) else None
        value = self.add(name, "weights", inputs, layer, batch_norm)
        pool = getattr(norm, "pool", None)
        return value if pool is None else self.add("maxpool", "maxpool", value, pool)

    def norm(self, name: str, inputs: Value, norm: nn.Module) -> Value:
        """A norm of a sum; nothing where there is none."""
        return self.add(name, "norm", inputs, norm) if isinstance(norm, Norm) else inputs


def _plain(build: _Builder, name: str, block: PlainBlock, x: Value) -> Value:
    current = _inner(build, name, block, x) + _downsample(build, name, block, x)
    return _last_neuron(build, name, block, current)


def _sew(build: _Builder, name: str, block: SEWBlock, x: Value) -> Value:
    if block.connect != "add":
        raise UserError(
            f'model.connect = "{block.connect}" is no sum, and a graph by which operations are counted and networks '
            'converted and exported has sums alone; accepted: "add"'
        )
    current, shortcut = _inner(build, name, block, x), _downsample(build, name, block, x)
    if block.downsample is not None:
        shortcut = build.add(f"{name}downsample.2", "neuron", shortcut, block.downsample[2])
    return _last_neuron(build, name, block, current) + shortcut


def _inner(build: _Builder, name: str, block: Block, value: Value) -> Value:
    """Convolutions and neurons, up to and including the last convolution."""
    for i, (conv, norm, neuron) in enumerate(block.stages(), start=1):
        value = build.weights(f"{name}conv{i}", value, conv, norm)
        if i < block.depth:
            value = build.add(f"{name}neuron{i}", "neuron", value, neuron)
    return value


def _last_neuron(build: _Builder, name: str, block: Block, current: Value) -> Value:
    neuron = f"neuron{block.depth}"
    return build.add(name + neuron, "neuron", current, block.get_submodule(neuron))


def _ms(build: _Builder, name: str, block: MSBlock, x: Value) -> Value:
    value = x
    for i, (conv, norm, neuron) in enumerate(block.stages(), start=1):
        value = build.add(f"{name}neuron{i}", "neuron", value, neuron)
        value = build.weights(f"{name}conv{i}", value, conv, norm)
    return value + _downsample(build, name, block, x)


def _preact(build: _Builder, name: str, block: PreActBlock, x: Value) -> Value:
    norms, neurons, convs = zip(*block.stages(), strict=True)
    value = shortcut = build.add(
        f"{name}neuron1", "neuron", build.norm(f"{name}bn1", x, norms[0]), neurons[0]
    )
    if block.downsample is not None:
        shortcut = build.weights(f"{name}downsample", value, block.downsample, None)
    for i, (conv, norm) in enumerate(zip(convs, [*norms[1:], None], strict=True), start=1):
        value = build.weights(f"{name}conv{i}", value, conv, norm)
        if i < block.depth:
            value = build.add(f"{name}neuron{i + 1}", "neuron", value, neurons[i])
    return value + shortcut


def _downsample(build: _Builder, name: str, block: Block, x: Value) -> Value:
    """The shortcut, up to its norm: x itself where the block keeps the shape."""
    if block.downsample is None:
        return x
    return build.weights(f"{name}downsample.0", x, block.downsample[0], block.downsample[1])


_BLOCKS: dict[type[nn.Module], Callable[..., Value]] = {
    PlainBlock: _plain,
    SEWBlock: _sew,
    MSBlock: _ms,
}


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
    if isinstance(node.module, nn.Linear):
        return node.module.out_features
    return channels_of(nodes, nodes[node.inputs[0]])


def shapes_of(nodes: Graph, image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shape of each node's output for one image [C, H, W] and time step: (C, H, W) or (F,)."""
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
    if isinstance(module, nn.Linear):
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
    """Weight and bias of a layer, its batch norm (in eval mode) folded in, in float64.

    ValueError: the norm has a gain for each time step (TEBN).
    """
    layer, norm = node.module, node.norm
    assert isinstance(layer, nn.Conv2d | nn.Linear)
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
