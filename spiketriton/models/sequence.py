"""`sequence`: linear layers over sequences [T, B, C], as deep and wide as the recipe says, and a linear readout."""

from torch import Tensor, nn

from spiketriton import plugins
from spiketriton.models.feedforward import FeedForward, Layer
from spiketriton.models.graph import Builder, Graph
from spiketriton.models.layers import Parts
from spiketriton.system.errors import UserError
from spiketriton_kernels.nn import Delays, Recurrent


@plugins.model("sequence")
class SequenceNet(FeedForward):
    """`model.depth` layers of `model.width` neurons, each linear -> norm -> neuron; the classifier reads every step.

    A layer's spikes are all that the next one sees of the past: memory is in its neurons, with `model.delays` in
    the synapses of its linear layer, each of which has a delay of its own, and with `model.recurrent` in the spikes
    that come back to it.
    """

    leaks = False  # which forgets: a sequence is to be remembered

    def __init__(self, parts: Parts, *, classes: int, channels: int, image_size: int) -> None:
        width, before = parts.model.width or 128, channels
        layers = []
        for _ in range(parts.model.depth):
            synapses, neuron = _synapses(parts, before, width), _neuron(parts, width)
            layers.append(Layer(synapses, parts.norm(width), neuron))
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


def _neuron(parts: Parts, width: int) -> nn.Module:
    neuron = parts.neuron(width)
    if not parts.model.recurrent:
        return neuron
    try:
        return Recurrent(neuron, width)
    except TypeError as error:  # a neuron of one's own
        raise UserError(f"model.recurrent = true: {error}") from None
