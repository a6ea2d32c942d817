"""Count the spikes of a network's layers while it sees images, with or without a graph of the network."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.evaluate.energy import Workload, spike_sources
from spiketriton.evaluate.results import Layer
from spiketriton.models.graph import Graph
from spiketriton.models.network import Network
from spiketriton.neurons import one_by_one, spiking, told_of_spikes


class SpikeCounter:
    """Spikes of each layer by time step and by neuron, in whole numbers, over all images; of an ANN, values above 0.

    They are summed where the network computes, and nothing waits for them before they are read.
    Without a graph (`nodes`) nobody says what is behind a layer, and it may be called once for a window, once a
    step, or several times with the same steps.
    """

    def __init__(
        self, nodes: Graph | None = None, work: Workload | None = None, *, steps: int, within: int
    ) -> None:
        self.sources = spike_sources(nodes) if nodes else []
        self.pools = {s.name for s in self.sources if s.kind == "maxpool"}
        self.spiking = any(spiking(source.module) for source in self.sources)
        self.fan_out = work.fan_out if work else {}
        self.steps, self.within = steps, within
        self.operations: dict[str, Tensor] = {}  # of each source, int64 [steps]
        self.spikes: dict[str, Tensor] = {}  # int64 [steps]
        self.shown: dict[str, Tensor] = {}  # images that a layer saw in each step, int64 [steps]
        self.by_neuron: dict[str, Tensor] = {}  # within T, int64 [N]
        self.most: dict[str, int] = {}  # spikes of a neuron in one step
        self.start, self.length = 0, steps
        self.seen: dict[str, int] = {}  # steps of the chunk
        self.lengths: Tensor | None = (
            None  # of the sequences that are shown; None: all steps are valid
        )
        self.valid = torch.zeros(steps, dtype=torch.int64)  # images for which a step is valid
        self.unpadded = True

    @contextmanager
    def watching(self, model: Network) -> Iterator[None]:
        """Counts the spikes of `model` within this context."""
        layers = {} if self.sources else dict(model.spiking_layers())
        modules: dict[str, Any] = {source.name: source.module for source in self.sources}
        if not modules and not model.is_spiking:
            modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.ReLU)}

        def tell(name: str, out: Tensor) -> None:
            self._count(name, layers[name], None, out)

        with ExitStack() as stack:
            for name, module in modules.items():
                hook = module.register_forward_hook(partial(self._count, name))
                stack.callback(hook.remove)
            if self.sources:
                stack.enter_context(one_by_one(model))
            stack.enter_context(told_of_spikes([*layers.items()], tell))
            yield

    def follow(self, start: int, length: int) -> None:
        """Tells which time steps the model is given next."""
        self.start, self.length, self.seen = start, length, {}
        if self.lengths is not None:
            self.unpadded = False
            steps = torch.arange(start, start + length).unsqueeze(1)
            self.valid[start : start + length] += (steps < self.lengths.cpu()).sum(1)

    def valid_steps(self, images: int) -> list[float]:
        """Within t steps, for every t: how many of them are valid, on average over the images."""
        if self.unpadded:
            return [float(t) for t in range(1, self.steps + 1)]
        return [int(n) / images for n in self.valid.cumsum(0)]

    def _count(self, name: str, module: nn.Module, _: Any, out: Tensor) -> None:
        """Adds the spikes of some of the chunk's steps: of a neuron [k, B, ...], of a pool [k * B, ...]."""
        # a pool may hand on sums of spikes, those of several synapses; spikes of I-LIF are whole numbers, each as
        # much as so many spikes; values of an ANN are not
        whole = spiking(module) is not None or (name in self.pools and self.spiking)
        spikes = out if whole else out.ne(0)
        if name in self.pools:
            spikes = spikes.unflatten(0, (self.length, -1))
        at = self.seen.get(name, 0)
        self.seen[name] = at + len(spikes)
        places = self.start + (at + torch.arange(len(spikes), device=spikes.device)) % self.length
        shown = torch.full_like(places, spikes.shape[1])
        if self.lengths is not None:
            valid = places.unsqueeze(1) < self.lengths
            spikes, shown = spikes.flatten(2) * valid.unsqueeze(2), valid.sum(1)
        # float sums of a batch are exact, and twice as fast as integer ones
        events = spikes.flatten(2).sum(1, dtype=torch.float32).long()
        if name not in self.spikes:
            for counts in (self.spikes, self.shown, self.operations):
                counts[name] = events.new_zeros(self.steps)
            self.by_neuron[name] = events.new_zeros(events.shape[1])
            self.most[name] = getattr(spiking(module), "levels", 1)
        self.spikes[name].index_add_(0, places, events.sum(1))
        self.shown[name].index_add_(0, places, shown)
        self.by_neuron[name] += (events * (places < self.within)[:, None]).sum(0)
        if self.sources:
            synapses = events * self.fan_out[name].flatten().to(events.device)
            self.operations[name].index_add_(0, places, synapses.sum(1))

    def operations_within(self) -> list[int]:
        """Synaptic operations of all images within t steps, for every t."""
        per_step = torch.stack(list(self.operations.values())).sum(0)
        return [int(n) for n in per_step.cumsum(0)]

    def layers(self, images: int, spiking: bool) -> list[Layer]:
        """What was counted, per neuron layer; a pool's operations are its neurons'."""
        names = [s.name for s in self.sources if s.kind == "neuron"] or list(self.by_neuron)
        return [self._layer(name, images, spiking) for name in names]

    def _layer(self, name: str, images: int, spiking: bool) -> Layer:
        by_neuron, shown = self.by_neuron[name], self.shown[name]
        operations = math.nan
        if self.sources:
            pools = [s.name for s in self.sources if s.kind == "maxpool" and name in s.inputs]
            behind = (int(self.operations[n][: self.within].sum()) for n in (name, *pools))
            operations = sum(behind) / images if spiking else 0.0
        always = self.most[name] * shown[: self.within].sum()
        return Layer(
            name=name,
            neurons=len(by_neuron),
            rate=(self.spikes[name] / (shown.clamp_min(1) * len(by_neuron))).tolist(),
            dead=int((by_neuron == 0).sum()),
            saturated=int((by_neuron == always).sum()),
            synaptic_operations=operations,
        )

    def mean_rate(self) -> float:
        """Spikes of all neurons within T, per neuron and time step; nan where none is watched."""
        neurons = {n: x for n, x in self.by_neuron.items() if n not in self.pools}
        places = sum(int(self.shown[n][: self.within].sum()) * len(x) for n, x in neurons.items())
        return sum(int(x.sum()) for x in neurons.values()) / places if places else math.nan
