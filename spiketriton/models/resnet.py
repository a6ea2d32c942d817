"""Spiking ResNets: torchvision's and the CIFAR-style ones, of any of the blocks, and 7B-Net.

He et al. 2015 (arXiv 1512.03385); a bottleneck has its stride in the 3x3 convolution, as in
torchvision. With ReLU neurons and plain blocks they are torchvision's ResNets, name by name.
"""

from typing import Any, NamedTuple

from torch import nn

from spiketriton import plugins
from spiketriton.models.blocks import BLOCKS, BlockNetwork
from spiketriton.models.layers import Parts
from spiketriton.system.errors import warn_once


class Architecture(NamedTuple):
    blocks: tuple[int, ...]  # residual blocks of each stage
    bottleneck: bool
    width: int  # channels of the first stage; each later stage has twice as many


ARCHITECTURES = {
    "resnet18": Architecture((2, 2, 2, 2), False, 64),
    "resnet34": Architecture((3, 4, 6, 3), False, 64),
    "resnet50": Architecture((3, 4, 6, 3), True, 64),
    "resnet101": Architecture((3, 4, 23, 3), True, 64),
    "resnet8": Architecture((1, 1, 1), False, 16),
    "resnet19": Architecture((3, 3, 2), False, 128),
    "resnet20": Architecture((3, 3, 3), False, 16),
    "resnet32": Architecture((5, 5, 5), False, 16),
    "resnet44": Architecture((7, 7, 7), False, 16),
    "resnet56": Architecture((9, 9, 9), False, 16),
    "resnet110": Architecture((18, 18, 18), False, 16),
}

IMAGENET_STEM_FROM = 96  # pixels; below, the last stage would see few pixels, or a single one


def pixel_warning(name: str, stem: str, image_size: int) -> str | None:
    """What to change of a ResNet whose last stage sees single pixels; None where it sees more."""
    stages = len(ARCHITECTURES[name].blocks) - 1
    halvings = stages + 2 * (stem != "cifar")
    if image_size > 1 << halvings:
        return None
    other = "model.stem=cifar, or " if stem != "cifar" and image_size > 1 << stages else ""
    return (
        f"{name} with the stem {stem!r} makes maps of one pixel of images of {image_size}x{image_size}: 3x3 "
        f"convolutions see nothing there but their middle. Try {other}data.image_size={(1 << halvings) + 1} or more"
    )


class ResNet(BlockNetwork):
    """A spiking ResNet of an architecture, its width perhaps changed.

    block: with "ms" and "preact" currents flow between blocks: the stem has no neuron and one fires before the
    classifier; with "preact" the norms stand in front of the neurons there, too.
    stem: "imagenet" (7x7 stride 2, neuron, max-pool), "strided" (the same without the pool, and the first block has
    stride 2 in its place) or "cifar" (3x3, neuron).
    """

    takes_any_size = True

    def __init__(
        self,
        parts: Parts,
        architecture: Architecture,
        *,
        block: str,
        stem: str,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__(parts, channels)
        (stages, bottleneck, width), kind = architecture, BLOCKS[block]
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = parts.conv(channels, width, kernel, stride)
        self._begin(parts, kind, width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        before = width
        for i, count in enumerate(stages):
            stage = nn.Sequential()
            for j in range(count):
                stride = 2 if (i > 0 or stem == "strided") and j == 0 else 1
                stage.append(made := kind(parts, before, width << i, stride, bottleneck))
                before = made.channels_out
            self.stage_names.append(f"layer{i + 1}")
            self.add_module(f"layer{i + 1}", stage)
        self._end(parts, kind, before)
        self.fc = nn.Linear(before, classes)
        if kind.norms_first:
            nn.init.zeros_(self.fc.bias)
        self._initialize()


class ResNet19(ResNet):
    """The ResNet-19 of tdBN (Zheng et al. 2021, arXiv 2011.05280): two fully connected layers behind the pool.

    As in the code of TET and TEBN, the first is a linear layer with a bias and a neuron, without a norm.
    """

    def __init__(self, parts: Parts, architecture: Architecture, **options: Any) -> None:
        super().__init__(parts, architecture, **options)
        features, classes = self.fc.in_features, self.fc.out_features
        self.fc1 = nn.Linear(features, features // 2)
        self.neuron_fc1 = parts.neuron(features // 2)
        self.fc = nn.Linear(features // 2, classes)
        self._initialize()


@plugins.model(*ARCHITECTURES)
def _of_recipe(parts: Parts, *, classes: int, channels: int, image_size: int) -> ResNet:
    model, architecture = parts.model, ARCHITECTURES[parts.model.name]
    if model.width:
        architecture = architecture._replace(width=model.width)
    stem = model.stem
    if stem == "auto":
        large = len(architecture.blocks) == 4 and image_size >= IMAGENET_STEM_FROM
        stem = "imagenet" if large else "cifar"
    if warning := pixel_warning(model.name, stem, image_size):
        warn_once(warning)
    kind = ResNet19 if model.name == "resnet19" else ResNet
    return kind(
        parts, architecture, block=model.block, stem=stem, classes=classes, channels=channels
    )


@plugins.model("net7b")
class BlockNet(BlockNetwork):
    """7B-Net, the network for DVS Gesture of Fang et al. 2021 (SEW-ResNet, arXiv 2102.04159), as in their code.

    A 1x1 stem, seven blocks of two 3x3 convolutions of one width, a max-pool behind each while the image has sides to
    halve, and a linear layer on what is left.
    """

    reads = "flatten"
    number_of_blocks = 7

    def __init__(self, parts: Parts, *, classes: int, channels: int, image_size: int) -> None:
        super().__init__(parts, channels)
        kind, width = BLOCKS[parts.model.block], parts.model.width or 32
        self.conv1 = parts.conv(channels, width, 1)
        self._begin(parts, kind, width)
        self.layers = nn.ModuleList(
            kind(parts, width, width, 1, False) for _ in range(self.number_of_blocks)
        )
        self.stage_names, side = ["layers"], image_size
        for _, block in self.blocks():
            if side > 1:
                block.pool = nn.MaxPool2d(2)
                side //= 2
        self._end(parts, kind, width)
        self.fc = nn.Linear(width * side**2, classes)
        self._initialize()
