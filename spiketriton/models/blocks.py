"""Residual blocks, by `model.block`, and what the networks that are made of them share."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spiketriton.errors import UserError
from spiketriton.models.graph import Builder, Value
from spiketriton.models.layers import (
    Parts,
    fire,
    folded,
    gives_current,
    kept_paths,
    norm_current_neuron,
    norm_neuron,
    spike_conv,
)
from spiketriton.models.memory import PackedSpikes, mark_spikes
from spiketriton.models.network import Network
from spiketriton.neurons import Norm, SpikingNeuron


def convolutions(width: int, stride: int, bottleneck: bool) -> list[tuple[int, int, int]]:
    """Kernel, channels out and stride of each convolution of a block."""
    if bottleneck:
        return [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
    return [(3, width, stride), (3, width, 1)]


class Block(nn.Module):
    """A residual block, [T, B, C, H, W] -> [T, B, C', H', W']; a subclass defines `forward` and `describe`.

    Layers are registered in the order in which spikes flow: the shortcut comes before the last layer. Convolutions
    are 3x3, 3x3 and C' = width, or with `bottleneck` 1x1, 3x3, 1x1 and C' = 4 * width; the first 3x3 has the stride.
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
        around = parts.model.shortcut_gradient == "straight_through"
        self.straight_through = parts.spiking and around
        self.connect = parts.model.connect
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

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        """Adds its nodes, whose names begin with `name`, to a graph in which it reads `x`."""
        raise NotImplementedError

    def _branch(self, build: Builder, name: str, value: Value) -> Value:
        """Its convolutions and the neurons in front of them or between them."""
        for i, (conv, norm, neuron) in enumerate(self.stages(), start=1):
            if self.fires_first:
                value = build.neuron(f"{name}neuron{i}", value, neuron)
            value = build.weights(f"{name}conv{i}", value, conv, norm)
            if not self.fires_first and i < self.depth:
                value = build.neuron(f"{name}neuron{i}", value, neuron)
        return value

    def _shortcut(self, build: Builder, name: str, x: Value) -> Value:
        """Up to its norm: x itself where the block keeps the shape."""
        if self.downsample is None:
            return x
        return build.weights(f"{name}downsample.0", x, self.downsample[0], self.downsample[1])

    def _last_neuron(self, build: Builder, name: str, current: Value) -> Value:
        return build.neuron(f"{name}neuron{self.depth}", current, self.stages()[-1][2])


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

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        current = self._branch(build, name, x) + self._shortcut(build, name, x)
        return self._last_neuron(build, name, current)


class SEWBlock(Block):
    """out = neuron(BN(conv(...))) + shortcut: spikes are added, so the output is whole numbers.

    SEW-ResNet (Fang et al. 2021, arXiv 2102.04159) with ADD; `connect` "and": s * shortcut, "iand": (1 - s) *
    shortcut. A shortcut that changes shape ends in a neuron of its own.
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

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        if self.connect != "add":
            raise UserError(
                f'model.connect = "{self.connect}" is no sum, and a graph by which operations are counted and '
                'networks converted and exported has sums alone; accepted: "add"'
            )
        current, shortcut = self._branch(build, name, x), self._shortcut(build, name, x)
        if self.downsample is not None:
            shortcut = build.neuron(f"{name}downsample.2", shortcut, self.downsample[2])
        return self._last_neuron(build, name, current) + shortcut


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

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        return self._branch(build, name, x) + self._shortcut(build, name, x)


def recomputed(
    block: nn.Module,
    x: Tensor,
    *handed: Any,
    on_save: Callable[[Tensor], None] | None = None,
) -> Any:
    """`block(x, *handed)`, keeping x, and of spikes that are handed on the bits; backward recomputes the rest.

    Batch norm's running statistics are updated the first time only. `on_save`: see `PackedSpikes`.
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
    conv1: nn.Module
    bn1: nn.Module
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

    def stem(self, build: Builder) -> Value:
        """Adds the nodes in front of the blocks to a graph."""
        current = build.weights("conv1", build.input, self.conv1, self.bn1)
        return build.neuron("neuron1", current, self.neuron1)

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


def _call(block: nn.Module, *given: object) -> Any:  # operator.call cannot be traced
    return block(*given)
