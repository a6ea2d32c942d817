"""What a run does on its test images: accuracy by time step, spikes, operations, energy, speed."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton.data import TestSet
from spiketriton.errors import UserError, one_line
from spiketriton.models.graph import AGREEMENT, Graph, counted_graph
from spiketriton.models.network import Network
from spiketriton.neurons import IF, PSN, MaskedPSN, Norm, SlidingPSN, SpikingNeuron, one_by_one
from spiketriton.plain import of_plain
from spiketriton.runs.rows import json_text
from spiketriton.trained.energy import Workload, ann_energy_pj, energy_pj, spike_sources, workload
from spiketriton.trained.raster import Raster, raster_of
from spiketriton.trained.run import Run, with_bar
from spiketriton.training import environment

CHUNK = 16  # time steps at once, so that memory does not grow with the window
TIMED_BATCHES = 3
SAMPLES = 4  # recordings in pictures
Z95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The activity of one spiking layer (of an ANN: the share of its values that are not zero)."""

    name: str
    neurons: int
    rate: list[float]  # spikes a neuron, of each time step
    dead: int  # neurons that did not spike on any test image within T
    saturated: int  # neurons that spiked at each step of each test image within T
    synaptic_operations: (
        float  # of one image within T, behind this layer; 0 for an ANN, nan if not counted
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A test recording, small enough for a picture, and what the network says to it."""

    label: str
    answers: list[str]  # after each time step
    shape: list[int]  # T, 2, S, S
    counts: str  # uint8, compressed by zlib, in base64

    @classmethod
    def of(cls, label: str, frames: Tensor, answers: list[str]) -> Sample:
        """Of frames uint8 [T, 2, S, S]; more than 64 pixels become the largest count of a window."""
        window = -(-frames.shape[-1] // 64)
        small = F.max_pool2d(frames.float(), window, ceil_mode=True).to(torch.uint8)
        packed = zlib.compress(small.numpy().tobytes(), 9)
        return cls(
            label=label,
            answers=answers,
            shape=list(small.shape),
            counts=base64.b64encode(packed).decode(),
        )

    @property
    def frames(self) -> np.ndarray:
        """uint8 [T, 2, S, S]."""
        return np.frombuffer(zlib.decompress(base64.b64decode(self.counts)), np.uint8).reshape(
            self.shape
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured of one run; lists by time step begin with the first step."""

    run: str
    recipe: str
    kind: str  # "spiking", "converted" or "ann"
    neuron: str
    method: str | None  # of the conversion
    checkpoint: str
    training_step: int
    data: str  # and its split
    synthetic: bool
    images: int
    classes: list[str]
    time_steps: int  # T of the recipe; values without a time axis are at T
    accuracy: list[float]
    interval: list[tuple[float, float]]  # 95 %, Wilson
    confusion: list[list[int]]  # [true class][answer]
    layers: list[Layer]
    mean_rate: float  # of all neurons and steps within T
    synaptic_operations: list[float]  # accumulates of one image within t steps
    neurons: int
    macs_once: int
    macs_per_step: int
    ann_macs: int
    layer_macs: dict[str, int]
    leaky: bool
    energy_uj: list[float]  # of one image within t steps, by operations
    energy_with_data_uj: list[float]  # and with data movement
    images_per_s: float  # at T, with nothing counted
    device: str
    events: bool = False  # recordings, a frame at each step, instead of constant images
    ms_per_step: float | None = (
        None  # of the recordings, in the mean; None: bins of no fixed length
    )
    uncounted: str = ""  # why there are no operations and no energy: nan in all lists of them
    available: int = 0  # test images that there are; 0: not recorded
    samples: list[Sample] = dataclasses.field(default_factory=list)  # of events, for pictures
    raster: Raster | None = None  # of one image, for a picture
    membrane_macs: int = 1  # of a leaky neuron in a step

    @property
    def what(self) -> str:
        """What the run is tested on, one of it: an image, or a recording of events."""
        return "recording" if self.events else "image"

    @property
    def tested(self) -> str:
        """What was tested on, in words: a part of the test images says so."""
        part = f" of {self.available:,}" if self.available > self.images else ""
        return f"{self.images:,}{part} test {self.what}s"

    @property
    def steps(self) -> int:
        """Time steps that were run."""
        return len(self.accuracy)

    @property
    def class_accuracy(self) -> list[float]:
        """The share of each class's images that were answered right at T; nan without images."""
        return [row[i] / sum(row) if sum(row) else math.nan for i, row in enumerate(self.confusion)]

    @property
    def label(self) -> str:
        """A short name for tables and pictures."""
        how = {"ann": "ANN", "converted": f"converted, {self.method}", "spiking": self.neuron}
        return f"{Path(self.run).name} ({how[self.kind]})"

    def accumulates(self, t: int) -> float:
        """ACs of one image within t steps: synapses, and the membranes of neurons without leak."""
        membranes = self.neurons * t * (self.kind != "ann" and not self.leaky)
        return self.synaptic_operations[t - 1] + membranes

    def macs(self, t: int) -> int:
        """MACs of one image within t steps: synapses, and the membranes of leaky neurons."""
        return (
            self.macs_once
            + (self.macs_per_step + self.neurons * self.leaky * self.membrane_macs) * t
        )

    def twin_macs(self, t: int) -> int:
        """MACs of the ANN twin, which sees a constant image once and each of t frames."""
        return self.ann_macs * (t if self.events else 1)

    def to_json(self) -> str:
        return json_text(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """ValueError: the text is not an evaluation."""
        found = of_plain(cls, json.loads(text))
        steps, classes = found.steps, len(found.classes)
        lengths = {
            "time_steps": 1 <= found.time_steps <= steps,
            "images": found.images > 0,
            "interval": len(found.interval) == steps,
            "synaptic_operations": len(found.synaptic_operations) == steps,
            "energy_uj": len(found.energy_uj) == steps,
            "energy_with_data_uj": len(found.energy_with_data_uj) == steps,
            "confusion": [len(row) for row in found.confusion] == [classes] * classes,
            "layers": all(len(layer.rate) == steps and layer.neurons > 0 for layer in found.layers),
        }
        for name, fits in lengths.items():
            if not fits:
                raise ValueError(f"{name} does not fit the rest")
        return found


@torch.inference_mode()
def evaluate(run: Run, steps: int | None = None, batch_size: int = 0) -> Evaluation:
    """Runs the test images through a network and counts everything.

    Args:
        run: a loaded run.
        steps: time steps to run, if more than the run's T; an ANN always has 1, recordings T.
        batch_size: images at once; 0: the recipe's batch size.

    Raises:
        UserError: more steps than the network has gains for (TEBN), or than recordings have frames.
    """
    model, data, spiking = run.model, run.data, run.model.is_spiking
    last = run.time_steps
    if data.facts.frames and (steps or 0) > last:
        raise UserError(f"{run.folder.path}: recordings of {last} frames have no step {steps}")
    if spiking:
        last = max(last, steps or 0)
    if last > run.time_steps and any(isinstance(n, PSN) for _, n in model.spiking_layers()):
        raise UserError(
            f"{run.folder.path}: its parallel neurons have weights for {run.time_steps} time steps and cannot run "
            f"{last}; accepted: up to {run.time_steps}"
        )
    for norm in (m for m in model.modules() if isinstance(m, Norm)):
        norm.gains(last)  # TEBN refuses steps for which it has learnt no gain
    test = data.test
    if batch_size:
        test = dataclasses.replace(test, batch_size=batch_size)
    image = (data.channels, data.image_size, data.image_size)
    uncounted = ""
    counter: SpikeCounter | ActivityCounter
    work = Workload(layer_macs={}, macs_once=0, macs_per_step=0, neurons=0, fan_out={})
    try:
        nodes = counted_graph(model, _first_images(test))
        work = workload(nodes, image, constant=not data.facts.frames)
        counter = SpikeCounter(nodes, work, steps=last, within=run.time_steps)
    except UserError as error:
        uncounted = str(error)
        counter = ActivityCounter(steps=last, within=run.time_steps)
    chunks = _parts_of_window(run, _first_images(test), last)
    first = 0 if model.answers_each_step else last - 1  # the step of the first answer

    classes = len(data.classes)
    correct = torch.zeros(last - first, dtype=torch.int64)
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    images_per_s = _images_per_s(run, test)
    with counter.watching(model):
        for images, labels in with_bar(test, f"{run.folder.path.name}, {last} time steps"):
            answers = _answers(run, images, chunks, counter.follow)
            correct += (answers == labels).sum(1)
            pairs = labels * classes + answers[run.time_steps - 1 - first]
            confusion += pairs.bincount(minlength=classes * classes)

    images_seen = int(confusion.sum())
    if isinstance(counter, ActivityCounter):
        operations = [math.nan] * last
    else:
        operations = [n / images_seen if spiking else 0.0 for n in counter.operations_within()]
    leak = max([_membrane_macs(n, run.time_steps) for _, n in model.spiking_layers()], default=0)
    energy = [ann_energy_pj(work.ann_macs * t) for t in range(1, last + 1)]
    if spiking:
        energy = [
            energy_pj(work, ops, t, membrane_macs=leak) for t, ops in enumerate(operations, 1)
        ]
    if uncounted:
        energy = [(math.nan, math.nan)] * last
    return Evaluation(
        run=str(run.folder.path),
        recipe=run.recipe.name,
        kind=run.kind,
        neuron=_neurons(run),
        method=run.conversion["method"] if run.conversion else None,
        checkpoint=run.checkpoint,
        training_step=run.step,
        data=data.label,
        synthetic=data.synthetic,
        images=images_seen,
        available=len(test.dataset.split),
        uncounted=uncounted,
        classes=list(data.classes),
        time_steps=run.time_steps,
        accuracy=[math.nan] * first + [int(n) / images_seen for n in correct],
        interval=[(math.nan, math.nan)] * first + [wilson(int(n), images_seen) for n in correct],
        confusion=confusion.view(classes, classes).tolist(),
        layers=counter.layers(images_seen, spiking),
        mean_rate=counter.mean_rate(images_seen),
        synaptic_operations=operations,
        neurons=work.neurons,
        macs_once=work.macs_once if spiking else work.ann_macs * (not data.facts.frames),
        macs_per_step=work.macs_per_step if spiking else work.ann_macs * bool(data.facts.frames),
        ann_macs=work.ann_macs,
        layer_macs=work.layer_macs,
        leaky=bool(leak),
        membrane_macs=leak,
        energy_uj=[pj * 1e-6 for pj, _ in energy],
        energy_with_data_uj=[pj * 1e-6 for _, pj in energy],
        images_per_s=images_per_s,
        device=torch.cuda.get_device_name(run.device)
        if run.device.type == "cuda"
        else environment.cpu_name(),
        events=bool(data.facts.frames),
        ms_per_step=None if data.bin_ms is None else float(data.bin_ms[test.members].mean()),
        samples=_samples(run) if data.facts.frames and model.answers_each_step else [],
        raster=raster_of(run),
    )


def _membrane_macs(neuron: SpikingNeuron, steps: int) -> int:
    """MACs of one neuron in one step: none without a leak; of a PSN one for each step that it reads."""
    if isinstance(neuron, MaskedPSN | SlidingPSN):
        return min(neuron.k, steps)
    if isinstance(neuron, PSN):
        return steps
    return 0 if isinstance(neuron, IF) else 1


def _neurons(run: Run) -> str:
    """The kind of neuron that the recipe names; the kinds that a network of others has."""
    if ":" not in run.recipe.model.name:
        return run.recipe.neuron.kind
    kinds = {type(neuron).__name__.lower() for _, neuron in run.model.spiking_layers()}
    return ", ".join(sorted(kinds)) or "its own neurons"


def wilson(right: int, images: int) -> tuple[float, float]:
    """95 % interval of the share right / images (Wilson 1927): never outside 0..1."""
    share, z2 = right / images, Z95**2 / images
    middle = share + z2 / 2
    reach = math.sqrt(share * (1 - share) * z2 + z2**2 / 4)
    return max(0.0, (middle - reach) / (1 + z2)), min(1.0, (middle + reach) / (1 + z2))


def _first_images(test: TestSet) -> Tensor:
    """Two test images, or recordings."""
    images, _ = next(iter(test))
    return images.narrow(-4, 0, min(2, images.shape[-4]))


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


def _parts_of_window(run: Run, images: Tensor, steps: int) -> list[tuple[int, int]]:
    """Start and length of the chunks in which a window is run; one where the network runs only whole ones.

    That is so where a neuron is called several times with the same steps, or something else is kept between steps.
    """
    chunks = list(_chunks(steps, run.time_steps))
    if len(chunks) == 1 or not run.model.streams:
        return [(0, steps)]
    images = run.to_device(images)
    with run.autocast():
        whole = _shown(run, images, 0, steps)
        with _streaming(run):
            cut = torch.cat([_shown(run, images, *chunk) for chunk in chunks])
    far = (cut - whole).abs().mean()
    return chunks if far <= AGREEMENT * whole.abs().mean() else [(0, steps)]


def _answers(
    run: Run,
    images: Tensor,
    chunks: Sequence[tuple[int, int]],
    follow: Callable[[int, int], object] = lambda *_: None,
) -> Tensor:
    """The class of the largest mean current after each step of the `chunks` of a window: [steps, B].

    follow: told the start and length of each chunk before the model is given it.
    """
    images = run.to_device(images)
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    answers = []
    with _streaming(run) if len(chunks) > 1 else nullcontext(), run.autocast():
        for start, length in chunks:
            follow(start, length)
            currents = _shown(run, images, start, length).double()
            # no cumsum, which CUDA refuses under train.deterministic
            sums = total + torch.stack(list(itertools.accumulate(currents)))
            answers.append(sums.argmax(2))
            total = sums[-1]
    return torch.cat(answers).cpu()


def _shown(run: Run, images: Tensor, start: int, length: int) -> Tensor:
    """Currents [length, B, K] of the steps from `start` on: of constant images, or of their frames."""
    if images.ndim == 5:
        return run.model(images[start : start + length])
    return run.model(images, length)


def _chunks(steps: int, within: int) -> Iterator[tuple[int, int]]:
    """Start and length of the chunks of a window; one ends at `within`."""
    start = 0
    while start < steps:
        end = min(start + CHUNK, steps, within if start < within else steps)
        yield start, end - start
        start = end


@contextmanager
def _streaming(run: Run) -> Iterator[None]:
    """Within this context the model's state is kept from call to call, from a fresh start."""
    run.model.set_stateful(run.model.is_spiking)
    try:
        yield
    finally:
        run.model.set_stateful(False)


@torch.inference_mode()
def _images_per_s(run: Run, test: TestSet) -> float:
    """Images that the network answers in a second at T, after a first batch that warms it up."""
    batches = [
        run.to_device(images)
        for _, (images, _) in zip(range(1 + TIMED_BATCHES), test, strict=False)
    ]
    batches = batches[-1:] * 2 if len(batches) == 1 else batches

    chunks = _parts_of_window(run, batches[0], run.time_steps)

    def answer(images: Tensor) -> None:
        with _streaming(run) if len(chunks) > 1 else nullcontext(), run.autocast():
            for start, length in chunks:
                _shown(run, images, start, length)

    answer(batches[0])
    _wait(run.device)
    start = time.perf_counter()
    for images in batches[1:]:
        answer(images)
    _wait(run.device)
    return sum(images.shape[-4] for images in batches[1:]) / (time.perf_counter() - start)


def _samples(run: Run) -> list[Sample]:
    """The first test recording of each of a few classes, and the answers to it."""
    test = run.data.test
    labels = test.dataset.split.labels[torch.from_numpy(test.members)]
    firsts = [int(at[0]) for at in (labels.eq(c).nonzero() for c in labels.unique()) if len(at)]
    chosen = test.members[np.array(firsts[:SAMPLES])]
    frames = test.dataset.split.read(chosen)
    images = test.dataset.whole(frames)
    answers = _answers(run, images, _parts_of_window(run, images, run.time_steps))
    classes = run.data.classes
    return [
        Sample.of(classes[int(test.dataset.split.labels[index])], frame, [classes[a] for a in said])
        for index, frame, said in zip(chosen, frames, answers.T.tolist(), strict=True)
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation.json. UserError: it is damaged, or was written by another version."""
    try:
        return Evaluation.from_json(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not an evaluation of this version ({one_line(error)[:120]}); run "
            "spiketriton evaluate again"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
