"""NeuroBench's harness over a trained run, with our count of accumulates beside its own.

NeuroBench counts an operation where an input that is not zero meets a weight that is not zero, as an accumulate (AC)
if all inputs of the call are 0 or 1. So it has no shortcut without weights, and behind a mean over space, whose values
are no spikes, it counts multiply-accumulates (MAC), where we count what the spikes would cost one by one. At weights
that read spikes themselves both counts are the same number.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from spiketriton.data import TestSet
from spiketriton.evaluate.counters import SpikeCounter
from spiketriton.evaluate.energy import fan_out_by_reader, spike_sources, workload
from spiketriton.evaluate.evaluation import first_images
from spiketriton.models.agreement import counted_graph
from spiketriton.models.graph import shapes_of
from spiketriton.neurons import SpikingNeuron, one_by_one
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun

STATIC = ("Footprint", "ConnectionSparsity", "ParameterCount")
WORKLOAD = ("ClassificationAccuracy", "ActivationSparsity", "SynapticOperations")
EXACT = 1 << 24  # up to here whole numbers are exact in float32, in which NeuroBench sums


@dataclass
class _Batches:
    """The test images as NeuroBench reads them: images first, recordings too."""

    test: TestSet

    @property
    def dataset(self) -> range:
        return range(self.test.images)

    def __len__(self) -> int:
        return -(-self.test.images // self.test.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.test:
            yield images.transpose(0, 1) if images.ndim == 5 else images, labels


@torch.no_grad()
def neurobench(run: TrainedRun) -> dict[str, Any]:
    """Metrics of NeuroBench's harness on all test images, and our accumulates of one image by what reads the spikes.

    ours: see `fan_out_by_reader`, or None where the network has no graph.
    """
    benchmarks, models, static, of_data = (
        import_module(f"neurobench.{name}")
        for name in ("benchmarks", "models", "metrics.static", "metrics.workload")
    )
    data, test = run.data, run.data.test
    image, steps = data.facts.image_shape, run.time_steps
    counters: dict[str, SpikeCounter] = {}
    try:
        nodes = counted_graph(run.model, first_images(test))
        work = workload(nodes, image, constant=not data.facts.frames)
        by_reader = {
            source.name: fan_out_by_reader(nodes, source, shapes_of(nodes, image))
            for source in spike_sources(nodes)
        }
        for kind in ("weights", "sums", "shortcuts", "pools"):
            part = replace(work, fan_out={name: found[kind] for name, found in by_reader.items()})
            counters[kind] = SpikeCounter(nodes, part, steps=steps, within=steps)
        largest = max(work.layer_macs.values()) * steps
        test = replace(test, batch_size=min(test.batch_size, max(1, EXACT // largest)))
    except UserError:
        counters = {}  # no graph, and no count of ours
    harness = models.TorchModel(run.model)
    harness.add_activation_module(SpikingNeuron)
    with ExitStack() as stack:
        stack.enter_context(one_by_one(run.model))
        stack.enter_context(run.autocast())
        for counter in counters.values():
            stack.enter_context(counter.watching(run.model))
        metrics = benchmarks.Benchmark(
            harness,
            _Batches(test),
            [lambda batch: (_shown(run, batch[0]), batch[1])],
            [lambda currents: currents.float().mean(0).argmax(1).cpu()],
            [[getattr(static, n) for n in STATIC], [getattr(of_data, n) for n in WORKLOAD]],
        ).run(quiet=True)
        harness.cleanup_hooks()
    ours = {
        kind: counter.operations_within()[-1] / test.images if counter.sources else 0.0
        for kind, counter in counters.items()
    }
    return {"images": test.images, "metrics": metrics, "ours": ours or None}


def _shown(run: TrainedRun, images: Tensor) -> Tensor:
    return run.to_device(images.transpose(0, 1).contiguous() if images.ndim == 5 else images)
