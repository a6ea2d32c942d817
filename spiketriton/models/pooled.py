"""Networks with pools between their layers: VGGs, the CSNN of PSN, and 7B-Net."""

from typing import cast

from torch import Tensor, nn

from spiketriton.models.blocks import BLOCKS, Block, BlockNetwork
from spiketriton.models.feedforward import Layer
from spiketriton.models.graph import Builder, Graph, Kind, Value
from spiketriton.models.layers import Parts, first_layer, folded, over_time
from spiketriton.models.memory import mark_spikes
from spiketriton.models.network import Network

Plan = tuple[int | str, ...]
"""Channels of a 3x3 convolution with norm and neuron, in units of the first one's, or a pool: "avg" or "max"."""

PLANS: dict[str, tuple[Plan, tuple[int, ...], int]] = {
    # plan; how many features a hidden layer reads for each of its own; width
    "vggsnn": ((1, 2, "avg", 4, 4, "avg", 8, 8, "avg", 8, 8, "avg"), (), 64),
    "vgg11": ((1, "max", 2, "max", 4, 4, "max", 8, 8, "max", 8, 8, "max"), (), 64),
    "vgg16": (
        (1, 1, "max", 2, 2, "max", 4, 4, 4, "max", 8, 8, 8, "max", 8, 8, 8, "max"),
        (),
        64,
    ),
    "csnn": ((1, 1, 1, "avg", 1, 1, 1, "avg"), (4,), 256),
}
_POOLS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


def _flattened(build: Builder, net: "VGG | BlockNet", value: Value) -> Value:
    """Layers or blocks with pools behind some of them, up to the flattened image."""
    for number, layer in enumerate(net.layers):
        value = cast(Layer | Block, layer).describe(build, f"layers.{number}.", value)
        if number + 1 in net.pooled_after:
            pool = net.pooled_after.index(number + 1)
            value = build.add(f"pools.{pool}", net.pool_kind, value, net.pools[pool])
    return value


class VGG(Network):
    """3x3 convolutions with norm and neuron, pools that halve the image, and linear layers on what is left of it.

    `vggsnn` is Deng et al. 2022 (TET, arXiv 2202.11946). `vgg11` and `vgg16` are the convolutions of Simonyan &
    Zisserman 2014 (arXiv 1409.1556) with batch norm and one linear layer. `csnn` is the network of Fang et al. 2023
    (PSN, arXiv 2304.12760) for CIFAR-10, with a hidden layer. Pools without a side left to halve are left out.
    """

    def __init__(
        self,
        parts: Parts,
        plan: Plan,
        hidden: tuple[int, ...],
        *,
        width: int,
        classes: int,
        channels: int,
        image_size: int,
    ) -> None:
        super().__init__(parts, channels)
        layers: list[nn.Module] = []
        pools: list[nn.Module] = []
        side = image_size
        self.pooled_after: list[int] = []  # the numbers of layers behind which there is a pool
        before = channels
        for entry in plan:
            if isinstance(entry, str):
                if side > 1:
                    pools.append(_POOLS[entry](2))
                    self.pooled_after.append(len(layers))
                    side //= 2
                continue
            after = width * entry
            layers.append(
                Layer(parts.conv(before, after, 3), parts.norm(after), parts.neuron(after))
            )
            before = after
        self.layers, self.pools = nn.ModuleList(layers), nn.ModuleList(pools)
        features = before * side**2
        self.hidden = nn.ModuleList()
        for share in hidden:
            after = max(1, features // share)
            self.hidden.append(
                Layer(nn.Linear(features, after), nn.Identity(), parts.neuron(after))
            )
            features = after
        self.fc = nn.Linear(features, classes)
        self._initialize()

    @property
    def pool_kind(self) -> Kind:
        return (
            "maxpool" if any(isinstance(pool, nn.MaxPool2d) for pool in self.pools) else "avgpool"
        )

    def features(self, images: Tensor, steps: int) -> Tensor:
        first, *rest = self.layers
        x = self._pooled(first(images, steps), 1)
        for number, layer in enumerate(rest, 2):
            x = self._pooled(layer(x), number)
        x = x.flatten(2)
        for layer in self.hidden:
            x = layer(x)
        return x

    def graph(self) -> Graph:
        build = Builder()
        value = _flattened(build, self, build.input)
        value = build.add("flatten", "flatten", value)
        return build.read_by(self.fc, build.row("hidden", value, self.hidden))

    def _pooled(self, x: Tensor, number: int) -> Tensor:
        if number not in self.pooled_after:
            return x
        out = folded(self.pools[self.pooled_after.index(number)], x)
        if self.is_spiking and self.pool_kind == "maxpool":
            return mark_spikes(out)  # a maximum of spikes is a spike
        return out


class BlockNet(BlockNetwork):
    """7B-Net, the network for DVS Gesture of Fang et al. 2021 (SEW-ResNet, arXiv 2102.04159), as in their code.

    A 1x1 stem, seven blocks of two 3x3 convolutions of one width, a max-pool behind each while the image has sides to
    halve, and a linear layer on what is left.
    """

    number_of_blocks = 7
    pool_kind: Kind = "maxpool"

    def __init__(
        self,
        parts: Parts,
        *,
        block: str,
        width: int,
        classes: int,
        channels: int,
        image_size: int,
    ) -> None:
        super().__init__(parts, channels)
        self.conv1 = parts.conv(channels, width, 1)
        self.bn1 = parts.norm(width)
        self.neuron1 = None if block == "ms" else parts.neuron(width)
        self.layers = nn.ModuleList(
            BLOCKS[block](parts, width, width, 1, False) for _ in range(self.number_of_blocks)
        )
        halvings = min(self.number_of_blocks, image_size.bit_length() - 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in range(halvings))
        self.pooled_after = list(range(1, halvings + 1))
        self.checkpoint_blocks = parts.model.checkpoint_blocks
        self.neuron_last = parts.neuron(width) if block == "ms" else None
        self.fc = nn.Linear(width * (image_size >> halvings) ** 2, classes)
        self._initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        x = over_time(first_layer(self.conv1, self.bn1, self.neuron1, images, steps), steps)
        return self.through(self.layers, x, self.pools).flatten(2)

    def graph(self) -> Graph:
        build = Builder()
        value = _flattened(build, self, self.stem(build))
        value = build.neuron("neuron_last", value, self.neuron_last)
        return build.read_by(self.fc, build.add("flatten", "flatten", value))
