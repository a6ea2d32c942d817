"""What a run does on its test images: the score by time step, spikes, operations, energy, speed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from spiketriton.data import TestSet
from spiketriton.evaluate.baselines import baselines_of
from spiketriton.evaluate.counters import SpikeCounter
from spiketriton.evaluate.energy import Workload, ann_energy_pj, energy_pj, workload
from spiketriton.evaluate.raster import raster_of
from spiketriton.evaluate.results import Evaluation, Sample
from spiketriton.models.agreement import AGREEMENT, counted_graph
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton.plugins.tasks import answers as currents_of
from spiketriton.plugins.tasks import has_time, image_dim
from spiketriton.system import machine
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun, with_bar
from spiketriton_kernels import nn as kernels

Chunks: TypeAlias = Sequence[tuple[int, int]]  # starts and lengths
Follow: TypeAlias = Callable[[int, int], object]
CHUNK = 16  # time steps at once, so that memory does not grow with the window
TIMED_BATCHES = 3
SAMPLES = 4  # recordings in pictures
Z95 = 1.959964  # two-sided 95 % of the normal distribution


@torch.inference_mode()
def evaluate(run: TrainedRun, steps: int | None = None, batch_size: int = 0) -> Evaluation:
    """Runs the test images through a network and counts everything.

    steps: to run, if more than the run's T; an ANN has 1, recordings T. batch_size: 0: the recipe's.
    UserError: more steps than the network has gains for (TEBN), or than recordings have frames.
    """
    model, data, spiking = run.model, run.data, run.model.is_spiking
    last = _window(run, steps)
    test = data.test
    if batch_size:
        test = dataclasses.replace(test, batch_size=batch_size)
    counter, work, uncounted = _counter(run, test, last)
    chunks = _chunks_of_window(run, first_images(test), last)
    task, images_seen = data.task, 0
    # the step of the first answer
    first = 0 if model.answers_each_step and not task.whole else last - 1
    sums, confusion = [torch.zeros(())] * (last - first), torch.zeros(())
    images_per_s = _images_per_s(run, test)
    with counter.watching(model):
        for images, *rest in with_bar(test, f"{run.folder.path.name}, {last} time steps"):
            targets, *lengths = (one.to(run.device) for one in rest)
            images_seen += len(targets)
            counter.lengths = lengths[0] if lengths else None
            currents = _window_of(run, images, chunks, counter.follow, lengths)
            for t, found in enumerate(task.summed_so_far(currents, targets, *lengths)):
                sums[t] = sums[t].to(run.device) + found
            if task.classifies:
                within = run.time_steps if len(currents) == last else len(currents)
                answers = task.reading(currents[:within], *lengths)
                confusion = confusion.to(run.device) + _confusion(answers, targets)
    scores = [task.scored(one.cpu(), images_seen) for one in sums]
    wide = [(math.nan, math.nan)] * len(scores)
    if task.of_images:
        wide = [wilson(round(one.value * images_seen), images_seen) for one in scores]
    if uncounted:
        operations = [math.nan] * last
    else:
        operations = [n / images_seen if spiking else 0.0 for n in counter.operations_within()]
    valid = counter.valid_steps(images_seen)
    leak = max([_membrane_macs(n, run.time_steps) for _, n in model.spiking_layers()], default=0)
    energy = _energy(run, work, operations, valid, leak, counted=not uncounted)
    on_gpu = run.device.type == "cuda"
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
        read=task.reading.words,
        values=[math.nan] * first + [one.value for one in scores],
        score=task.score,
        share=task.share,
        higher_is_better=task.higher_is_better,
        interval=[(math.nan, math.nan)] * first + wide,
        confusion=confusion.long().tolist() if task.classifies else [],
        layers=counter.layers(images_seen, spiking),
        mean_rate=counter.mean_rate(),
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
        device=torch.cuda.get_device_name(run.device) if on_gpu else machine.cpu_name(),
        events=data.facts.move == "events",
        sequences=bool(data.facts.sequence),
        valid_steps=valid,
        ms_per_step=None if data.bin_ms is None else float(data.bin_ms[test.members].mean()),
        samples=_samples(run) if _has_samples(run) else [],
        raster=raster_of(run) if task.classifies else None,
        baselines=baselines_of(run, test) if last == run.time_steps else [],
    )


def _window(run: TrainedRun, steps: int | None) -> int:
    """How many time steps are run. UserError: the network, or its recordings, have not so many."""
    own = run.time_steps
    if run.data.facts.frames and (steps or 0) > own:
        what = f"{run.data.facts.what}s of {own} {'steps' if run.data.facts.sequence else 'frames'}"
        raise UserError(f"{run.folder.path}: {what} have no step {steps}")
    last = max(own, steps or 0) if run.model.is_spiking else own
    if last > own and any(isinstance(n, kernels.PSN) for _, n in run.model.spiking_layers()):
        raise UserError(
            f"{run.folder.path}: its parallel neurons have weights for {own} time steps and cannot run "
            f"{last}; accepted: up to {own}"
        )
    for norm in (m for m in run.model.modules() if isinstance(m, Norm)):
        norm.gains(last)  # TEBN refuses steps for which it has learnt no gain
    return last


def _counter(run: TrainedRun, test: TestSet, steps: int) -> tuple[SpikeCounter, Workload, str]:
    """What counts spikes, and operations by a graph; or why there is no graph that gives the network's answers."""
    data = run.data
    try:
        nodes = counted_graph(run.model, first_images(test))
        work = workload(nodes, data.facts.image_shape, constant=not data.facts.frames)
        return SpikeCounter(nodes, work, steps=steps, within=run.time_steps), work, ""
    except UserError as error:
        nothing = Workload(layer_macs={}, macs_once=0, macs_per_step=0, neurons=0, fan_out={})
        return SpikeCounter(steps=steps, within=run.time_steps), nothing, str(error)


def _energy(
    run: TrainedRun,
    work: Workload,
    operations: list[float],
    valid: list[float],
    leak: int,
    counted: bool,
) -> list[tuple[float, float]]:
    """Of one image within t steps, in pJ: by operations, and with data movement."""
    if not counted:
        return [(math.nan, math.nan)] * len(operations)
    if not run.model.is_spiking:
        return [ann_energy_pj(work.ann_macs * t) for t in valid]
    pairs = zip(operations, valid, strict=True)
    return [energy_pj(work, ops, t, membrane_macs=leak) for ops, t in pairs]


def _membrane_macs(neuron: SpikingNeuron, steps: int) -> int:
    """MACs of one neuron in one step: none without a leak; of a PSN one for each step that it reads."""
    if isinstance(neuron, kernels.MaskedPSN | kernels.SlidingPSN):
        return min(neuron.k, steps)
    if isinstance(neuron, kernels.PSN):
        return steps
    return 0 if isinstance(neuron, kernels.IF) else 1


def _neurons(run: TrainedRun) -> str:
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


def first_images(test: TestSet) -> Tensor:
    """Two test images, recordings or sequences."""
    images = next(iter(test))[0]
    dim = image_dim(images)
    return images.narrow(dim, 0, min(2, images.shape[dim]))


def _chunks_of_window(run: TrainedRun, images: Tensor, steps: int) -> Chunks:
    """Start and length of the chunks in which a window is run; one where the network runs only whole ones.

    That is so where a neuron is called several times with the same steps, or something else is kept between steps.
    """
    ends = sorted({*range(CHUNK, steps, CHUNK), run.time_steps, steps})
    chunks = [(start, end - start) for start, end in itertools.pairwise([0, *ends])]
    if len(chunks) == 1 or not run.model.chunked:
        return [(0, steps)]
    whole, cut = (_window_of(run, images, x) for x in ([(0, steps)], chunks))
    far = (cut - whole).abs().mean()
    return chunks if far <= AGREEMENT * whole.abs().mean() else [(0, steps)]


def _window_of(
    run: TrainedRun,
    images: Tensor,
    chunks: Chunks,
    follow: Follow = lambda *_: None,
    lengths: Sequence[Tensor] = (),
) -> Tensor:
    """The currents [T, B, ...] of all steps of the `chunks` of a window; one where the network answers once.

    follow: told the start and length of each chunk before the model is given it. lengths: of sequences, which no
    network needs that runs in chunks.
    """
    return torch.cat([*_currents(run, run.to_device(images), chunks, follow, lengths)])


def _currents(
    run: TrainedRun,
    images: Tensor,
    chunks: Chunks,
    follow: Follow = lambda *_: None,
    lengths: Sequence[Tensor] = (),
) -> Iterator[Tensor]:
    """Currents [length, B, K] of each chunk: of constant images, or of frames or steps. To be read to the end."""
    run.model.set_stateful(run.model.is_spiking and len(chunks) > 1)
    try:
        with run.autocast():
            for start, length in chunks:
                follow(start, length)
                if len(chunks) == 1 and lengths:
                    yield currents_of(run.model, images, lengths)
                elif has_time(images):
                    yield run.model(images[start : start + length])
                else:
                    yield run.model(images, length)
    finally:
        run.model.set_stateful(False)


@torch.inference_mode()
def _images_per_s(run: TrainedRun, test: TestSet) -> float:
    """Images that the network answers in a second at T, after a first batch that warms it up."""
    some = itertools.islice(test, 1 + TIMED_BATCHES)
    batches = [run.to_device(images) for images, *_ in some]
    first, *timed = batches * 2 if len(batches) == 1 else batches
    chunks = _chunks_of_window(run, first, run.time_steps)
    _window_of(run, first, chunks)
    _wait(run.device)
    start = time.perf_counter()
    for images in timed:
        for _ in _currents(run, images, chunks):
            pass
    _wait(run.device)
    return sum(images.shape[image_dim(images)] for images in timed) / (time.perf_counter() - start)


def _confusion(answers: Tensor, targets: Tensor) -> Tensor:
    """How often each class [row] got each answer [column], int64 [K, K]."""
    classes = answers.shape[1]
    pairs = targets * classes + answers.argmax(1)
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def _has_samples(run: TrainedRun) -> bool:
    data = run.data
    return data.facts.move == "events" and run.model.answers_each_step and data.task.classifies


def _samples(run: TrainedRun) -> list[Sample]:
    """The first test recording of each of a few classes, and the answers to it."""
    test, task = run.data.test, run.data.task
    labels = test.dataset.split.labels[torch.from_numpy(test.members)]
    firsts = [int(at[0]) for at in (labels.eq(c).nonzero() for c in labels.unique()) if len(at)]
    chosen = test.members[np.array(firsts[:SAMPLES])]
    frames = test.dataset.split.read(chosen)
    images = test.dataset.whole(frames)
    currents = _window_of(run, images, _chunks_of_window(run, images, run.time_steps))
    each = task.reading.so_far(currents)
    answers = torch.stack([one.argmax(1) for one in each]).cpu()
    classes = run.data.classes
    return [
        Sample.of(classes[int(test.dataset.split.labels[index])], frame, [classes[a] for a in said])
        for index, frame, said in zip(chosen, frames, answers.T.tolist(), strict=True)
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
