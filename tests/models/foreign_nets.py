"""Networks as people write them, with SpikingJelly's neurons and without a thought of this package."""

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from spiketriton_kernels import nn as kernels


class Conv(nn.Module):
    """Convolution, batch norm and neuron over whole windows."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = layer.Conv2d(before, after, 3, stride, 1, bias=False, step_mode="m")
        self.bn = layer.BatchNorm2d(after, step_mode="m")
        self.bn.bias.data.fill_(0.5)
        self.neuron = neuron.LIFNode(tau=2.0, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.bn(self.conv(x)))


class Deep(nn.Module):
    """A chain of 24 layers of the usual start; with I-LIF where `integers` says so."""

    def __init__(self, in_channels: int, num_classes: int, integers: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LazyLinear(64) for _ in range(24))
        self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(24))
        kind = kernels.ILIF if integers else kernels.LIF
        given = {} if integers else {"decay_input": False}
        self.neurons = nn.ModuleList(kind(**given) for _ in range(24))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        for linear, norm, fire in zip(self.layers, self.norms, self.neurons, strict=True):
            x = fire(norm(linear(x).flatten(0, 1)).unflatten(0, x.shape[:2]))
        return self.fc(x)


class Attention(nn.Module):
    """Attention of its own, and queries that a learnt matrix makes."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = Conv(in_channels, 8, 2)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.q_neuron = neuron.LIFNode(tau=2.0, step_mode="m")
        self.k_neuron = neuron.LIFNode(tau=2.0, step_mode="m")
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(3).transpose(2, 3)
        q, k = self.q_neuron(2 * self.q(x)), self.k_neuron(2 * self.k(x))
        return self.head((x @ (q.transpose(2, 3) @ k / 8)).mean(2))


class Recurrent(nn.Module):
    """A cell that sees its own spikes: its neuron is called once a step."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.enter, self.again = nn.Linear(64 * in_channels, 16), nn.Linear(16, 16)
        self.neuron = neuron.LIFNode(tau=2.0)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        current, spikes, answers = 3 * self.enter(x.flatten(1)), x.new_zeros(len(x), 16), []
        for _ in range(self.T):
            spikes = self.neuron(current + self.again(spikes))
            answers.append(self.head(spikes))
        return torch.stack(answers).mean(0)


class OtherInTests(nn.Module):
    """What stands between its norm and its neuron in eval mode alone."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = Conv(in_channels, 8, 2), nn.Linear(8, num_classes)

    def between(self, x: Tensor) -> Tensor:
        return x if self.training else x.clamp(max=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem.bn(self.stem.conv(x))
        return self.head(self.stem.neuron(self.between(x)).mean((3, 4)))


class FrozenNorm(OtherInTests):
    """No gradient to its norm, which no graph shows."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem.bn(self.stem.conv(x))
        return self.head(self.stem.neuron(x).mean((3, 4)))


class Spare(Recurrent):
    """Has a layer that nothing calls; trained by tests/ranks/test_ranks.py."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__(in_channels, num_classes, T)
        self.spare = nn.Linear(3, 3)


class LongSkip(nn.Module):
    """A skip over three blocks, which is added in place."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = Conv(in_channels, 8, 2)
        self.blocks = nn.Sequential(*(Conv(8, 8, 1) for _ in range(3)))
        self.last = Conv(8, 8, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.blocks(x)
        y += x
        return self.head(self.last(y).mean((3, 4)))


class Shared(nn.Module):
    """One block in two places: its neuron goes on where it stopped the first time."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem, self.block = Conv(in_channels, 8, 2), Conv(8, 8, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.stem(x))).mean((3, 4)))


class OneStep(nn.Module):
    """Called once for each step by a loop outside."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.neuron, self.head = neuron.IFNode(), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neuron(self.bn(self.conv(x))).mean((2, 3)))


class BatchFirst(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64 * in_channels, 16), nn.Linear(16, num_classes)
        self.neuron = neuron.LIFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        current = 3 * self.enter(x.flatten(2)).transpose(0, 1)
        return self.head(self.neuron(current)).transpose(0, 1)


def images_as_steps(in_channels: int, num_classes: int) -> nn.Module:
    """What of images is in a batch, its neuron takes for steps."""
    conv, pool = nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1)
    many = neuron.LIFNode(step_mode="m")
    return nn.Sequential(conv, many, pool, nn.Flatten(), nn.Linear(4, num_classes))


def compiled(in_channels: int, num_classes: int) -> nn.Module:
    return torch.compile(LongSkip(in_channels, num_classes))  # type: ignore[return-value]


def spread(in_channels: int, num_classes: int) -> nn.Module:
    return nn.DataParallel(LongSkip(in_channels, num_classes))


class SnnTorch(nn.Module):
    """A loop of snnTorch's, beside a neuron that is measured."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        import snntorch

        self.T = T
        self.enter, self.head = nn.Linear(64 * in_channels, 16), nn.Linear(16, num_classes)
        self.leaky, self.neuron = snntorch.Leaky(0.9), neuron.LIFNode(tau=2.0)

    def forward(self, x: Tensor) -> Tensor:
        mem, answers = self.leaky.reset_mem(), []
        for _ in range(self.T):
            spikes, mem = self.leaky(3 * self.enter(x.flatten(1)), mem)
            answers.append(self.head(self.neuron(spikes)))
        return torch.stack(answers)


class Norse(nn.Module):
    """A loop over cells of norse's, whose states they mark as learning. `cells`: the neuron, and a read-out or none."""

    cells: tuple[str, ...] = ("LIFCell", "LICell")

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        from norse import torch as norse

        cell, *last = (getattr(norse, name) for name in self.cells)
        parts = [nn.Linear(64 * in_channels, 16), cell(), nn.Linear(16, num_classes)]
        self.learn(parts[1])
        self.T, self.parts = T, norse.SequentialState(*parts, *(make() for make in last))
        parts[0].weight.data *= 20

    def learn(self, cell: nn.Module) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        state, answers = None, []
        for _ in range(self.T):
            answer, state = self.parts(x.flatten(1), state)
            answers.append(answer)
        return torch.stack(answers)


class NorseIntegrator(Norse):
    """Begins at a constant of its own, which it marks as learning."""

    cells = ("IAFCell",)


class NorseBox(Norse):
    cells = ("LIFBoxCell", "LIBoxCell")


class NorseHidden(Norse):
    """A Parameter that no module holds."""

    cells = ("LIFCell",)

    def learn(self, cell: Any) -> None:
        cell.p = cell.p._replace(tau_mem_inv=nn.Parameter(torch.tensor(100.0)))


class NorseWindow(Norse):
    cells = ("LIF", "LI")

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x.flatten(2))[0]


class RunningMean(nn.Module):
    """Takes its activity's average away, a buffer that forward replaces."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = Conv(in_channels, 8, 2), nn.Linear(8, num_classes)
        self.spare = nn.Linear(3, 3)  # which nothing calls
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((3, 4))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return self.head(x - self.mean)


class PlainList(LongSkip):
    """A layer that no ModuleList holds, and so nothing trains."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.more = [nn.Linear(num_classes, num_classes)]

    def forward(self, x: Tensor) -> Tensor:
        return self.more[0](super().forward(x))


class OneMethod(Recurrent):
    """Calls a method of SpikingJelly's, not the neuron."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neuron.single_step_forward(self.enter(x.flatten(1))))


class TwoClocks(nn.Module):
    """A neuron that is called twice a step, one every second step, and one that never fires."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(64 * in_channels, 16), nn.Linear(16, 16)
        self.fast, self.slow = neuron.LIFNode(tau=1.5), neuron.LIFNode(tau=4.0)
        self.out = neuron.LIFNode(v_threshold=float("inf"))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        current, slow, answers = 3 * self.enter(x.flatten(1)), 0.0, []
        for step in range(3):
            spikes = self.fast(current) + self.fast(current - slow)
            if step % 2:
                slow = self.slow(4 * self.again(spikes))
            self.out(self.head(spikes))
            answers.append(self.out.v)
        return torch.stack(answers)


class Remembers(LongSkip):
    """What it saw before stays, and nothing makes it forget."""

    seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.seen = x.detach() if self.seen is None else 0.5 * self.seen + x.detach()
        return x + self.seen


class Rebuilds(LongSkip):
    """A reset() that means something else."""

    def reset(self) -> None:
        self.head.reset_parameters()


def _changed(
    kind: type[nn.Module],
    after: Callable[[nn.Module, Tensor], Any] = lambda net, answer: answer,
    before: Callable[[nn.Module, Tensor], Any] = lambda net, x: x,
) -> type[nn.Module]:
    """A class whose images and answers pass these functions."""

    class Changed(kind):
        def forward(self, x: Tensor) -> Any:
            return after(self, super().forward(before(self, x)))

    return Changed


def _steps(number: Callable[[nn.Module, Tensor], int]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Sets how many steps a Recurrent takes."""

    def before(net: nn.Module, x: Tensor) -> Tensor:
        net.T = number(net, x)
        return x

    return before


TwoAnswers = _changed(LongSkip, lambda net, y: (y, 2 * y))
AuxiliaryInTraining = _changed(LongSkip, lambda net, y: (y, y) if net.training else y)
StepsInTheMiddle = _changed(LongSkip, lambda net, y: y.transpose(0, 1))
NoGradient = _changed(LongSkip, lambda net, y: y.detach())
InPlace = _changed(Recurrent, before=lambda net, x: x.mul_(0.5))
LongerInTraining = _changed(Recurrent, before=_steps(lambda net, x: 4 if net.training else 3))
# how many it takes is up to the images: two for large ones
StopsWhenSure = _changed(Recurrent, before=_steps(lambda net, x: 2 if x.abs().max() > 50 else 3))


def no_module() -> int:
    return 3


def breaks() -> nn.Module:
    raise KeyError("depth")


class SharedRelu(nn.Module):
    """One neuron in two places of a step, as of a ReLU that torchvision's blocks call twice."""

    def __init__(self, in_channels: int, num_classes: int, relu: str = "hand") -> None:
        super().__init__()
        self.enter, self.relu = nn.Linear(in_channels * 64, 16), nn.ReLU()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head, self.act = nn.Linear(16, num_classes), nn.ReLU()
        if relu == "hand":
            self.act, self.relu = kernels.LIF(step_mode="s"), kernels.LIF(step_mode="s")
        else:
            kernels.swap(self, relu=kernels.LIF(step_mode="s"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.enter(x.flatten(1)))
        return self.head(self.relu(self.two(self.relu(self.one(x)))))
