"""Spiking ResNets: torchvision's and the CIFAR-style ones, with three kinds of residual block.

He et al. 2015 (arXiv 1512.03385); a bottleneck has its stride in the 3x3 convolution, as in
torchvision. With ReLU neurons and plain blocks they are torchvision's ResNets, name by name.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spiketriton.models.layers import (
    Parts,
    fire,
    first_layer,
    folded,
    gives_current,
    kept_paths,
    norm_current_neuron,
    norm_neuron,
    over_time,
    spike_conv,
)
from spiketriton.models.memory import PackedSpikes, mark_spikes
from spiketriton.models.network import Network
from spiketriton.neurons import Norm, SpikingNeuron


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


def sides(architecture: Architecture, stem: str, image_size: int) -> list[int]:
    """The side of the maps at the end of each stage."""
    halvings = {"cifar": 0, "strided": 1, "imagenet": 2}[stem]
    found = []
    for stage in range(len(architecture.blocks)):
        halvings += stage > 0 or stem == "strided"
        found.append(-(-image_size // 2**halvings))
    return found


def pixel_warning(name: str, stem: str, image_size: int) -> str | None:
    """What to change of a ResNet whose last stages see single pixels; None where they see more."""
    architecture = ARCHITECTURES[name]
    pixels = [
        f"layer{i}" for i, side in enumerate(sides(architecture, stem, image_size), 1) if side < 2
    ]
    if not pixels:
        return None

    def enough(stem: str, size: int) -> bool:
        return sides(architecture, stem, size)[-1] > 1

    changes = ["model.stem=cifar"] if stem != "cifar" and enough("cifar", image_size) else []
    changes.append(
        f"data.image_size={next(s for s in itertools.count(image_size) if enough(stem, s))} or more"
    )
    return (
        f"{name} with the stem {stem!r} makes maps of one pixel of images of {image_size}x{image_size} in "
        f"{' and '.join(pixels)}: 3x3 convolutions see nothing there but their middle. Try {', or '.join(changes)}"
    )


def convolutions(width: int, stride: int, bottleneck: bool) -> list[tuple[int, int, int]]:
    """Kernel, channels out and stride of each convolution of a block."""
    if bottleneck:
        return [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
    return [(3, width, stride), (3, width, 1)]


def add_stages(
    net: nn.Module, architecture: Architecture, strided: bool, make: Callable[..., Any]
) -> tuple[list[str], int]:
    """Adds the stages `layer1`, `layer2`, ... to a network; returns their names, and the channels at their end.

    Args:
        strided: whether the first stage halves the image too, as all others do.
        make: makes a block of (channels_in, width, stride).
    """
    names, channels = [], architecture.width
    for i, count in enumerate(architecture.blocks):
        blocks = []
        for j in range(count):
            stride = 2 if (i > 0 or strided) and j == 0 else 1
            blocks.append(make(channels, architecture.width << i, stride))
            channels = blocks[-1].channels_out
        names.append(f"layer{i + 1}")
        net.add_module(names[-1], nn.Sequential(*blocks))
    return names, channels


class Block(nn.Module):
    """A residual block, [T, B, C, H, W] -> [T, B, C', H', W']; a subclass defines `forward`.

    Layers are registered in the order in which spikes flow: the shortcut comes before the last layer.

    Args:
        parts: makes the layers.
        channels_in: C.
        width: channels inside the block.
        stride: of the first 3x3 convolution and of the shortcut.
        bottleneck: convolutions 1x1, 3x3, 1x1 and C' = 4 * width; else 3x3, 3x3 and C' = width.
    """

    sums_currents = True  # whether the last norm and the shortcut are two terms of one current
    drop = 0.0  # share of the images for which training leaves out the branch
    fires_first = False  # whether each neuron is in front of its convolution, not behind its norm

    def __init__(
        self, parts: Parts, channels_in: int, width: int, stride: int, bottleneck: bool
    ) -> None:
        super().__init__()
        plan = convolutions(width, stride, bottleneck)
        self.depth = len(plan)
        self.channels_out = plan[-1][1]
        self.straight_through = parts.straight_through
        self.connect = parts.connect
        channels = channels_in
        for i, (kernel, channels_next, conv_stride) in enumerate(plan, start=1):
            if i == self.depth:
                self.downsample = None
                if stride != 1 or channels_in != self.channels_out:
                    self.downsample = self._downsample(parts, channels_in, stride)
            before_sum = i == self.depth and self.sums_currents
            self.add_module(f"conv{i}", parts.conv(channels, channels_next, kernel, conv_stride))
            self.add_module(f"bn{i}", parts.norm(channels_next, before_sum=before_sum))
            self.add_module(
                f"neuron{i}", parts.neuron(channels if self.fires_first else channels_next)
            )
            channels = channels_next

    def _downsample(self, parts: Parts, channels_in: int, stride: int) -> nn.ModuleList:
        return nn.ModuleList(
            [
                parts.conv(channels_in, self.channels_out, 1, stride),
                parts.norm(self.channels_out, before_sum=self.sums_currents),
            ]
        )

    def start(self, gain: float, bias: float) -> None:
        """Sets weight and bias of the last norm.

        With gain 0 the block passes its input on (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        """
        norm = self.stages()[-1][1]
        assert isinstance(norm, Norm), "a block without a norm has no start"
        nn.init.constant_(norm.weight, gain)
        nn.init.constant_(norm.bias, bias)

    def stages(self) -> list[list[nn.Module]]:
        """Convolution, norm and neuron of each layer, in forward order."""
        numbers = range(1, self.depth + 1)
        return [[getattr(self, f"{kind}{i}") for kind in ("conv", "bn", "neuron")] for i in numbers]

    def kept(self, x: Tensor) -> Tensor | None:
        """What the branch is multiplied by, if anything."""
        return kept_paths(x, self.drop) if self.drop and self.training else None

    def last_current(self, spikes: Tensor) -> Tensor:
        """Spikes [T, B, C, H, W] -> output of the last convolution, before its norm."""
        *inner, (last_conv, _, _) = self.stages()
        for conv, norm, neuron in inner:
            spikes = norm_neuron(norm, neuron, spike_conv(conv, spikes))
        return spike_conv(last_conv, spikes)


class PlainBlock(Block):
    """out = neuron(BN(conv(...)) + shortcut): the shortcut's spikes are added to the current.

    The neuron passes on a spike of the shortcut, but of its gradient only what the surrogate leaves, at
    every block anew. `straight_through`: the gradient of the shortcut's spikes goes around the neuron.
    """

    def forward(self, x: Tensor) -> Tensor:
        current, shortcut, straight = self.last_current(x), x, self.straight_through
        if self.downsample is not None:  # a current, not spikes: it has no value behind the neuron
            conv, norm = self.downsample
            shortcut, straight = norm(spike_conv(conv, x)), False
        _, norm, neuron = self.stages()[-1]
        return norm_neuron(
            norm, neuron, current, shortcut, straight_through=straight, kept=self.kept(current)
        )


class SEWBlock(Block):
    """out = neuron(BN(conv(...))) + shortcut: spikes are added, so the output is whole numbers.

    SEW-ResNet (Fang et al. 2021, arXiv 2102.04159) with ADD. With `connect` "and" the output is s * shortcut,
    with "iand" (1 - s) * shortcut, and stays spikes. A shortcut that changes shape ends in
    a neuron of its own.
    """

    sums_currents = False

    def _downsample(self, parts: Parts, channels_in: int, stride: int) -> nn.ModuleList:
        return (
            super()._downsample(parts, channels_in, stride).append(parts.neuron(self.channels_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        current, shortcut = self.last_current(x), x
        if self.downsample is not None:
            conv, norm, neuron = self.downsample
            shortcut = norm_neuron(norm, neuron, spike_conv(conv, x))
        _, norm, neuron = self.stages()[-1]
        if self.connect == "add":
            return norm_neuron(norm, neuron, current, spike_add=shortcut, kept=self.kept(current))
        both = norm_neuron(norm, neuron, current) * shortcut
        return mark_spikes(both if self.connect == "and" else shortcut - both)


class MSBlock(Block):
    """out = BN(conv(... neuron(x))) + shortcut: neurons fire before convolutions, currents add up.

    MS-ResNet (Hu et al. 2021, arXiv 2112.08954). A shortcut that changes shape is BN(conv1x1) of
    the currents x, as in the authors' code, and so multiplies analog values.
    """

    fires_first = True

    def forward(
        self, x: Tensor, spikes: Tensor | None = None, reader: SpikingNeuron | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Currents x -> currents; with `reader` also the spikes of that neuron, which reads them.

        `spikes`: those of the block's own first neuron, where the block in front has made them.
        """
        convs, norms, neurons = zip(*self.stages(), strict=True)
        if spikes is None:
            spikes = fire(neurons[0], x)
        for conv, norm, neuron in zip(convs[:-1], norms[:-1], neurons[1:], strict=True):
            spikes = norm_neuron(norm, neuron, spike_conv(conv, spikes))
        shortcut = x
        if self.downsample is not None:
            conv, norm = self.downsample
            shortcut = norm(folded(conv, x))
        current = spike_conv(convs[-1], spikes)
        if reader is None:
            branch, kept = norms[-1](current), self.kept(current)
            return (branch if kept is None else branch * kept) + shortcut
        return norm_current_neuron(norms[-1], reader, current, shortcut)


def recomputed(
    block: nn.Module,
    x: Tensor,
    *handed: Any,
    on_save: Callable[[Tensor], None] | None = None,
) -> Any:
    """`block(x, *handed)`, keeping x, and of spikes that are handed on the bits, for backward.

    Backward recomputes the rest, bit for bit. Batch norm's running statistics are updated the first
    time only. `on_save`: see `PackedSpikes`.
    """
    spikes = handed[0] if handed else None
    binary = all(m.is_binary for m in block.modules() if isinstance(m, SpikingNeuron))
    packs = spikes is not None and binary and not PackedSpikes.open  # else they are marked already
    with PackedSpikes(on_save) if packs else contextlib.nullcontext():
        if packs:
            assert spikes is not None
            mark_spikes(spikes)
        return checkpoint(
            block,
            x,
            *handed,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in a block is random
            context_fn=lambda: (contextlib.nullcontext(), _untracked(block)),
        )


@contextlib.contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, Norm)]
    for norm in norms:
        norm.tracks = False
    try:
        yield
    finally:
        for norm in norms:
            norm.tracks = True


BLOCKS: dict[str, type[Block]] = {"plain": PlainBlock, "sew": SEWBlock, "ms": MSBlock}


class BlockNetwork(Network):
    """What networks of residual blocks share. With MS blocks currents flow between the blocks.

    Between two MS blocks one operation gives the sum of currents and the spikes of the neuron that
    reads it: norm, sum and neuron move 5 tensors forward and 8 back, one by one they move 8 and 11.
    """

    checkpoint_blocks: bool
    neuron1: nn.Module | None  # of the stem; none with MS blocks
    neuron_last: nn.Module | None  # behind the last MS block

    def blocks(self) -> list[tuple[str, Block]]:
        """Dotted name and block, in forward order."""
        return [(name, m) for name, m in self.named_modules() if isinstance(m, Block)]

    def last_of_blocks(self) -> list[str]:
        names = {neuron: name for name, neuron in self.spiking_layers()}
        neurons = [block.stages()[-1][2] for _, block in self.blocks()]
        return [names[neuron] for neuron in (self.neuron1, *neurons) if neuron in names]

    def drop_paths(self) -> None:
        """Of the last block the recipe's share of images, of the others less by their depth."""
        blocks = self.blocks()
        for number, (_, block) in enumerate(blocks, 1):
            block.drop = self.drop_path * number / len(blocks)

    def start_blocks(self, gain: float, bias: float = 0.0) -> None:
        for _, block in self.blocks():
            block.start(gain, bias)

    def through(
        self, chain: Iterable[nn.Module], x: Tensor, pools: Sequence[nn.Module] | nn.ModuleList = ()
    ) -> Tensor:
        """x [T, B, C, H, W] through blocks and `neuron_last`; the first blocks have a pool behind them."""
        blocks = cast(list[Block], list(chain))
        training = self.training and torch.is_grad_enabled() and not self.streaming
        recompute = self.checkpoint_blocks and training
        run = partial(recomputed, on_save=self.on_save) if recompute else _call
        readers = [*(block.stages()[0][2] for block in blocks[1:]), self.neuron_last]
        spikes = None
        for number, (block, reader) in enumerate(zip(blocks, readers, strict=True)):
            currents, pooled = isinstance(block, MSBlock), number < len(pools)
            joins = currents and not pooled and gives_current(block.stages()[-1][1], reader)
            joins = joins and not (block.drop and block.training)
            out = run(block, x, *((spikes, reader if joins else None) if currents else ()))
            x, spikes = out if joins else (out, None)
            if pooled:
                x = folded(pools[number], x)
        if self.neuron_last is None:
            return x
        return fire(self.neuron_last, x) if spikes is None else spikes


def _call(block: nn.Module, *given: object) -> Any:
    return block(*given)


class ResNet(BlockNetwork):
    """A spiking ResNet.

    Args:
        parts: makes the layers.
        architecture: one of `ARCHITECTURES`, its width perhaps changed.
        block: "plain", "sew" or "ms". With "ms" currents flow between blocks: the stem has no
            neuron and one neuron fires before the classifier.
        stem: "imagenet" (7x7 stride 2, neuron, max-pool), "strided" (the same without the pool, and
            the first block has stride 2 in its place) or "cifar" (3x3, neuron).
        classes: K.
        channels: of the images.
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
        width = architecture.width
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = parts.conv(channels, width, kernel, stride)
        self.bn1 = parts.norm(width)
        self.neuron1 = None if block == "ms" else parts.neuron(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        make = partial(BLOCKS[block], parts, bottleneck=architecture.bottleneck)
        self.stage_names, channels_in = add_stages(self, architecture, stem == "strided", make)
        self.checkpoint_blocks = parts.checkpoint_blocks
        self.neuron_last = parts.neuron(channels_in) if block == "ms" else None
        self.fc = nn.Linear(channels_in, classes)
        self._initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        x = first_layer(self.conv1, self.bn1, self.neuron1, images, steps)
        if self.maxpool is not None:
            x = folded(self.maxpool, x)
            if self.is_spiking and self.neuron1 is not None:
                x = mark_spikes(x)  # a maximum of spikes is a spike
        stages = map(self.get_submodule, self.stage_names)
        blocks = (block for stage in stages for block in stage.children())
        return self.through(blocks, over_time(x, steps)).mean((3, 4))


class ResNet19(ResNet):
    """The ResNet-19 of tdBN (Zheng et al. 2021, arXiv 2011.05280): two fully connected layers behind the pool.

    Stages of 3, 3 and 2 blocks with 128, 256 and 512 channels, 256 features between the two, as in the code
    of TET and TEBN: a linear layer with a bias and a neuron, without a norm.
    """

    def __init__(self, parts: Parts, architecture: Architecture, **options: Any) -> None:
        super().__init__(parts, architecture, **options)
        features, classes = self.fc.in_features, self.fc.out_features
        self.fc1 = nn.Linear(features, features // 2)
        self.neuron_fc1 = parts.neuron(features // 2)
        self.fc = nn.Linear(features // 2, classes)
        self._initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        return fire(self.neuron_fc1, spike_conv(self.fc1, super().features(images, steps)))
