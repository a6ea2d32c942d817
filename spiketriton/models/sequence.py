"""`sequence`: linear layers over sequences [T, B, C], as deep and wide as the recipe says, and a linear readout."""

from torch import Tensor, nn

from spiketriton import plugins
from spiketriton.models.feedforward import FeedForward, Layer
from spiketriton.models.graph import Builder, Graph
from spiketriton.models.layers import Parts
from spiketriton_kernels.nn import Delays


@plugins.model("sequence")
class SequenceNet(FeedForward):
    """`model.depth` layers of `model.width` neurons, each linear -> norm -> neuron; the classifier reads every step.

    A layer's spikes are all that the next one sees of the past: memory is in its neurons, and with `model.delays` in
    the synapses of its linear layer, each of which has a delay of its own.
    """

    def __init__(self, parts: Parts, *, classes: int, channels: int, image_size: int) -> None:
        width, before = parts.model.width or 128, channels
        layers = []
        for _ in range(parts.model.depth):
            layers.append(
                Layer(_synapses(parts, before, width), parts.norm(width), parts.neuron(width))
            )
            before = width
        super().__init__(parts, channels, layers, width, classes)

    def features(self, images: Tensor, steps: int) -> Tensor:
        first, *rest = self.layers
        x = first(images, steps)
        for layer in rest:
            x = layer(x)
        return x

    def graph(self) -> Graph:
        build = Builder()
        return build.read_by(self.fc, build.row("layers", build.input, self.layers))


def _synapses(parts: Parts, before: int, width: int) -> nn.Linear | Delays:
    linear, longest = parts.linear(before, width), parts.model.delays
    return Delays(before, width, longest, bias=linear.bias is not None) if longest else linear
