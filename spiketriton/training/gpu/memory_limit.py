"""Out of memory: what a step needed, the keys that lower it, and the largest micro-batch that fits.

On a GPU `train.micro_batch = "auto"` tries each divisor of a device's batch, the largest first, on a throw-away
network: one optimizer step, then a second forward and backward pass, when memory peaks. What was found is kept in the
run folder: batch norm sees micro-batches, so a resumed run must keep its size.

On a CPU nothing is tried: Linux kills a process that takes too much, and oneDNN computes no new convolution in one that
was refused memory once.
"""

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from spiketriton.config import ModelConfig, Recipe, TrainConfig
from spiketriton.config.names import BLOCK_NETS, SKIPLESS
from spiketriton.data import Data, Facts
from spiketriton.models import build_model
from spiketriton.plugins.tasks import task_of
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import read_json
from spiketriton.system.errors import UserError
from spiketriton.system.ranks import Ranks
from spiketriton.training import environment
from spiketriton.training.ema import MovingAverage
from spiketriton.training.gpu.graphs import obstacle_of
from spiketriton.training.meters import is_out_of_memory, peak_memory_mib
from spiketriton.training.optim import build_optimizer
from spiketriton.training.placement import Placement
from spiketriton.training.randomness import random_state, set_random_state

TRIED = ("cuda",)  # kinds of devices on which sizes are tried


class OutOfMemory(UserError):
    """The recipe needs more memory than there is."""


def explained(
    error: BaseException, recipe: Recipe, device: torch.device, images: int
) -> OutOfMemory:
    """The one-line error for running out of memory in training, by a micro-batch of `images` on this device."""
    peak, had, total = peak_memory_mib(device), "the peak of this process", ""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        had, total = "the peak allocated before", f" of {memory / 2**20:.0f} MiB"
    half = environment.choose_precision(recipe.train.precision, device).value != torch.float32
    spiking, tried = recipe.neuron.kind != "relu", device.type in TRIED
    remedies = _remedies(recipe.train, recipe.model, spiking, images, half, tried)
    return OutOfMemory(
        f"out of memory on {device.type}: {_asked(str(error)) or 'memory'} more was asked for, {had} was "
        f"{peak:.0f} MiB{total}; a micro-batch is {images} images (train.batch_size = "
        f"{recipe.train.batch_size}); what lowers it: {', '.join(remedies)}"
    )


def too_large(error: BaseException) -> OutOfMemory:
    """The one-line error for running out of memory before training: a smaller batch would not help."""
    return OutOfMemory(
        f"out of memory before the first step: {_asked(str(error)) or 'memory'} more was asked for; "
        "what lowers it: a smaller model.width, model.depth, data.image_size or time_steps"
    )


def _asked(message: str) -> str:
    """The size in the messages of torch's allocators: `2.00 GiB`, or of bytes."""
    if found := re.search(r"[Tt]ried to allocate ([\d.]+ [KMG]iB)", message):
        return found[1]
    if found := re.search(r"tried to allocate (\d+) bytes", message):
        return f"{int(found[1]) / 2**20:.1f} MiB"
    return ""


def _remedies(
    train: TrainConfig, model: ModelConfig, spiking: bool, images: int, half: bool, tried: bool
) -> list[str]:
    """Changes to the recipe that need less memory and are not made yet; the cheapest first."""
    tips = []
    if images > 1:
        fewer = next(n for n in range(images // 2, 0, -1) if images % n == 0)
        auto = " or auto" if tried and train.micro_batch != "auto" else ""
        tips.append(f"train.micro_batch={fewer}{auto} (the same batch in more parts)")
    if model.memory == "standard" and spiking:
        tips.append("model.memory=packed (the same gradients)")
    if not half:
        tips.append("train.precision=bf16")
    if train.batch_size > 1:
        tips.append("a lower train.batch_size")
    more = "(the same gradients, one more forward pass)"
    if model.name in BLOCK_NETS and not model.checkpoint_blocks and not train.compile:
        tips.append(f"model.checkpoint_blocks=true {more}")
    if model.name in SKIPLESS and model.memory != "recomputed" and spiking and not train.compile:
        tips.append(f"model.memory=recomputed {more}")
    return tips or ["a smaller model.width, data.image_size or time_steps"]


def trial(recipe: Recipe, facts: Facts, frames: int, share: int, ranks: int, images: int) -> None:
    """A step of a new network on so many images of noise, then forward and backward once more.

    There is also what lies beside them: averaged weights, the buckets in which ranks exchange gradients, and all images
    of a step where a graph replays it. Not the proof of a graph: without memory for it, steps run eagerly.

    Args:
        frames: of a recording or sequence; 0: constant images. share: images of a step on this device. ranks: of all
            machines.

    Raises what happens where they do not fit in memory.
    """
    cfg = recipe.train
    placement = Placement.set_up(cfg)
    model = placement.place(build_model(recipe, **facts.sizes))
    forward = environment.compiled(model) if cfg.compile else model
    optimizer = build_optimizer(cfg, model, recipe.peak_lr)
    task, outputs = task_of(recipe.loss, [1] * len(facts.classes)), len(facts.classes)
    average = MovingAverage(model, cfg.ema) if cfg.ema else None
    buckets = [torch.zeros_like(w) for w in model.parameters() if w.requires_grad and ranks > 1]
    graphed = cfg.graph and not obstacle_of(
        placement.device, ranks, placement.scaler().is_enabled()
    )

    def noise(images: int) -> Tensor:
        shape = (*([frames] if frames else []), images, *facts.image_shape)
        return placement.to_device(torch.randn(shape, device=placement.device))

    others = noise(share - images) if graphed else None
    batch = noise(images)
    size = (images, *task.target_shape(outputs, facts.image_size))
    targets = torch.zeros(size, dtype=task.targets, device=placement.device)
    for _ in range(2):
        with placement.autocast():
            value = task.loss(forward(batch), targets)
        value.backward()
        optimizer.step()
        if average is not None:
            average.update()
    value.item()  # waits for the device
    del others, buckets  # until then they took their memory


def settle(
    recipe: Recipe, data: Data, folder: RunFolder, note: Callable[[str], None], ranks: Ranks
) -> Data:
    """`data` with the largest micro-batches that fit, for `train.micro_batch = "auto"`; on a CPU with whole batches.

    All ranks use the smallest size found by any of them. OutOfMemory: not even one image fits.
    """
    found, train = folder.micro_batch, data.train
    share = train.batch_size // train.world_size
    even = 1 if train.dataset.mixing is None else 2  # it mixes pairs
    sizes = [n for n in range(share, 0, -1) if share % n == 0 and n % even == 0]
    size = ranks.decide(lambda: _read(found, sizes) if found.exists() else 0)
    if size:
        note(f"micro-batch: {size} of {share} images, as this run began")
    else:
        device = environment.choose_device(recipe.train.device).value
        tried = device.type in TRIED
        run = partial(trial, recipe, data.facts, data.frames, share, train.world_size)
        fits, failure = _largest_that_fits(sizes, run) if tried else (share, None)
        if failure is not None:
            raise explained(failure, recipe, device, fits)
        ranks.meet()  # their trials may differ by minutes
        size = -int(ranks.most(-fits))
        why = "the largest that fits in memory" if tried else "as none is tried on a CPU"
        note(f"micro-batch: {size} of {share} images, {why}")
        folder.write_micro_batch(size)
    return replace(
        data,
        train=replace(train, accumulate=share // size),
        test=replace(data.test, batch_size=size),
        validation=data.validation and replace(data.validation, batch_size=size),
    )


def _read(path: Path, sizes: Sequence[int]) -> int:
    content = read_json(path)
    size = content.get("micro_batch") if isinstance(content, dict) else None
    if type(size) is not int or size not in sizes:
        raise UserError(f"{path} is damaged: no divisor of {sizes[0]} images is in it")
    return size


def _largest_that_fits(
    sizes: Sequence[int], run: Callable[[int], None]
) -> tuple[int, Exception | None]:
    """The first of some falling numbers of images for which there is memory; or the last, and its failure."""
    before, failure = random_state(), None
    try:
        for size in sizes:
            if (failure := _failure(run, size)) is None:
                break
    finally:
        set_random_state(before)
        torch.cuda.empty_cache()
    return size, failure


def _failure(run: Callable[[int], None], size: int) -> Exception | None:
    """The out-of-memory error of a trial, or None. Its frames, which hold tensors, are dropped."""
    try:
        run(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)
    else:
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return failure
