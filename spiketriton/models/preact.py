"""Pre-activation ResNets: norm and neuron come before each convolution, and the shortcut carries spikes.

He et al. 2016 (arXiv 1603.05027), with spiking neurons as in the ResNet-18 of CLIF (Huang et al. 2024,
arXiv 2402.04663).
"""

from functools import partial

import torch
from torch import Tensor, nn

from spiketriton.models.blocks import convolutions, recomputed
from spiketriton.models.graph import Builder, Graph, Value
from spiketriton.models.layers import Parts, folded, norm_neuron, over_time, spike_conv
from spiketriton.models.network import Network
from spiketriton.models.resnet import Architecture, add_stages


class PreActBlock(nn.Module):
    """s = neuron(BN(x)); out = conv(neuron(BN(conv(s)))) + shortcut(s): currents -> currents [T, B, C, H, W].

    The shortcut is s itself, or a convolution of it where the shape changes, without a norm: the next block's norm
    takes the sum. The authors' convolutions have a bias, which that norm takes away again; ours have none.
    """

    def __init__(
        self, parts: Parts, channels_in: int, width: int, stride: int, bottleneck: bool
    ) -> None:
        super().__init__()
        plan = convolutions(width, stride, bottleneck)
        self.depth, self.channels_out = len(plan), plan[-1][1]
        channels = channels_in
        for i, (kernel, channels_next, conv_stride) in enumerate(plan, start=1):
            self.add_module(f"bn{i}", parts.norm(channels))
            self.add_module(f"neuron{i}", parts.neuron(channels))
            self.add_module(f"conv{i}", parts.conv(channels, channels_next, kernel, conv_stride))
            channels = channels_next
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != self.channels_out:
            self.downsample = parts.conv(channels_in, self.channels_out, 1, stride)

    def stages(self) -> list[list[nn.Module]]:
        """Norm, neuron and convolution of each layer, in forward order."""
        numbers = range(1, self.depth + 1)
        return [[getattr(self, f"{kind}{i}") for kind in ("bn", "neuron", "conv")] for i in numbers]

    def forward(self, x: Tensor) -> Tensor:
        (norm, neuron, conv), *rest = self.stages()
        spikes = norm_neuron(norm, neuron, x)
        shortcut = spikes if self.downsample is None else spike_conv(self.downsample, spikes)
        current = spike_conv(conv, spikes)
        for norm, neuron, conv in rest:
            current = spike_conv(conv, norm_neuron(norm, neuron, current))
        return current + shortcut

    def describe(self, build: Builder, name: str, x: Value) -> Value:
        """Adds its nodes, whose names begin with `name`, to a graph in which it reads `x`."""
        norms, neurons, convs = zip(*self.stages(), strict=True)
        current = build.norm(f"{name}bn1", x, norms[0])
        value = shortcut = build.neuron(f"{name}neuron1", current, neurons[0])
        if self.downsample is not None:
            shortcut = build.weights(f"{name}downsample", value, self.downsample, None)
        for i, (conv, norm) in enumerate(zip(convs, [*norms[1:], None], strict=True), start=1):
            value = build.weights(f"{name}conv{i}", value, conv, norm)
            if i < self.depth:
                value = build.neuron(f"{name}neuron{i + 1}", value, neurons[i])
        return value + shortcut


class PreActResNet(Network):
    """A ResNet of pre-activation blocks. The stem is a convolution alone; a norm and a neuron end the net."""

    takes_any_size = True

    def __init__(
        self, parts: Parts, architecture: Architecture, *, stem: str, classes: int, channels: int
    ) -> None:
        super().__init__(parts, channels)
        width = architecture.width
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = parts.conv(channels, width, kernel, stride)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        make = partial(PreActBlock, parts, bottleneck=architecture.bottleneck)
        self.stage_names, channels_in = add_stages(self, architecture, stem == "strided", make)
        self.checkpoint_blocks = parts.model.checkpoint_blocks
        self.bn_last, self.neuron_last = parts.norm(channels_in), parts.neuron(channels_in)
        self.fc = nn.Linear(channels_in, classes)
        nn.init.zeros_(self.fc.bias)
        self._initialize()

    def blocks(self) -> list[tuple[str, PreActBlock]]:
        """Dotted name and block, in forward order."""
        return [(name, m) for name, m in self.named_modules() if isinstance(m, PreActBlock)]

    def last_of_blocks(self) -> list[str]:
        """The neurons that read the sums: the first one of each block, and the net's last."""
        if not self.is_spiking:
            return []
        return [f"{name}.neuron1" for name, _ in self.blocks()] + ["neuron_last"]

    def features(self, images: Tensor, steps: int) -> Tensor:
        x = folded(self.conv1, images if images.ndim == 5 else images.unsqueeze(0))
        if self.maxpool is not None:
            x = folded(self.maxpool, x)
        x = over_time(x, steps)
        training = self.training and torch.is_grad_enabled() and not self.streaming
        for _, block in self.blocks():
            x = recomputed(block, x) if self.checkpoint_blocks and training else block(x)
        return norm_neuron(self.bn_last, self.neuron_last, x).mean((3, 4))

    def graph(self) -> Graph:
        build = Builder()
        value = build.weights("conv1", build.input, self.conv1, None)
        value = build.maxpool(value, self.maxpool)
        for stage in self.stage_names:
            value = build.row(stage, value, self.get_submodule(stage).children())
        value = build.norm("bn_last", value, self.bn_last)
        value = build.neuron("neuron_last", value, self.neuron_last)
        return build.read_by(self.fc, build.add("mean", "mean", value))
