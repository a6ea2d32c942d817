"""Parts of the networks: layers over time, norm + neuron in one place, and how they are made."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from spiketriton.config import ModelConfig, NeuronConfig
from spiketriton.models.convolutions import FasterConv2d
from spiketriton.models.memory import mark_currents, mark_spikes
from spiketriton.neurons import Norm, SpikingNeuron, build_neuron, spiking
from spiketriton_kernels.backends.beside import hand_on
from spiketriton_kernels.nn import PSN, Delays, SlidingPSN


def folded(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a layer to every time step, [T, B, ...] -> [T, B, ...], by views alone: channels_last stays.

    Delays are applied to the window.
    """
    if isinstance(layer, Delays):
        return mark_currents(layer(x), layer, x)
    given = x.flatten(0, 1)
    y = mark_currents(layer(given), layer, given)
    return hand_on(y, y.unflatten(0, x.shape[:2]))


def folded_beside(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """`folded`, and x for others that read it, too: see `FasterConv2d.beside`."""
    if not isinstance(layer, FasterConv2d):
        return folded(layer, x), x
    given = x.flatten(0, 1)
    y, shared = layer.beside(given)
    y = mark_currents(y, layer, given)
    return hand_on(y, y.unflatten(0, x.shape[:2])), shared.unflatten(0, x.shape[:2])


class EachStep(nn.Module):
    """A layer that knows no time, on every time step: [T, B, ...] -> [T, B, ...]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return folded(self.layer, x)


def norm_neuron(
    norm: nn.Module,
    neuron: nn.Module,
    y: Tensor,
    residual: Tensor | None = None,
    spike_add: Tensor | None = None,
) -> Tensor:
    """`neuron(norm(y) + residual) + spike_add`, all [T, B, C, ...]: one fused operation or several."""
    if gives_current(norm, neuron):
        assert isinstance(neuron, SpikingNeuron)
        out = neuron.call_kernels(y, norm.record(y), residual, spike_add).spikes
        return out if spike_add is not None else mark_spikes(out)
    current = norm(y)
    if residual is not None:
        current = current + residual
    out = fire(neuron, current)
    return out if spike_add is None else out + spike_add


def gives_current(norm: nn.Module, neuron: nn.Module | None) -> TypeGuard[Norm]:
    """Whether a spiking neuron and the norm in front of it are called in one operation.

    Not in training on sequences of different lengths, of which the norm leaves out what is behind the ends.
    """
    fuses = isinstance(neuron, SpikingNeuron) and neuron.fuses
    return fuses and isinstance(norm, Norm) and norm.fused and not norm.masked


def fire(neuron: nn.Module, current: Tensor) -> Tensor:
    """Calls a neuron on its own; the output of a spiking one is marked as spikes."""
    out = neuron(current)
    return out if spiking(neuron) is None else mark_spikes(out)


def over_time(current: Tensor, steps: int) -> Tensor:
    """A current [1 or steps, B, ...] as dense [steps, B, ...], in its own memory format."""
    return current if len(current) == steps else current.expand(steps, *current.shape[1:]).clone()


class StridedPointwise(FasterConv2d):
    """A 1x1 convolution with a stride, which on a CPU reads the pixels that it needs as a pool.

    The same numbers, and no overrun: with channels_last and four input channels, the gradient of the
    weights is written past its end on processors with AVX2 but without AVX-512 (torch 2.13, oneDNN).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.in_channels % 8 == 0:
            return super().forward(x)
        pixels = nn.functional.avg_pool2d(x, 1, self.stride)
        return nn.functional.conv2d(pixels, self.weight, self.bias)


def first_layer(
    weights: nn.Module, norm: nn.Module, neuron: nn.Module | None, shown: Tensor, steps: int
) -> Tensor:
    """Weights, norm and neuron of the layer that reads what is shown: [steps, B, ...].

    Of an image [B, ...], the same at all steps, weights and norm run once; of frames and sequences [steps, B, ...] at
    every step.
    Without a neuron the currents are returned, [1, B, ...] where all steps are equal.
    """
    if shown.ndim in (3, 5):
        current = folded(weights, shown)
        return norm(current) if neuron is None else norm_neuron(norm, neuron, current)
    y = weights(shown)
    current = norm.constant(y, steps) if isinstance(norm, Norm) else norm(y.unsqueeze(0))
    return current if neuron is None else fire(neuron, over_time(current, steps))


@dataclass(frozen=True)
class Parts:
    """What all layers of a network share, by a recipe; makes their neurons, norms and weights.

    Attributes:
        time_steps: T; 1 in the ANN twin, which has no time, whatever is given.
    """

    model: ModelConfig
    neuron_config: NeuronConfig
    time_steps: int
    sequence: bool = False  # whether it is shown sequences [T, B, C] instead of images

    def __post_init__(self) -> None:
        if not self.spiking:
            object.__setattr__(self, "time_steps", 1)

    @property
    def spiking(self) -> bool:
        return self.neuron_config.kind != "relu"

    @property
    def norm_kind(self) -> str:
        """The ANN twin has neither steps nor a threshold: any norm but none is plain batch norm."""
        return self.model.norm if self.spiking or self.model.norm == "none" else "bn"

    def neuron(self, channels: int | None = None) -> nn.Module:
        """The neuron of `channels` currents, whose number is needed where each of them learns something."""
        return build_neuron(self.neuron_config, self.time_steps, channels)

    def norm(self, channels: int, *, before_sum: bool = False) -> nn.Module:
        """The norm of `channels` currents; `before_sum`: its output is one of two terms of a current.

        tdBN then scales by v_threshold / sqrt(2), so that the spread of the sum is the threshold.
        """
        kind = self.norm_kind
        if kind == "none":
            return nn.Identity()
        norm = Norm(
            channels,
            scale=self.neuron_config.v_threshold if kind == "tdbn" else 1.0,
            steps=self.time_steps if kind == "tebn" else 0,
            fused=self.model.fused,
            each_step=kind == "step_bn",
        )
        if kind == "tdbn" and before_sum:
            norm.scale *= math.sqrt(0.5)
        nn.init.constant_(norm.weight, self.model.norm_gain)
        return norm

    def conv(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, normed: bool = True
    ) -> nn.Conv2d:
        """A convolution that keeps the size at stride 1; with a bias if the network has no norms.

        normed: whether a norm, where there is one, reads its output and nothing else.
        """
        kind = StridedPointwise if kernel == 1 and stride > 1 else FasterConv2d
        bias = self.norm_kind == "none"
        conv = kind(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=bias)
        conv.normed = normed and self.norm_kind in ("bn", "tdbn", "tebn")
        return conv

    def linear(self, features_in: int, features_out: int) -> nn.Linear:
        return nn.Linear(features_in, features_out, bias=self.norm_kind == "none")


IDENTITY_NOISE = 0.1  # of the weights that were there, next to an identity


@torch.no_grad()
def add_identity(layer: nn.Conv2d | nn.Linear | Delays) -> None:
    """Makes a square layer pass its input on, all but a tenth of the weights that it had.

    Behind batch norm, spikes of a rate below about 0.3 fire again and silence stays silence. The identity of a
    convolution is the Dirac kernel (Zagoruyko & Komodakis 2017, arXiv 1706.00388; Qi et al. 2020, arXiv 2006.16992).
    """
    identity = torch.zeros_like(layer.weight)
    (nn.init.dirac_ if identity.ndim == 4 else nn.init.eye_)(identity)
    layer.weight.mul_(IDENTITY_NOISE).add_(identity)


@torch.no_grad()
def start_as_leak(neuron: nn.Module) -> None:
    """Makes a PSN (masked or not) weigh a step by 1, and those before it by 1/2, 1/4, ..., as a sliding PSN begins.

    Random weights of either sign take the signal away: a step whose weights sum up to less than the threshold by the
    current is silent in every image, and in 26 layers all are.
    """
    if isinstance(neuron, PSN):
        neuron.weight.copy_(SlidingPSN(neuron.T).weight_of(neuron.T))
