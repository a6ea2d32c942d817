"""The networks of the papers on event data, with pools between their layers: VGGSNN and 7B-Net.

Both also take constant images.
"""

from torch import Tensor, nn

from spiketriton.models.feedforward import Layer
from spiketriton.models.layers import Parts, first_layer, folded, over_time
from spiketriton.models.network import Network
from spiketriton.models.resnet import BLOCKS, BlockNetwork


class VGGSNN(Network):
    """Eight 3x3 convolutions with norm and neuron, an average pool after every second one.

    Deng et al. 2022 (TET, arXiv 2202.11946): channels 64, 128, 256, 256, 512, 512, 512, 512 for
    width 64, and one linear layer on all that is left of the image, a sixteenth of its side.
    """

    smallest = 16  # pixels

    def __init__(
        self, parts: Parts, *, width: int, classes: int, channels: int, image_size: int
    ) -> None:
        super().__init__(parts, channels)
        widths = [width * factor for factor in (1, 2, 4, 4, 8, 8, 8, 8)]
        self.layers = nn.ModuleList(
            Layer(parts.conv(before, after, 3), parts.norm(after), parts.neuron())
            for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.pools = nn.ModuleList(nn.AvgPool2d(2) for _ in range(4))
        side = image_size >> 4
        self.fc = nn.Linear(widths[-1] * side**2, classes)
        self._initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        first, *rest = self.layers
        x = first(images, steps)
        for number, layer in enumerate(rest, 2):
            x = layer(x)
            if number % 2 == 0:
                x = folded(self.pools[number // 2 - 1], x)
        return x.flatten(2)


class BlockNet(BlockNetwork):
    """Seven small residual blocks of one width, each followed by a max-pool that halves the image.

    The network for DVS Gesture of Fang et al. 2021 (SEW-ResNet, arXiv 2102.04159), "7B-Net", with
    `block` "sew" and width 32: as in the authors' code, the stem is a 1x1 convolution with norm and
    neuron, a block is two 3x3 convolutions, and a linear layer reads what is left of the image. There
    are no more pools than the image has sides to halve: 7 from 128 pixels on.
    """

    number_of_blocks = 7

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
        self.neuron1 = None if block == "ms" else parts.neuron()
        self.layers = nn.ModuleList(
            BLOCKS[block](parts, width, width, 1, False) for _ in range(self.number_of_blocks)
        )
        halvings = min(self.number_of_blocks, image_size.bit_length() - 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in range(halvings))
        self.checkpoint_blocks = parts.checkpoint_blocks
        self.neuron_last = parts.neuron() if block == "ms" else None
        self.fc = nn.Linear(width * (image_size >> halvings) ** 2, classes)
        self._initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        x = over_time(first_layer(self.conv1, self.bn1, self.neuron1, images, steps), steps)
        return self.through(self.layers, x, self.pools).flatten(2)
