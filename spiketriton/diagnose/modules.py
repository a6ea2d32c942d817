"""A module without a recipe, diagnosed: how it is called, and what helps it."""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.config import TrainConfig
from spiketriton.config.names import RATES
from spiketriton.config.words import some
from spiketriton.diagnose.cures import CLIPPING, Cure, change_neurons
from spiketriton.diagnose.trials import Trials, loss_after
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.prober import MOST
from spiketriton.models.network import trial
from spiketriton.neurons import SpikingNeuron, adopt, told_of_spikes
from spiketriton.system.errors import UserError, one_line
from spiketriton.training.optim import build_optimizer
from spiketriton_kernels.nn import SpikingNeuron as KernelNeuron
from spiketriton_kernels.nn import swap

Batch = tuple[Tensor, Any]
Loss = Callable[[Tensor, Any], Tensor]


class Called(nn.Module):
    """A copy of a module with our neurons, called as it wants to be.

    takes: "as given"; "time first", x at each of `steps` steps, [T, B, ...]; "steps", the module once for each step.
    timed: whether x has time already, [T, B, ...].
    """

    def __init__(self, net: nn.Module, steps: int, timed: bool) -> None:
        super().__init__()
        self.name, self.steps, self.timed, self.takes = type(net).__name__, steps, timed, "as given"
        self.net = deepcopy(net)
        self.left = dict(swap(self.net).left)
        for module in self.net.modules():
            if isinstance(module, KernelNeuron):
                adopt(module)

    def forward(self, x: Tensor, **lengths: Tensor) -> Any:
        for module in self.net.modules():
            if isinstance(module, KernelNeuron):
                module.reset()
        if self.takes == "as given":
            return self.net(x, **lengths)
        if self.takes == "time first":
            return self.net(x.expand(self.steps, *x.shape).contiguous())
        return torch.stack([self.net(step) for step in (x if self.timed else [x] * self.steps)])

    def neurons(self) -> list[tuple[str, SpikingNeuron]]:
        """By their names in the module that was given."""
        named = self.net.named_modules()
        return [(name, m) for name, m in named if isinstance(m, SpikingNeuron)]

    def recognise(self, x: Tensor, images: int) -> None:
        """Finds out how it is called with x. UserError: in no way, or no neuron of it can be measured."""
        failed, read_as_time = [], False
        for takes in ("as given", "steps") if self.timed else ("as given", "time first"):
            self.takes = takes
            shown: dict[str, int] = {}

            def count(name: str, spikes: Tensor, shown: dict[str, int] = shown) -> None:
                shown[name] = shown.get(name, 0) + len(spikes)

            try:
                with trial(self), torch.no_grad(), told_of_spikes(self.neurons(), count):
                    self.eval()
                    self(x)
            except Exception as error:  # somebody else's code
                failed.append(f"{self.takes}: {type(error).__name__}: {one_line(error)}")
                continue
            if not shown:
                raise UserError(self._unmeasured())
            steps = {*shown.values()}
            if self.timed or self.takes == "time first":
                return
            if steps == {1} and all(neuron.step_mode == "s" for _, neuron in self.neurons()):
                self.takes = "steps"
            if steps != {images} or self.takes == "steps":
                return
            read_as_time = True  # perhaps: the neurons saw as many steps as there are images
        if read_as_time:
            self.takes = "as given"
            return
        raise UserError(
            f"{self.name} answers to no x of {list(x.shape)}: {'; '.join(failed)}. Accepted: x as it takes it, "
            "[T, B, ...] or [B, ...]"
        )

    def _unmeasured(self) -> str:
        accepted = "accepted: neurons of spiketriton_kernels.nn, or that swap puts there"
        if not self.left:
            return f"{self.name} calls no spiking neuron; {accepted}"
        why = some([f"{name} ({reason})" for name, reason in self.left.items()], 3)
        return f"none of the neurons of {self.name} can be measured: {why}; {accepted}"


def try_on_batch(
    net: Called,
    batch: Batch,
    images: int,
    loss: Loss,
    found: Sequence[Cure],
    optimizer: str,
    tries: int,
    *,
    apart: bool = False,
) -> Trials:
    """Trains copies for some steps on the first few images of a batch, as they are and with one change each.

    apart: whether the loss is that of the last third of them, on which nothing is trained. Images that are shown again
    and again are learnt by heart from any step; what is remembered of an early one shows only in others.
    """
    fresh, batch = net, few_of(*batch, images)
    x, y = batch
    count = x.shape[images]
    part = 2 * count // 3 if apart and isinstance(y, Tensor) and count > 2 else count
    shown = (x.narrow(images, 0, part), y[:part] if isinstance(y, Tensor) else y)
    rate = RATES[optimizer][2]  # of networks that no recipe knows

    def trained(cure: Cure | None) -> float:
        torch.manual_seed(0)
        net = deepcopy(fresh)
        if cure is not None and cure is not CLIPPING:
            change_neurons(net, cure, batch[0])
        net.train()
        if not any(p.requires_grad for p in net.parameters()):
            raise UserError(f"{net.name} has no parameters to train")
        made = build_optimizer(TrainConfig(optimizer=optimizer), net, rate)  # type: ignore[arg-type]
        level = torch.optim.lr_scheduler.ConstantLR(made, factor=1.0)
        limit = 1.0 if cure is CLIPPING else 0.0
        found = loss_after(net, _again(shown), loss, tries, made, level, limit)
        if part == count:
            return found
        with torch.no_grad():
            value = loss(net.eval()(x.narrow(images, part, count - part)), y[part:])
        return float(value) if value.isfinite() else math.inf

    changed = tuple((cure, trained(cure)) for cure in found)
    return Trials(tries, part, trained(None), changed, others=count - part)


def named_as_given(measured: Measurement) -> Measurement:
    """With the names that layers and weights have in the module that was given."""
    weights = {name.removeprefix("net."): rms for name, rms in measured.weights.items()}
    names = tuple(name.removeprefix("net.") for name in measured.names)
    return replace(measured, names=names, weights=weights)


def few_of(x: Tensor, y: Any, images: int) -> Batch:
    """The first few images of a batch."""
    most = MOST[x.device.type]
    few = x.narrow(images, 0, min(most, x.shape[images]))
    return few, y[:most] if isinstance(y, Tensor) else y


def _again(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch
