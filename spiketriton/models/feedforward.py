"""Layers in a row, without skip connections: `plain` and `mlp`, of any depth, to study gradients; VGGs and the CSNN."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from spiketriton import plugins
from spiketriton.config.names import CHAINS
from spiketriton.models.graph import Builder, Graph, Value
from spiketriton.models.layers import (
    Parts,
    add_identity,
    first_layer,
    folded,
    norm_neuron,
    start_as_leak,
)
from spiketriton.models.memory import mark_spikes
from spiketriton.models.network import Network
from spiketriton.neurons import SpikingNeuron
from spiketriton.system.errors import UserError
from spiketriton_kernels.nn import Delays, Recurrent


class Layer(nn.Module):
    """Weights, norm and neuron, and perhaps a pool behind it: [T, B, ...] -> spikes [T, B, ...]."""

    def __init__(
        self, weights: nn.Conv2d | nn.Linear | Delays, norm: nn.Module, neuron: nn.Module
    ) -> None:
        super().__init__()
        self.weights = weights
        self.bn = norm
        self.neuron = neuron
        self.pool: nn.MaxPool2d | nn.AvgPool2d | None = None

    def forward(self, x: Tensor, steps: int | None = None) -> Tensor:
        """Only a network's first layer is given `steps`, for which it is shown an image or frames."""
        if steps is None:
            spikes = norm_neuron(self.bn, self.neuron, folded(self.weights, x))
        else:
            spikes = first_layer(self.weights, self.bn, self.neuron, x, steps)
        if self.pool is None:
            return spikes
        spikes = folded(self.pool, spikes)
        maximum = isinstance(self.pool, nn.MaxPool2d) and isinstance(self.neuron, SpikingNeuron)
        return mark_spikes(spikes) if maximum else spikes  # a maximum of spikes is a spike

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        """Adds its nodes, whose names begin with `name`, to a graph in which it reads `x`."""
        current = build.add(f"{name}weights", x, self.weights, self.bn)
        returned = isinstance(self.neuron, Recurrent)  # its neuron is the layer's, and has the name
        return build.add(f"{name}neuron{'.neuron' * returned}", current, self.neuron)


class FeedForward(Network):
    """Spiking layers in a row and a classifier; a subclass makes the layers."""

    flattens = False  # whether the first layer reads all pixels of the image
    reads: ClassVar[Literal["mean", "flatten"]] = "mean"  # of maps, what is behind the layers
    leaks: ClassVar[bool] = True  # whether parallel neurons of a chain start as a leak over time

    def __init__(
        self,
        parts: Parts,
        channels: int,
        layers: Sequence[Layer],
        features: int,
        classes: int,
        hidden: Sequence[Layer] = (),
    ) -> None:
        """`hidden`: layers between what is left of the image and the classifier, which reads `features`."""
        super().__init__(parts, channels)
        self.layers, self.hidden = nn.ModuleList(layers), nn.ModuleList(hidden)
        self.fc = nn.Linear(features, classes)
        self._initialize()
        start = parts.model.start
        if start == "identity" or (start == "auto" and parts.model.name in CHAINS):
            for layer in (*layers, *hidden) if self.leaks else ():
                start_as_leak(layer.neuron)
            for layer in layers[1:]:  # the first has another number of inputs
                if layer.weights.weight.shape[0] == layer.weights.weight.shape[1]:
                    add_identity(layer.weights)

    def features(self, images: Tensor, steps: int) -> Tensor:
        first, *rest = self.layers
        x = first(images.flatten(-3) if self.flattens else images, steps)
        for layer in rest:
            x = layer(x)
        if x.ndim == 5:
            x = x.mean((3, 4)) if self.reads == "mean" else x.flatten(2)
        for layer in self.hidden:
            x = layer(x)
        return x

    def graph(self) -> Graph:
        build = Builder()
        value = build.read("flatten", build.input) if self.flattens else build.input
        value = build.row("layers", value, self.layers)
        value = value if self.flattens else build.read(self.reads, value)
        return build.read_by(self.fc, build.row("hidden", value, self.hidden))


@plugins.model("plain")
class PlainNet(FeedForward):
    """3x3 convolutions of one width; the image is halved at 1/3 and 2/3 of the depth."""

    takes_any_size = True

    def __init__(self, parts: Parts, *, classes: int, channels: int, image_size: int) -> None:
        depth, width = parts.model.depth, parts.model.width or 16
        halved = {depth // 3, 2 * depth // 3} - {0}
        layers = [
            Layer(
                parts.conv(width if i else channels, width, 3, 2 if i in halved else 1),
                parts.norm(width),
                parts.neuron(width),
            )
            for i in range(depth)
        ]
        super().__init__(parts, channels, layers, width, classes)


@plugins.model("mlp")
class MLP(FeedForward):
    """Fully connected layers of one width; the first reads all pixels of the image."""

    flattens = True

    def __init__(self, parts: Parts, *, classes: int, channels: int, image_size: int) -> None:
        width, before = parts.model.width or 128, channels * image_size**2
        layers = []
        for _ in range(parts.model.depth):
            linear = parts.linear(before, width)
            layers.append(Layer(linear, parts.norm(width), parts.neuron(width)))
            before = width
        super().__init__(parts, channels, layers, width, classes)


# channels of 3x3 convolutions with norm and neuron, in units of the first one's, and pools; how many features the
# hidden layer reads for each of its own, if there is one; width
PLANS: dict[str, tuple[tuple[int | str, ...], int, int]] = {
    "vggsnn": ((1, 2, "avg", 4, 4, "avg", 8, 8, "avg", 8, 8, "avg"), 0, 64),
    "vgg8": ((1, 2, "max", 2, 8, "max", 8, 8, "max", 8, "max"), 0, 32),
    "vgg11": ((1, "max", 2, "max", 4, 4, "max", 8, 8, "max", 8, 8, "max"), 0, 64),
    "vgg16": ((1, 1, "max", 2, 2, "max", 4, 4, 4, "max", 8, 8, 8, "max", 8, 8, 8, "max"), 0, 64),
    "csnn": ((1, 1, 1, "avg", 1, 1, 1, "avg"), 4, 256),
}
_POOLS: dict[str, type[nn.AvgPool2d] | type[nn.MaxPool2d]] = {
    "avg": nn.AvgPool2d,
    "max": nn.MaxPool2d,
}


@plugins.model(*PLANS)
class VGG(FeedForward):
    """3x3 convolutions with norm and neuron, pools that halve the image, and linear layers on what is left of it.

    `vggsnn` is Deng et al. 2022 (TET, arXiv 2202.11946). `vgg11` and `vgg16` are the convolutions of Simonyan &
    Zisserman 2014 (arXiv 1409.1556) with batch norm and one linear layer, `vgg8` nearly those of Jordan 2024 (airbench,
    arXiv 2404.00498). `csnn` is the network of Fang et al. 2023 (PSN, arXiv 2304.12760) for CIFAR-10, with a hidden
    layer. Pools without a side left to halve are left out.
    """

    reads = "flatten"

    def __init__(self, parts: Parts, *, classes: int, channels: int, image_size: int) -> None:
        name = parts.model.name
        plan, share, width = PLANS[name]
        width = parts.model.width or width
        smallest = 1 << sum(isinstance(entry, str) for entry in plan)
        if image_size < smallest and name == "vggsnn":
            raise UserError(
                f"data.image_size = {image_size} is too small for vggsnn, which halves it four "
                f"times; accepted: {smallest} or more"
            )
        layers: list[Layer] = []
        before, side = channels, image_size
        for entry in plan:
            if isinstance(entry, int):
                after = width * entry
                conv = parts.conv(before, after, 3)
                layers.append(Layer(conv, parts.norm(after), parts.neuron(after)))
                before = after
            elif side > 1:
                layers[-1].pool = _POOLS[entry](2)
                side //= 2
        features, hidden = before * side**2, []
        if share:
            after = max(1, features // share)
            hidden.append(Layer(nn.Linear(features, after), nn.Identity(), parts.neuron(after)))
            features = after
        super().__init__(parts, channels, layers, features, classes, hidden)
