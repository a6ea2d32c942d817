"""Command `data`: the loader alone, in images per second; if the step is faster, the GPU starves.

And what one core makes of images of a kind, beside torchvision's transforms, image by image.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from profiling.harness.contenders import OURS, Case, Contender, Options, Row, Status, Work
from profiling.harness.timing import Effort, Timing
from profiling.sections.recipes import RecipeCase
from profiling.sections.step import Bench, Step
from spiketriton.config import Recipe, replace
from spiketriton.data import build_data
from spiketriton.data.counter_rng import mix
from spiketriton.data.splits import Photo
from spiketriton.data.transforms import (
    ERASING_PROBABILITY,
    ArrayTransform,
    Augmentation,
    PhotoTransform,
    crop_and_flip,
    seeded_each,
    windows,
)

PREFETCHED = 2  # batches that torch's DataLoader lets each worker make ahead
STEP = f"{OURS}'s training step"


class Loading(RecipeCase):
    """A recipe's training batches, by different numbers of worker processes, and the step they feed."""

    def __init__(self, recipe: Recipe, options: Options) -> None:
        super().__init__(recipe, options)
        self.spec |= {"augment": recipe.data.augment, "cores": os.cpu_count()}

    def contenders(self, options: Options) -> list[Contender]:
        bench = Bench(self, options.device)

        def loader(name: str, workers: object) -> Contender:
            return Contender(name, lambda: Loader(replace(self.recipe, f"data.workers={workers}")))

        many = min(os.cpu_count() or 1, 8)
        ways = {"auto": "auto", "no worker": 0, f"{many} workers": many}
        step = Contender(STEP, lambda: Step(bench, bench.model()))
        return [*(loader(name, workers) for name, workers in ways.items()), step]

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        """Images per second, and how often a loader feeds the step: below 1 the step starves."""
        rows = self.images_per_s(timings)
        if self.spec["frames"]:  # the training process alone is one core
            shown = self.recipe.time_steps - self.recipe.data.augmentation.delete
            for row in rows.values():
                row["frames_per_s"] = row["images_per_s"] * shown
        for name in timings if STEP in timings else ():
            if name != STEP:
                rows[name]["of_step"] = timings[STEP].median / timings[name].median
        return rows


class Loader(Work):
    """Batches of one way of loading; one call is one batch."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.batches = recipe, 1
        self.train = build_data(recipe).train

    def check(self) -> Row:
        """The first two batches are those of the training process's own loading."""
        alone = build_data(replace(self.recipe, "data.workers=0")).train
        row = {"status": Status.OK, "workers": self.train.loading.workers}
        with closing(self.train.from_step(0)) as mine, closing(alone.from_step(0)) as one:
            for _ in range(2):
                if not all(map(torch.equal, next(mine), next(one))):
                    why = "a batch depends on the number of workers"
                    row |= {"status": Status.WRONG, "why": why}
        return row

    def prepare(self, effort: Effort) -> None:
        """Determines how many batches fill a sample: far more than may be ready at its start."""
        ahead = 1 + PREFETCHED * self.train.loading.workers
        self.batches = max(4 * ahead, int(10 * effort.seconds / self._seconds(2)))

    def sample(self) -> float:
        """Seconds of a batch, on a stream of its own, once its workers have started."""
        return self._seconds(self.batches)

    def _seconds(self, batches: int) -> float:
        with closing(self.train.from_step(0)) as stream:
            next(stream)
            start = time.perf_counter()
            for _ in range(batches):
                next(stream)
            return (time.perf_counter() - start) / batches


KINDS = {
    "CIFAR": (32, 32),
    "photographs of 500x375": (500, 375),
    "photographs of 1600x1200": (1600, 1200),
}
"""Width and height; photographs become 224x224."""
STATISTICS = (0.5,) * 3, (0.25,) * 3
TORCHVISION = "torchvision, image by image"


class OnOneCore(Case):
    """A batch of images of one kind on one core: what a worker does, and with what the device does."""

    def __init__(self, kind: str, augment: str, options: Options) -> None:
        few, many = (2, 8) if kind != "CIFAR" else (4, 128)
        self.count = few if options.quick else many
        self.spec = {"images_of": kind, "augment": augment, "batch": self.count}

    def contenders(self, options: Options) -> list[Contender]:
        kind, augment = self.spec["images_of"], self.spec["augment"]
        asked = Augmentation(augment, erasing=ERASING_PROBABILITY if augment == "strong" else 0.0)
        if kind == "CIFAR":
            transform: Any = ArrayTransform(32, *STATISTICS, asked, "crop")
        else:
            transform = PhotoTransform(224, *STATISTICS, asked)
        images, theirs = Images(kind, self.count), Torchvision(kind, augment)

        def contender(name: str, way: Way, whole: Way) -> Contender:
            return Contender(name, lambda: Preparing(images, way, whole, theirs))

        return [
            contender(OURS, transform.load, transform),
            contender(f"{OURS}, finished on the CPU", transform, transform),
            contender(TORCHVISION, theirs, theirs),
        ]

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        return {name: {"images_per_s": self.count / t.median} for name, t in timings.items()}


def one_core(options: Options) -> list[OnOneCore]:
    """All kinds of images with both augmentations."""
    return [OnOneCore(kind, way, options) for kind in KINDS for way in ("standard", "strong")]


class Images:
    """A batch of images, as they are before they are prepared, and their keys."""

    def __init__(self, kind: str, count: int) -> None:
        self.keys = mix(0, np.arange(count))
        self.arrays = kind == "CIFAR"
        if self.arrays:
            draws = torch.Generator().manual_seed(0)
            self.pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=draws).byte()
        else:
            self.folder = tempfile.TemporaryDirectory()
            self.path = Path(self.folder.name) / "photograph.jpg"
            photograph(*KINDS[kind]).save(self.path, quality=90)

    def __call__(self) -> Any:
        return self.pixels if self.arrays else (Photo(self.path, "a photograph") for _ in self.keys)


Way = Callable[[Any, np.ndarray], Any]


class Preparing(Work):
    """One call prepares a batch of images for training, on one thread.

    `way` is timed; `whole` goes all the way to floats, which are compared with those of `theirs`.
    """

    device = torch.device("cpu")

    def __init__(self, images: Images, way: Way, whole: Way, theirs: Way) -> None:
        self.images, self.way, self.whole, self.theirs = images, way, whole, theirs

    def __call__(self) -> object:
        return self.way(self.images(), self.images.keys)

    def check(self) -> Row:
        """Arrays are torchvision's bit for bit; reduced photographs are cut at whole pixels."""
        ours, theirs = (way(self.images(), self.images.keys) for way in (self.whole, self.theirs))
        error = (ours - theirs).abs().mean().item()
        allowed = 0.0 if self.images.arrays else 0.1  # of a deviation of 1
        if error <= allowed:
            return {"status": Status.OK, "mean_error": error}
        why = f"off by {error:.2g} on average (allowed {allowed})"
        return {"status": Status.WRONG, "why": why, "mean_error": error}

    def _seconds(self, calls: int) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return super()._seconds(calls)
        finally:
            torch.set_num_threads(threads)


class Torchvision:
    """The same augmentation by torchvision's transforms, one image after the other, to floats."""

    def __init__(self, kind: str, augment: str) -> None:
        ready = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*STATISTICS)]
        colours, erasing = v2.TrivialAugmentWide(), v2.RandomErasing(ERASING_PROBABILITY)
        crop = [v2.RandomResizedCrop(224, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()]
        self.is_array, strong = kind == "CIFAR", augment == "strong"
        self.each = v2.Compose(
            [
                *([] if self.is_array else crop),
                *([colours] if strong else []),
                *([] if self.is_array else [v2.PILToTensor()]),
                *ready,
                *([erasing] if strong else []),
            ]
        )

    def __call__(self, images: Any, keys: np.ndarray) -> Tensor:
        if self.is_array:
            images = crop_and_flip(images, windows(keys, 4), 4)
        else:
            images = (photo.decode() for photo in images)
        return torch.stack(seeded_each(self.each, images, keys))


def photograph(width: int, height: int) -> Image.Image:
    """Noise on all scales with the spectrum of photographs, which falls off as one over frequency."""
    noise = np.random.default_rng(0).normal(size=(3, height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    pixels = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (height, width))
    shown = (127 + 50 * pixels / pixels.std()).clip(0, 255).astype(np.uint8)
    return Image.fromarray(shown.transpose(1, 2, 0))
