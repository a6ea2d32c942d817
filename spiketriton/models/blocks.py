"""Residual blocks, by `model.block`, and what the networks that are made of them share."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spiketriton.models.graph import Builder, Graph, Value
from spiketriton.models.layers import (
    Parts,
    fire,
    first_layer,
    folded,
    folded_beside,
    gives_current,
    norm_neuron,
    over_time,
)
from spiketriton.models.memory import PackedSpikes, mark_spikes
from spiketriton.models.network import Network
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton_kernels.backends import beside


class Block(nn.Module):
    """A residual block, [T, B, C, H, W] -> [T, B, C', H', W']; a subclass defines `forward`.

    Layers are registered in the order in which spikes flow: the shortcut comes before the last layer. Convolutions
    are 3x3, 3x3 and C' = width, or with `bottleneck` 1x1, 3x3, 1x1 and C' = 4 * width; the first 3x3 has the stride.
    """

    sums_currents = True  # whether the last norm and the shortcut are two terms of one current
    fires_first = False  # whether each neuron is in front of its convolution, not behind its norm
    norms_first = False  # whether each norm is there, too, so that the first one takes a sum
    shortcut_reads_spikes = False  # where it changes shape, those of the block's first neuron

    def __init__(
        self, parts: Parts, channels_in: int, width: int, stride: int, bottleneck: bool
    ) -> None:
        super().__init__()
        plan = [(3, width, stride), (3, width, 1)]  # kernel, channels out, stride
        if bottleneck:
            plan = [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
        self.depth, self.channels_out = len(plan), plan[-1][1]
        around = parts.model.shortcut_gradient == "straight_through"
        self.straight_through = parts.spiking and around
        self.pool: nn.MaxPool2d | None = None  # behind the block
        self.downsample: Any = None
        changes_shape = stride != 1 or channels_in != self.channels_out
        channels = channels_in
        for i, (kernel, channels_next, conv_stride) in enumerate(plan, start=1):
            last = i == self.depth
            if last and changes_shape and not self.norms_first:
                self.downsample = self._downsample(parts, channels_in, stride)
            conv = (channels, channels_next, kernel, conv_stride)
            for kind, module in self._layer(parts, conv, last).items():
                self.add_module(f"{kind}{i}", module)
            channels = channels_next
        if changes_shape and self.norms_first:
            self.downsample = parts.conv(channels_in, self.channels_out, 1, stride, normed=False)

    def _layer(
        self, parts: Parts, conv: tuple[int, int, int, int], last: bool
    ) -> dict[str, nn.Module]:
        channels_in, channels_out, *_ = conv
        return {
            "conv": parts.conv(*conv),
            "bn": parts.norm(channels_out, before_sum=last and self.sums_currents),
            "neuron": parts.neuron(channels_in if self.fires_first else channels_out),
        }

    def _downsample(self, parts: Parts, channels_in: int, stride: int) -> nn.ModuleList:
        conv = parts.conv(channels_in, self.channels_out, 1, stride)
        return nn.ModuleList([conv, parts.norm(self.channels_out, before_sum=self.sums_currents)])

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

    def last_current(self, spikes: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes [T, B, C, H, W] -> output of the last convolution, before its norm; and they, for the shortcut."""
        (first, norm, neuron), *rest = self.stages()
        current, shortcut = folded_beside(first, spikes)
        for conv, next_norm, next_neuron in rest:
            current = folded(conv, norm_neuron(norm, neuron, current))
            norm, neuron = next_norm, next_neuron
        return current, shortcut

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        """Adds its nodes, whose names begin with `name`, to a graph in which it reads `x`."""
        value = shortcut = read = x
        for i, (conv, norm, neuron) in enumerate(self.stages(), start=1):
            if self.fires_first:
                value = build.add(f"{name}neuron{i}", value, neuron)
                read = value if i == 1 and self.shortcut_reads_spikes else read
            value = build.add(f"{name}conv{i}", value, conv, norm)
            if not self.fires_first and i < self.depth:
                value = build.add(f"{name}neuron{i}", value, neuron)
        if self.downsample is not None:
            conv, norm, *fires = self.downsample
            shortcut = build.add(f"{name}downsample.0", read, conv, norm)
            for last in fires:
                shortcut = build.add(f"{name}downsample.2", shortcut, last)
        if self.fires_first:
            return value + shortcut
        value = value + shortcut if self.sums_currents else value
        value = build.add(f"{name}neuron{self.depth}", value, neuron)
        return value if self.sums_currents else value + shortcut


class PlainBlock(Block):
    """out = neuron(BN(conv(...)) + shortcut): the shortcut's spikes are added to the current.

    The neuron passes on a spike of the shortcut, but of its gradient only what the surrogate leaves, at
    every block anew. `straight_through`: the gradient of the shortcut's spikes goes around the neuron.
    """

    def forward(self, x: Tensor) -> Tensor:
        current, x = self.last_current(x)
        shortcut = x
        around = self.straight_through and torch.is_grad_enabled()
        if self.downsample is not None:  # a current, not spikes: it has no value behind the neuron
            conv, norm = self.downsample
            shortcut, around = norm(folded(conv, x)), False
        _, norm, neuron = self.stages()[-1]
        shortcut = shortcut.detach() if around else shortcut
        spikes = norm_neuron(norm, neuron, current, shortcut)
        if around:
            return mark_spikes(beside.hand_on(spikes, _StraightThrough.apply(spikes, x)))
        return spikes


class _StraightThrough(torch.autograd.Function):
    """The first of two tensors of one shape; the gradient goes to both as it is."""

    @staticmethod
    def forward(ctx, out, around):
        ctx.dtype = around.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad.to(ctx.dtype)


class SEWBlock(Block):
    """out = neuron(BN(conv(...))) + shortcut: spikes are added, so the output is whole numbers.

    SEW-ResNet (Fang et al. 2021, arXiv 2102.04159) with ADD. A shortcut that changes shape ends in a neuron of its own.
    """

    sums_currents = False

    def _downsample(self, parts: Parts, channels_in: int, stride: int) -> nn.ModuleList:
        layers = super()._downsample(parts, channels_in, stride)
        return layers.append(parts.neuron(self.channels_out))

    def forward(self, x: Tensor) -> Tensor:
        current, shortcut = self.last_current(x)
        if self.downsample is not None:
            conv, norm, neuron = self.downsample
            shortcut = norm_neuron(norm, neuron, folded(conv, shortcut))
        _, norm, neuron = self.stages()[-1]
        return norm_neuron(norm, neuron, current, spike_add=shortcut)


class MSBlock(Block):
    """out = BN(conv(... neuron(x))) + shortcut: neurons fire before convolutions, currents add up.

    MS-ResNet (Hu et al. 2021, arXiv 2112.08954). A shortcut that changes shape is BN(conv1x1) of
    the currents x, as in the authors' code, and so multiplies analog values; or with `model.shortcut = "spikes"` of
    neuron(x), as in pre-activation ResNets.
    """

    fires_first = True

    def __init__(self, parts: Parts, *shape: Any) -> None:
        super().__init__(parts, *shape)
        self.shortcut_reads_spikes = parts.model.shortcut == "spikes"

    def forward(
        self, x: Tensor, spikes: Tensor | None = None, reader: SpikingNeuron | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Currents x -> currents; with `reader` also the spikes of that neuron, which reads them.

        `spikes`: those of the block's own first neuron, where the block in front has made them.
        """
        convs, norms, neurons = zip(*self.stages(), strict=True)
        if spikes is None:
            spikes = fire(neurons[0], x)
        beside = self.shortcut_reads_spikes and self.downsample is not None
        current, read = folded_beside(convs[0], spikes) if beside else (folded(convs[0], spikes), x)
        for conv, norm, neuron in zip(convs[1:-1], norms[:-2], neurons[1:-1], strict=True):
            current = folded(conv, norm_neuron(norm, neuron, current))
        spikes = norm_neuron(norms[-2], neurons[-1], current)
        shortcut = x
        if self.downsample is not None:
            conv, norm = self.downsample
            shortcut = norm(folded(conv, read))
        current = folded(convs[-1], spikes)
        if reader is not None:
            norm = norms[-1].record(current)
            spikes, summed = reader.fused_norm(current, norm, shortcut, return_current=True)
            return summed, mark_spikes(spikes)
        return norms[-1](current) + shortcut


class PreActBlock(Block):
    """s = neuron(BN(x)); out = conv(neuron(BN(conv(s)))) + shortcut(s): currents -> currents.

    He et al. 2016 (arXiv 1603.05027), with spiking neurons as in the ResNet-18 of CLIF (Huang et al. 2024,
    arXiv 2402.04663). The shortcut is s, or a convolution of it where the shape changes, without a norm: the next
    block's norm takes the sum. The authors' convolutions have a bias, which that norm takes away; ours have none.
    """

    fires_first = norms_first = True

    def _layer(
        self, parts: Parts, conv: tuple[int, int, int, int], last: bool
    ) -> dict[str, nn.Module]:
        norm, neuron = parts.norm(conv[0]), parts.neuron(conv[0])
        return {"bn": norm, "neuron": neuron, "conv": parts.conv(*conv, normed=not last)}

    def start(self, gain: float, bias: float) -> None:
        """Nothing: no norm ends its branch."""

    def forward(self, x: Tensor) -> Tensor:
        (conv, norm, neuron), *rest = self.stages()
        spikes = norm_neuron(norm, neuron, x)
        current, spikes = folded_beside(conv, spikes)
        shortcut = spikes if self.downsample is None else folded(self.downsample, spikes)
        for conv, norm, neuron in rest:
            current = folded(conv, norm_neuron(norm, neuron, current))
        return current + shortcut

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        convs, norms, neurons = zip(*self.stages(), strict=True)
        value = build.add(f"{name}bn1", x, norms[0])
        value = build.add(f"{name}neuron1", value, neurons[0])
        shortcut = build.add(f"{name}downsample", value, self.downsample)
        for i in range(1, self.depth):
            value = build.add(f"{name}conv{i}", value, convs[i - 1], norms[i])
            value = build.add(f"{name}neuron{i + 1}", value, neurons[i])
        return build.add(f"{name}conv{self.depth}", value, convs[-1]) + shortcut


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


BLOCKS: dict[str, type[Block]] = {
    "plain": PlainBlock,
    "sew": SEWBlock,
    "ms": MSBlock,
    "preact": PreActBlock,
}


class BlockNetwork(Network):
    """What networks of residual blocks share. With MS and pre-activation blocks currents flow between the blocks.

    Between two MS blocks one operation gives the sum of currents and the spikes of the neuron that
    reads it: norm, sum and neuron move 5 tensors forward and 8 back, one by one they move 8 and 11.
    """

    conv1: nn.Module
    bn1: nn.Module
    neuron1: nn.Module | None  # of the stem; none where currents flow between the blocks
    maxpool: nn.Module | None
    bn_last: nn.Module | None  # behind the last pre-activation block
    neuron_last: nn.Module | None  # behind the last block that gives currents
    fc1: nn.Module | None  # a hidden layer in front of the classifier
    neuron_fc1: nn.Module | None
    reads: ClassVar[Literal["mean", "flatten"]] = "mean"  # of maps, what is behind the blocks

    def __init__(self, parts: Parts, channels: int) -> None:
        super().__init__(parts, channels)
        self.checkpoint_blocks = parts.model.checkpoint_blocks
        self.stage_names: list[str] = []
        self.maxpool = self.bn_last = self.neuron_last = self.fc1 = self.neuron_fc1 = None

    def _begin(self, parts: Parts, kind: type[Block], width: int) -> None:
        """Norm and neuron behind `conv1`."""
        self.bn1 = nn.Identity() if kind.norms_first else parts.norm(width)
        self.neuron1 = None if kind.fires_first else parts.neuron(width)

    def _end(self, parts: Parts, kind: type[Block], channels: int) -> None:
        """Norm and neuron behind the blocks."""
        if kind.norms_first:
            self.bn_last = parts.norm(channels)
        if kind.fires_first:
            self.neuron_last = parts.neuron(channels)

    def blocks(self) -> list[tuple[str, Block]]:
        """Dotted name and block, in forward order."""
        return [(name, m) for name, m in self.named_modules() if isinstance(m, Block)]

    def features(self, images: Tensor, steps: int) -> Tensor:
        x = first_layer(self.conv1, self.bn1, self.neuron1, images, steps)
        if self.maxpool is not None:
            x = folded(self.maxpool, x)
            if self.is_spiking and self.neuron1 is not None:
                x = mark_spikes(x)  # a maximum of spikes is a spike
        stages = map(self.get_submodule, self.stage_names)
        blocks = (block for stage in stages for block in stage.children())
        x = self.through(blocks, over_time(x, steps))
        x = x.mean((3, 4)) if self.reads == "mean" else x.flatten(2)
        if self.fc1 is None or self.neuron_fc1 is None:
            return x
        return fire(self.neuron_fc1, folded(self.fc1, x))

    def graph(self) -> Graph:
        build = Builder()
        value = build.add("conv1", build.input, self.conv1, self.bn1)
        value = build.add("neuron1", value, self.neuron1)
        value = build.add("maxpool", value, self.maxpool)
        for stage in self.stage_names:
            value = build.row(stage, value, self.get_submodule(stage).children())
        value = build.add("bn_last", value, self.bn_last)
        value = build.add("neuron_last", value, self.neuron_last)
        value = build.add("fc1", build.read(self.reads, value), self.fc1)
        return build.read_by(self.fc, build.add("neuron_fc1", value, self.neuron_fc1))

    def through(self, chain: Iterable[nn.Module], x: Tensor) -> Tensor:
        """x [T, B, C, H, W] through blocks, with the pools behind them, and `neuron_last`."""
        blocks = cast(list[Block], list(chain))
        training = self.training and torch.is_grad_enabled() and not self.streaming
        recompute = self.checkpoint_blocks and training
        readers = [*(block.stages()[0][2] for block in blocks[1:]), self.neuron_last]
        spikes = None
        for block, reader in zip(blocks, readers, strict=True):
            given: tuple[Any, ...] = (x,)
            joins = False
            if isinstance(block, MSBlock):
                joins = block.pool is None and gives_current(block.stages()[-1][1], reader)
                given = (x, spikes, reader if joins else None)
            out = recomputed(block, *given, on_save=self.on_save) if recompute else block(*given)
            x, spikes = out if joins else (out, None)
            if block.pool is not None:
                x = folded(block.pool, x)
        if self.neuron_last is None or spikes is not None:
            return x if spikes is None else spikes
        if self.bn_last is None:
            return fire(self.neuron_last, x)
        return norm_neuron(self.bn_last, self.neuron_last, x)
