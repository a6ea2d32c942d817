"""Networks of any depth without skip connections, to study gradients: `plain` and `mlp`."""

from torch import Tensor, nn

from spiketriton.models.graph import Builder, Graph, Value
from spiketriton.models.layers import (
    Parts,
    add_identity,
    first_layer,
    norm_neuron,
    spike_conv,
)
from spiketriton.models.network import Network


class Layer(nn.Module):
    """Weights, norm and neuron: [T, B, ...] -> spikes [T, B, ...]."""

    def __init__(self, weights: nn.Conv2d | nn.Linear, norm: nn.Module, neuron: nn.Module) -> None:
        super().__init__()
        self.weights = weights
        self.bn = norm
        self.neuron = neuron

    def forward(self, x: Tensor, steps: int | None = None) -> Tensor:
        """Only a network's first layer is given `steps`, for which it is shown an image or frames."""
        if steps is None:
            return norm_neuron(self.bn, self.neuron, spike_conv(self.weights, x))
        return first_layer(self.weights, self.bn, self.neuron, x, steps)

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        """Adds its nodes, whose names begin with `name`, to a graph in which it reads `x`."""
        current = build.weights(f"{name}weights", x, self.weights, self.bn)
        return build.neuron(f"{name}neuron", current, self.neuron)


class FeedForward(Network):
    """Spiking layers in a row and a classifier; a subclass makes the layers."""

    flattens = False  # whether the first layer reads all pixels of the image

    def __init__(
        self, parts: Parts, channels: int, layers: list[Layer], features: int, classes: int
    ) -> None:
        super().__init__(parts, channels)
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(features, classes)
        self._initialize()
        if parts.model.start == "identity":
            for layer in layers[1:]:  # the first has another number of inputs
                add_identity(layer.weights)

    def features(self, images: Tensor, steps: int) -> Tensor:
        first, *rest = self.layers
        spikes = first(images, steps)
        for layer in rest:
            spikes = layer(spikes)
        return spikes.mean((3, 4)) if spikes.ndim == 5 else spikes

    def graph(self) -> Graph:
        build = Builder()
        value = build.add("flatten", "flatten", build.input) if self.flattens else build.input
        value = build.row("layers", value, self.layers)
        value = value if self.flattens else build.add("mean", "mean", value)
        return build.read_by(self.fc, value)


class PlainNet(FeedForward):
    """3x3 convolutions of one width; the image is halved at 1/3 and 2/3 of the depth."""

    takes_any_size = True

    def __init__(
        self, parts: Parts, *, depth: int, width: int, classes: int, channels: int
    ) -> None:
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


class MLP(FeedForward):
    """Fully connected layers of one width; the first reads all pixels of the image."""

    flattens = True

    def __init__(
        self,
        parts: Parts,
        *,
        depth: int,
        width: int,
        classes: int,
        channels: int,
        image_size: int,
    ) -> None:
        pixels = channels * image_size**2
        layers = [
            Layer(
                parts.linear(width if i else pixels, width), parts.norm(width), parts.neuron(width)
            )
            for i in range(depth)
        ]
        super().__init__(parts, channels, layers, width, classes)

    def features(self, images: Tensor, steps: int) -> Tensor:
        return super().features(images.flatten(-3), steps)
