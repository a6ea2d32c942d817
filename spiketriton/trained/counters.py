"""Count the spikes of a network's layers while it sees images, with or without a graph of the network."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.models.graph import Graph
from spiketriton.models.network import Network
from spiketriton.neurons import SpikingNeuron, one_by_one
from spiketriton.trained.energy import Workload, spike_sources
from spiketriton.trained.results import Layer


class ActivityCounter:
    """Spikes of each layer by time step and by neuron, where no graph says what is behind them.

    A layer may be called once for a window, once a step, or several times with the same steps.
    """

    def __init__(self, *, steps: int, within: int) -> None:
        self.steps, self.within = steps, within
        self.spikes: dict[str, Tensor] = {}  # int64 [steps]
        self.shown: dict[
            str, Tensor
        ] = {}  # images that a layer was shown in each step, int64 [steps]
        self.by_neuron: dict[str, Tensor] = {}  # within T, int64 [N]
        self.most: dict[str, int] = {}  # spikes of a neuron in one step
        self.start, self.length = 0, steps
        self.seen: dict[str, int] = {}  # steps of the chunk

    @contextmanager
    def watching(self, model: Network) -> Iterator[None]:
        """Counts the spikes of `model` within this context; of an ANN, values above 0."""
        layers = model.spiking_layers()
        hooks = []
        for name, layer in layers:
            layer.on_fire = partial(self._count, name)
            self.most[name] = getattr(layer, "levels", 1)
        if not model.is_spiking:
            for name, module in model.named_modules():
                if isinstance(module, nn.ReLU):
                    count = partial(self._count, name)
                    hook = lambda module, _, out, count=count: count(out)  # noqa: E731
                    hooks.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for _, layer in layers:
                layer.on_fire = None
            for handle in hooks:
                handle.remove()

    def follow(self, start: int, length: int) -> None:
        """Tells which time steps the model is given next."""
        self.start, self.length, self.seen = start, length, {}

    def _count(self, name: str, out: Tensor) -> None:
        """Adds the spikes [k, B, ...] of some of the chunk's steps."""
        # spikes of I-LIF are whole numbers, each as much as so many spikes; values of an ANN are not
        events = out.detach().flatten(2)
        events = events.long() if name in self.most else events.ne(0)
        if name not in self.spikes:
            self.spikes[name] = torch.zeros(self.steps, dtype=torch.int64)
            self.shown[name] = torch.zeros(self.steps, dtype=torch.int64)
            self.by_neuron[name] = torch.zeros(events.shape[2], dtype=torch.int64)
        at = self.seen.get(name, 0)
        self.seen[name] = at + len(events)
        places = self.start + (at + torch.arange(len(events))) % self.length
        self.spikes[name].index_add_(0, places, events.sum((1, 2)).cpu())
        self.shown[name].index_add_(0, places, torch.full_like(places, events.shape[1]))
        inside = (places < self.within).to(events.device)
        self.by_neuron[name] += events[inside].sum((0, 1)).cpu()

    def layers(self, images: int, spiking: bool) -> list[Layer]:
        """What was counted, by layer."""
        return [
            Layer(
                name=name,
                neurons=len(by_neuron),
                rate=(
                    self.spikes[name] / (self.shown[name].clamp_min(1) * len(by_neuron))
                ).tolist(),
                dead=int((by_neuron == 0).sum()),
                saturated=int(
                    (
                        by_neuron == self.most.get(name, 1) * self.shown[name][: self.within].sum()
                    ).sum()
                ),
                synaptic_operations=math.nan,
            )
            for name, by_neuron in self.by_neuron.items()
        ]

    def mean_rate(self, images: int) -> float:
        """Spikes of all neurons within T, per neuron and time step; nan where none is watched."""
        places = sum(
            int(self.shown[name][: self.within].sum()) * len(n)
            for name, n in self.by_neuron.items()
        )
        return sum(int(n.sum()) for n in self.by_neuron.values()) / places if places else math.nan


class SpikeCounter:
    """Spikes of each layer by time step and by neuron, in whole numbers, over all images."""

    def __init__(self, nodes: Graph, work: Workload, *, steps: int, within: int) -> None:
        self.sources = spike_sources(nodes)
        spiking = any(isinstance(node.module, SpikingNeuron) for node in nodes.values())
        self.pools = {s.name for s in self.sources if s.kind == "maxpool" and spiking}
        self.work, self.within = work, within
        self.spikes = {s.name: torch.zeros(steps, dtype=torch.int64) for s in self.sources}
        self.operations = {s.name: torch.zeros(steps, dtype=torch.int64) for s in self.sources}
        self.by_neuron = {s.name: torch.zeros_like(work.fan_out[s.name]) for s in self.sources}
        self.start, self.length = 0, steps  # of the chunk that the model is given next

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Counts the spikes of `model` within this context."""
        hooks = []
        for source in self.sources:
            assert source.module is not None
            hooks.append(source.module.register_forward_hook(partial(self._count, source.name)))
        try:
            with one_by_one(model):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def follow(self, start: int, length: int) -> None:
        """Tells which time steps the model is given next."""
        self.start, self.length = start, length

    def _count(self, name: str, module: nn.Module, _: Any, out: Tensor) -> None:
        """Adds the chunk of a neuron, [k, B, ...], or of a pool, [k * B, ...]."""
        fan_out = self.work.fan_out[name]
        # float sums of a batch are exact, and twice as fast as integer ones
        # a pool may hand on sums of spikes, those of several synapses; spikes of I-LIF are whole numbers, each as
        # much as so many spikes; values of an ANN are not
        counts = name in self.pools or isinstance(module, SpikingNeuron)
        spikes = out if counts else out.ne(0)
        events = spikes.view(self.length, -1, *fan_out.shape).sum(1, dtype=torch.float32)
        events = events.cpu().long()
        chunk = slice(self.start, self.start + self.length)
        self.spikes[name][chunk] += events.flatten(1).sum(1)
        self.operations[name][chunk] += (events * fan_out).flatten(1).sum(1)
        if chunk.stop <= self.within:
            self.by_neuron[name] += events.sum(0)

    def operations_within(self) -> list[int]:
        """Synaptic operations of all images within t steps, for every t."""
        per_step = torch.stack(list(self.operations.values())).sum(0)
        return [int(n) for n in per_step.cumsum(0)]

    def layers(self, images: int, spiking: bool) -> list[Layer]:
        """What was counted, per neuron layer; a pool's operations are its neurons'."""
        found = []
        for source in self.sources:
            if source.kind != "neuron":
                continue
            behind = [source.name, *self._pools_of(source.name)]
            operations = sum(int(self.operations[name][: self.within].sum()) for name in behind)
            by_neuron = self.by_neuron[source.name]
            found.append(
                Layer(
                    name=source.name,
                    neurons=by_neuron.numel(),
                    rate=(self.spikes[source.name] / (images * by_neuron.numel())).tolist(),
                    dead=int((by_neuron == 0).sum()),
                    saturated=int(
                        (
                            by_neuron == getattr(source.module, "levels", 1) * images * self.within
                        ).sum()
                    ),
                    synaptic_operations=operations / images if spiking else 0.0,
                )
            )
        return found

    def mean_rate(self, images: int) -> float:
        """Spikes of all neurons within T, per neuron and time step."""
        neurons = [self.by_neuron[s.name] for s in self.sources if s.kind == "neuron"]
        places = sum(n.numel() for n in neurons)
        return sum(int(n.sum()) for n in neurons) / (images * self.within * places)

    def _pools_of(self, name: str) -> list[str]:
        return [s.name for s in self.sources if s.kind == "maxpool" and name in s.inputs]
