"""Neurons that the tests of steps write: each meets another part of the machinery."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn

from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import SpikingNeuron


class Adaptive(SpikingNeuron):
    """Two states, a scalar and a per-channel constant that learn, start values: exact arithmetic only."""

    states = ("v", "a")
    start = MappingProxyType({"v": -0.25})

    def __init__(self, channels: int, **options) -> None:
        options.setdefault("surrogate", Surrogate("atan", height=1.0, width=0.3))
        super().__init__(**options)
        self.decay = nn.Parameter(torch.tensor(0.5))
        self.beta = nn.Parameter(torch.linspace(0.125, 0.5, channels))

    def step(self, x: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.decay * v + x
        s = self.fire(h - 1.0 - self.beta * a)
        return s, torch.where(s > 0, 0.0, h), 0.9 * a + 0.1 * s


class _OfTriangle(SpikingNeuron):
    def __init__(self, **options) -> None:
        super().__init__(**{"surrogate": Surrogate("triangle")} | options)


class Plain(_OfTriangle):
    """LIF, word by word, with nothing that learns."""

    states = ("v",)

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.5 * v + x
        s = self.fire(h - 1.0)
        return s, torch.where(s.detach() > 0, 0.0, h)


class Gated(SpikingNeuron):
    """A product of state and current, gates that are computed of parameters, a learnt width, a soft reset."""

    states = ("v", "i", "m")

    def __init__(self, channels: int, shape: str = "triangle", **options) -> None:
        width = nn.Parameter(torch.tensor(0.7))
        super().__init__(surrogate=Surrogate(shape, height=0.8, width=width), **options)
        self.width = width
        self.gate = nn.Parameter(torch.linspace(-1.0, 1.0, channels))
        self.register_buffer("top", torch.tensor(1.25))

    def step(self, x: Tensor, v: Tensor, i: Tensor, m: Tensor) -> tuple[Tensor, ...]:
        keep = torch.sigmoid(self.gate)
        i = 0.5 * i + x * (1 + 0.25 * v)
        h = keep * v + (1 - keep) * i
        s = self.fire(h - self.top - m.detach())
        m = torch.exp(-0.5 * m * m) * s + torch.tanh(m) * (1 - s)
        return s, h - s * self.top, i, m


class Ternary(_OfTriangle):
    """Two thresholds: spikes -1, 0 and 1."""

    states = ("v",)

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.75 * v + x
        s = self.fire(h - 1.0) - self.fire(-h - 1.0)
        return s, torch.clamp(h - s, min=-2.0, max=2.0)


class Mixed(SpikingNeuron):
    """Every operation of the table that can be had exactly."""

    states = ("v", "w")

    def __init__(self, channels: int, **options) -> None:
        super().__init__(**{"surrogate": Surrogate("fast_sigmoid")} | options)
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, channels))

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        h = (v + abs(x)) / (1 + self.scale) - torch.relu(-x) + torch.sqrt(w * w + 0.25)
        inside = (h > -3) & (h <= 3) | ~(x < 0.5)
        h = torch.where(inside, h, torch.maximum(torch.minimum(h, x), v / 3))
        s = self.fire(h - 1.0)
        w = (w - torch.floor(w) + torch.round(x)) ** 2 / (1 + h**2) + torch.sign(x) * s
        return s, h - torch.trunc(h) + torch.ceil(x) * 0.125, torch.rsqrt(1 + w.square()) - 0.5


NEURONS = (Adaptive, Plain, Gated, Ternary, Mixed)
EXACT = (Adaptive, Plain, Ternary, Mixed)
"""Those without functions that each backend rounds in its own way."""


def made(cls: type[SpikingNeuron], channels: int, **options) -> SpikingNeuron:
    learns = cls in (Adaptive, Gated, Mixed)
    return cls(channels, **options) if learns else cls(**options)
