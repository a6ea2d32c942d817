"""A file's answers against its network's, neuron by neuron.

Two programs add in other orders, and a membrane that meets its threshold but for rounding fires in one of them alone;
all that follows then differs. Where an image does, the network is shown the spikes of the file: each of its neurons
computes its own, is compared, and hands on those of the file. A spike may differ where it hangs on rounding, and
nowhere else; the neuron goes on from the file's. In this way every spike and current of every image is compared.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.models.foreign import ForeignNetwork
from spiketriton_kernels.neurons.definition import OneStep, Walk
from spiketriton_kernels.nn import SpikingNeuron

CLOSE = 1e-4  # of the largest current: rounding differs between two programs, a spike that differs is more
TIE = 1e-5  # of a layer's largest current and states: what rounding may have moved
MOST = 0.01  # of the spikes may hang on rounding
ROUNDING = 1e-6  # of the largest pixel: what moves an answer by a spike may as well be another order of sums
_MOVED = 32  # times

Spikes = dict[str, list[Tensor]]
"""By a neuron's name its spikes [T, B, ...] of each call, in order."""


@dataclass(frozen=True)
class Compared:
    """A file's answers against the network's.

    Attributes:
        difference: the largest of the currents, as a share of the largest current.
        spikes: how many places of spikes were compared: neurons x time steps x images.
        hanging: those that differ and hang on rounding.
        wrong: those that differ and do not; where: the first of them.
        images: of a network with neurons that are not the kernels', whose spikes are not known: those that answer as
            the network, but only when its pixels move by `ROUNDING`.
    """

    difference: float
    spikes: int = 0
    hanging: int = 0
    wrong: int = 0
    where: str = ""
    images: int = 0

    @property
    def agrees(self) -> bool:
        return self.difference < CLOSE and not self.wrong and self.hanging <= MOST * self.spikes

    def and_of(self, other: "Compared") -> "Compared":
        """Of both together."""
        far = self.difference, other.difference
        return Compared(
            math.nan if any(map(math.isnan, far)) else max(far),
            self.spikes + other.spikes,
            self.hanging + other.hanging,
            self.wrong + other.wrong,
            self.where or other.where,
            self.images + other.images,
        )

    def __str__(self) -> str:
        said = f"currents differ by {self.difference:.1e} of the largest"
        if self.spikes:
            said += f", {self.wrong} of {self.spikes:,} spikes differ"
        if self.where:
            said += f", the first of {self.where}"
        if self.hanging:
            said += f"; {self.hanging} hang on rounding, and are taken as the file has them"
        if self.images:
            said += f"; {self.images} images answer so where their pixels move by {ROUNDING:g}"
        return said


class Told(nn.Module):
    """A network, as it is written down, whose results are followed by the spikes of its neurons, call by call.

    Args:
        given: an example of its arguments.

    Attributes:
        names: of the neuron of each of these.
    """

    def __init__(self, net: nn.Module, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.names: list[str] = []
        self.net = by_definition(net)
        self(*given)
        self.net = net

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        found: list[tuple[str, Tensor]] = []

        def listen(name: str, neuron: SpikingNeuron, *called: Any) -> Walk:
            out = walks[name](*called)
            found.append((name, out.spikes))
            return out

        neurons = _neurons(self.net)
        walks = {name: neuron.walk for name, neuron in neurons.items()}
        with _walking(neurons, listen):
            out = self.net(*given)
        self.names = [name for name, _ in found]
        results = (out,) if isinstance(out, Tensor) else out
        return *results, *[spikes.clone() for _, spikes in found]


def by_definition(net: nn.Module) -> nn.Module:
    """A copy whose neurons are their definitions, to which the kernels are held."""
    net = copy.deepcopy(net)
    for neuron in _neurons(net).values():
        neuron.backend = "eager"
    return net


def by_name(names: Sequence[str], calls: Sequence[Tensor]) -> Spikes:
    """`Told`'s spikes by their neurons."""
    spikes: Spikes = {}
    for name, one in zip(names, calls, strict=True):
        spikes.setdefault(name, []).append(one)
    return spikes


def _neurons(net: nn.Module) -> dict[str, SpikingNeuron]:
    return {name: m for name, m in net.named_modules() if isinstance(m, SpikingNeuron)}


@contextmanager
def _walking(neurons: Mapping[str, SpikingNeuron], walk: Callable[..., Walk]) -> Iterator[None]:
    """Within the block `walk(name, neuron, ...)` takes the place of each neuron's walk over a window."""
    were = {name: neuron.__dict__.get("walk") for name, neuron in neurons.items()}
    for name, neuron in neurons.items():
        neuron.__dict__["walk"] = partial(walk, name, neuron)
    try:
        yield
    finally:
        for name, before in were.items():
            neurons[name].__dict__.pop("walk")
            if before is not None:
                neurons[name].__dict__["walk"] = before


def compared(
    net: nn.Module, images: Tensor, found: Tensor, told: Callable[[], tuple[Tensor, Tensor, Spikes]]
) -> Compared:
    """Currents [T, B, ...] of a file against those of the network. ValueError: another shape.

    told: where some image differs, what the file answers without what a program changes to be faster; and the same,
    with spikes, of a file that also tells these.
    """
    plain = Compared(float(_apart(found, net(images)).max()))
    if plain.agrees:
        return plain
    if isinstance(net, ForeignNetwork) and net.swapped.left:
        return _by_images(net, images, found)
    alone, currents, spikes = told()
    follower = _Follower({name: torch.cat(calls) for name, calls in spikes.items()})
    twin = by_definition(net)
    with _walking(_neurons(twin), follower.walk):
        expected = twin(images)
    far = torch.maximum(_apart(currents, expected), _apart(alone, currents))
    f = follower
    return Compared(float(far.max()), f.spikes, f.hanging, f.wrong, f.where)


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """By image, as a share of the largest current. ValueError: another shape."""
    if found.shape != expected.shape:
        raise ValueError(f"currents of shape {list(found.shape)} for {list(expected.shape)}")
    largest = expected.abs().max().clamp_min(1e-12)
    return (found - expected).abs().transpose(0, 1).flatten(1).amax(1) / largest


def _by_images(net: nn.Module, images: Tensor, found: Tensor) -> Compared:
    """Each image must answer as the network, or as that does where its pixels move by what is rounding."""
    far = _apart(found, net(images))
    hang = torch.zeros(len(far), dtype=torch.bool)
    draw = torch.Generator().manual_seed(1)
    for _ in range(_MOVED if bool((far >= CLOSE).any()) else 0):
        by = torch.randn(images.shape, generator=draw)
        again = _apart(found, net(images + ROUNDING * images.abs().max() * by))
        hang |= (far >= CLOSE) & (again < CLOSE)
        far = torch.minimum(far, again)
    return Compared(float(far.max()), images=int(hang.sum()))


@dataclass
class _Follower:
    """Neurons that compute their own spikes and hand on those of a file."""

    given: dict[str, Tensor]
    seen: dict[str, int] = field(default_factory=dict)  # steps, by name
    spikes: int = 0
    hanging: int = 0
    wrong: int = 0
    where: str = ""

    def walk(
        self,
        name: str,
        neuron: SpikingNeuron,
        step: OneStep,
        current: Tensor,
        states: Sequence[Tensor],
        trace: bool,
    ) -> Walk:
        begin = self.seen.get(name, 0)
        self.seen[name] = begin + len(current)
        file = self.given[name][begin : begin + len(current)]
        if file.shape != current.shape:
            raise ValueError(f"spikes of {name} of {list(file.shape)} for {list(current.shape)}")
        self.spikes += file.numel()
        walk = partial(type(neuron).walk, neuron, step)
        whole = walk(current, states, trace)
        if torch.equal(whole.spikes, file):
            return whole
        first: list[Tensor] = []
        for t, spikes in enumerate(file):
            one = walk(current[t : t + 1], states, trace)
            after = one.states
            if bool((differs := one.spikes[0] != spikes).any()):
                near, after = self._moved(walk, current[t : t + 1], states, spikes, differs, after)
                self.hanging += int((differs & near).sum())
                wrong = (differs & ~near).nonzero()
                self.wrong += len(wrong)
                if len(wrong) and not self.where:
                    image, *place = wrong[0].tolist()
                    self.where = f"{name}, time step {begin + t}, image {image}, neuron {place}"
                if len(after) > len(neuron.states):  # the last are spikes that come back
                    after = [*after[:-1], spikes]
            states = after
            first.append(states[0])
        return Walk(file, [*states], torch.stack(first) if trace else None)

    @staticmethod
    def _moved(
        walk: partial[Walk],
        current: Tensor,
        states: Sequence[Tensor],
        spikes: Tensor,
        differs: Tensor,
        after: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Where currents and states that rounding moves give the file's spikes, and the states after these."""
        near, by = torch.zeros_like(differs), TIE * current.abs().max()
        after = [*after]
        for up, other in ((1, 1), (-1, -1), (1, -1), (-1, 1)):
            moved = [s + other * TIE * s.abs().max() for s in states]
            again = walk(current + up * by, moved, False)
            now = differs & ~near & (again.spikes[0] == spikes)
            after = [torch.where(now, a, b) for a, b in zip(again.states, after, strict=True)]
            near |= now
        return near, after
