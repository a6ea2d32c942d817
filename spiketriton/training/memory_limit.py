"""Out of memory: what a step needed, the keys that lower it, and the largest micro-batch that fits.

`train.micro_batch = "auto"` tries each divisor of a device's batch, the largest first, on a throw-away network: one
optimizer step, then a second forward and backward pass, when memory peaks. What was found is kept in the run folder:
batch norm sees micro-batches, so a resumed run must keep its size.

On a CPU each trial is a process whose memory is limited to what is free. Without the limit Linux would kill the
process, and oneDNN computes no new convolution in a process that was refused memory once.
"""

import contextlib
import gc
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from spiketriton.config import Recipe
from spiketriton.data import Data, Facts
from spiketriton.errors import UserError
from spiketriton.models import build_model
from spiketriton.runs.folder import RunFolder
from spiketriton.training import environment
from spiketriton.training.losses import build_loss
from spiketriton.training.meters import peak_memory_mib
from spiketriton.training.optim import build_optimizer
from spiketriton.training.placement import Placement
from spiketriton.training.randomness import random_state, set_random_state
from spiketriton.training.ranks import Ranks

# messages of allocators and libraries that raise a plain RuntimeError; the last is oneDNN's
_WORDS = (
    "can't allocate memory",
    "CUDA out of memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",
)


class OutOfMemory(UserError):
    """The recipe needs more memory than there is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a GPU or the host ran out of memory."""
    # Linux killed a trial's process for its memory
    if isinstance(error, torch.OutOfMemoryError | MemoryError | BrokenExecutor):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def explained(
    error: BaseException, recipe: Recipe, device: torch.device, images: int
) -> OutOfMemory:
    """The one-line error for running out of memory in training, by a micro-batch of `images` on this device."""
    train, peak = recipe.train, peak_memory_mib(device)
    asked = _asked(str(error))
    had, total = "the peak of this process", ""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        had, total = "the peak allocated before", f" of {memory / 2**20:.0f} MiB"
    return OutOfMemory(
        f"out of memory on {device.type}: {asked or 'memory'} more was asked for, {had} was "
        f"{peak:.0f} MiB{total}; a micro-batch is {images} images (train.batch_size = "
        f"{train.batch_size}); what lowers it: {', '.join(_remedies(recipe, images))}"
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


def _remedies(recipe: Recipe, images: int) -> list[str]:
    """Changes to the recipe that need less memory and are not made yet; the cheapest first."""
    train, model = recipe.train, recipe.model
    spiking, tips = recipe.neuron.kind != "relu", []
    if images > 1:
        fewer = next(n for n in range(images // 2, 0, -1) if images % n == 0)
        auto = "" if train.micro_batch == "auto" else " or auto"
        tips.append(f"train.micro_batch={fewer}{auto} (the same batch in more parts)")
    if model.memory == "standard" and spiking:
        tips.append("model.memory=packed (the same gradients)")
    if train.precision == "fp32":
        tips.append("train.precision=bf16")
    if train.batch_size > 1:
        tips.append("a lower train.batch_size")
    if not model.checkpoint_blocks and model.name not in ("plain", "mlp") and not train.compile:
        tips.append("model.checkpoint_blocks=true (the same gradients, one more forward pass)")
    return tips or ["a smaller model.width, data.image_size or time_steps"]


Trial = Callable[[int], None]  # trains on this many images; raises if they do not fit in memory


def settle(
    recipe: Recipe,
    data: Data,
    folder: RunFolder,
    note: Callable[[str], None],
    trial: Trial | None = None,
    ranks: Ranks | None = None,
) -> Data:
    """`data` with the largest micro-batches that fit, if the recipe says "auto".

    All ranks use the smallest size found by any of them. OutOfMemory: not even one image fits.
    """
    if recipe.train.micro_batch != "auto":
        return data
    ranks = ranks or Ranks()
    found = folder.micro_batch
    share = data.train.batch_size // data.train.world_size
    sizes = [
        n for n in range(share, 0, -1) if share % n == 0 and not (recipe.train.mixes and n % 2)
    ]
    size = ranks.decide(lambda: _read(found, sizes) if found.exists() else 0)
    if size:
        note(f"micro-batch: {size} of {share} images, as this run began")
    else:
        trial = trial or _trial_of(recipe, data, ranks.ranks_here)
        fits = largest_that_fits(sizes, trial, recipe)
        ranks.meet()  # their trials may differ by minutes
        size = -int(ranks.most(-fits))
        note(f"micro-batch: {size} of {share} images, the largest that fits in memory")
        folder.write_micro_batch(size)
    train = replace(data.train, accumulate=share // size)
    held_out = data.validation and replace(data.validation, batch_size=size)
    return replace(data, train=train, test=replace(data.test, batch_size=size), validation=held_out)


def _read(path: Path, sizes: Sequence[int]) -> int:
    try:
        size = int(json.loads(path.read_text("utf-8"))["micro_batch"])
    except (ValueError, KeyError, TypeError):
        size = 0
    if size not in sizes:
        raise UserError(f"{path} is damaged: no divisor of {sizes[0]} images is in it")
    return size


def largest_that_fits(sizes: Sequence[int], trial: Trial, recipe: Recipe) -> int:
    """The first of some falling numbers of images for which `trial` has memory. OutOfMemory: there is none."""
    before, device = random_state(), environment.choose_device(recipe.train.device).value
    try:
        for size in sizes:
            if (failure := _failure(trial, size)) is None:
                return size
        assert failure is not None
        raise explained(failure, recipe, device, size)
    finally:
        set_random_state(before)
        torch.cuda.empty_cache()


def _failure(trial: Trial, size: int) -> Exception | None:
    """The out-of-memory error of a trial, or None. Its frames, which hold tensors, are dropped."""
    try:
        trial(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)
    else:
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return failure


def _trial_of(recipe: Recipe, data: Data, ranks_here: int) -> Trial:
    """A trial with the recipe's network, on noise. Ranks on this machine share the free memory."""
    device = environment.choose_device(recipe.train.device).value
    train = partial(_train, recipe, data.facts, data.frames)
    if device.type != "cpu":
        return train
    free = available_host_memory()
    free = free and free // ranks_here

    def in_a_process(images: int) -> None:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_within, free, train, images).result()

    return in_a_process


def _within(free: int | None, train: Trial, images: int) -> None:
    """Trains in this process, limited to `free` more bytes (None: no limit is known)."""
    used = _data_memory()
    if free is not None and used is not None:
        import resource  # missing on Windows, where neither is known

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = used + free
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    train(images)


def _train(recipe: Recipe, facts: Facts, frames: int, images: int) -> None:
    """A step on so many images of noise, then forward and backward once more.

    frames: of a recording; 0: constant images.
    """
    cfg = recipe.train
    placement = Placement.set_up(cfg)
    model = placement.place(build_model(recipe, **facts.sizes))
    forward = environment.compiled(model) if cfg.compile else model
    optimizer = build_optimizer(cfg, model, recipe.peak_lr)
    loss = build_loss(recipe.loss, [1] * len(facts.classes))
    shape = (images, *facts.image_shape)
    noise = torch.randn((frames, *shape) if frames else shape, device=placement.device)
    batch = placement.to_device(noise)
    labels = torch.zeros(images, dtype=torch.int64, device=placement.device)
    for _ in range(2):
        with placement.autocast():
            value = loss(forward(batch), labels)
        value.backward()
        optimizer.step()
    value.item()  # waits for the device


def available_host_memory() -> int | None:
    """Bytes that can still be allocated, also in a container; None where /proc does not say."""
    kib = _field(Path("/proc/meminfo"), "MemAvailable")
    if kib is None:
        return None
    free = [kib * 1024]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit reads "max"
        limit = int((group / "memory.max").read_text())
        free.append(max(0, limit - int((group / "memory.current").read_text())))
    return min(free)


def _data_memory() -> int | None:
    """Bytes of this process that RLIMIT_DATA counts."""
    kib = _field(Path("/proc/self/status"), "VmData")
    return None if kib is None else kib * 1024


def _field(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
