"""Recipes as cases: a training step on made-up images needs no data at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from profiling.harness.contenders import Case, Options, Row
from profiling.harness.peers import ATAN
from profiling.harness.timing import Timing
from spiketriton.config import Recipe, load_recipe, replace
from spiketriton.config.names import SEQUENCES
from spiketriton.config.shipped import shipped_recipes
from spiketriton.system.errors import UserError
from spiketriton.training.environment import choose_precision, name_of

IMAGES = {
    "imagenette": (3, 224, 10),
    "imagefolder": (3, 224, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "tiny_imagenet": (3, 64, 200),
    "synthetic": (3, 32, None),
    "fashion_mnist": (1, 28, 10),
    "cluttered_fashion_mnist": (1, 40, 10),
    "digits": (1, 8, 10),
    "mnist": (1, 28, 10),
    "dvs_gesture": (2, 128, 11),
    "cifar10_dvs": (2, 48, 10),
    "n_mnist": (2, 34, 10),
    "n_caltech101": (2, 48, 101),
    "digits_dvs": (2, 32, 10),
    "dvs_biolab": (2, 128, 5),
    "eventfolder": (2, 128, 10),
    "spoken_digits": (40, 1, 10),
    "shd": (700, 1, 20),
    "ssc": (700, 1, 35),
}
"""Channels, side and classes of each data set's images, or sequences."""


NAMED = {
    "spikingjelly_740": (
        "imagenette_r18",
        "data.name=synthetic data.image_size=224 data.classes=1000 model.block=sew "
        "time_steps=4 train.precision=bf16 train.batch_size=112 train.optimizer=sgd",
    ),
    "cifar_r20": ("cifar100_r18", "model.name=resnet20 time_steps=4 train.batch_size=128"),
}
"""Cases that are no recipes: a recipe and changes to it. spikingjelly_740 is the setting of SpikingJelly's pull request
740: SEW-ResNet-18, T = 4, bf16, 112 images of 224 pixels of 1000 classes, SGD."""


def find_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by its path, or by its name in recipes/ or NAMED. UserError: there is none."""
    if name in NAMED:
        base, changes = NAMED[name]
        return dataclasses.replace(find_recipe(base, (*changes.split(), *overrides)), name=name)
    if not name.endswith(".toml") and name not in shipped_recipes():
        known = ", ".join(sorted([*shipped_recipes(), *NAMED]))
        raise UserError(f"recipe {name!r}: accepted: a TOML file, or one of {known}")
    return load_recipe(name, tuple(overrides))


class RecipeCase(Case):
    """A recipe's training step as a case. UserError: IMAGES lacks its data set."""

    def __init__(self, recipe: Recipe, options: Options) -> None:
        if recipe.neuron.kind != "relu":
            surrogate = {"shape": "atan", "height": ATAN.height, "width": ATAN.width}
            recipe = replace(recipe, *(f"neuron.surrogate.{k}={v}" for k, v in surrogate.items()))
        if options.quick:
            steps = f"time_steps={min(recipe.time_steps, 2)}"
            recipe = replace(recipe, "train.batch_size=2", "train.accumulate=1", steps)
        if recipe.data.name not in IMAGES:
            raise UserError(
                f"recipe {recipe.name}: profiling does not know the images of data.name = "
                f"{recipe.data.name!r}; accepted: {', '.join(IMAGES)}"
            )
        channels, side, classes = IMAGES[recipe.data.name]
        self.recipe = recipe
        self.spec = {
            "recipe": recipe.name,
            "toml": recipe.to_toml(),
            "T": recipe.time_steps,
            "batch": recipe.train.batch_size // recipe.train.accumulate,
            "image": shape_of(recipe, channels, side),
            "frames": [recipe.time_steps] if _has_time(recipe) else [],
            "classes": classes or recipe.data.classes,
            "precision": name_of(choose_precision(recipe.train.precision, options.device).value),
            "layout": "channels_last",
        }

    def images_per_s(self, timings: dict[str, Timing]) -> dict[str, Row]:
        batch = self.spec["batch"]
        return {name: {"images_per_s": batch / timing.median} for name, timing in timings.items()}


def _has_time(recipe: Recipe) -> bool:
    """Whether its data are shown a frame or a step at a time."""
    sequence = recipe.data.name in SEQUENCES or recipe.data.sequence != "none"
    return sequence or bool(recipe.data.split_words)


def shape_of(recipe: Recipe, channels: int, side: int) -> list[int]:
    """Of an image or a frame, [C, S, S]; of a step of a sequence [C]."""
    side = recipe.data.image_size or side
    if recipe.data.name in SEQUENCES or recipe.data.sequence in ("pixels", "permuted"):
        return [channels]
    if recipe.data.sequence in ("rows", "columns"):
        return [channels * side]
    return [channels, side, side]
