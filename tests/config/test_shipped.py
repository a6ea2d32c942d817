"""The shipped recipes: all load, resolve to themselves, and say how they are run."""

from pathlib import Path

import pytest

from spiketriton.config import load_recipe, recipe_from_toml, replace, to_toml
from spiketriton.errors import UserError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
NAMES = [path.stem for path in RECIPES]

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=NAMES)


def lines_of(path):
    """The lines of a recipe without comments and blanks."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line]


@each_recipe
def test_a_recipe_loads_and_its_resolved_text_loads_to_the_same(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe_from_toml(to_toml(recipe), path.stem) == recipe


@each_recipe
def test_the_head_of_a_recipe_has_its_command(path):
    head = path.read_text("utf-8").partition("seed =")[0]
    assert f"spiketriton train recipes/{path.name}\n" in head
    assert all(line.startswith("#") for line in head.splitlines())


OVERRIDES = [
    "neuron.kind=relu",
    "neuron.kind=if",
    "neuron.reset=soft",
    "neuron.surrogate.width=0.5",
    "train.device=cpu",
    "train.batch_size=2",
    "train.optimizer=sgd",
    "train.optimizer=adamw",
    "data.name=synthetic",
    "data.root=/elsewhere",
    "loss.kind=tet",
    "model.block=sew",
    "model.norm=tebn",
]
REFUSED = {
    ("cifar10_dvs_vggsnn", "model.block=sew"): "needs skip connections",
    ("cifar10_vgg16", "model.block=sew"): "needs skip connections",
    ("cifar10_csnn_psn", "model.block=sew"): "needs skip connections",
    ("cifar10_csnn_psn", "neuron.reset=soft"): "neuron.reset = .soft. of neuron.kind = .psn.",
    ("imagenet_sew18", "train.batch_size=2"): "train.micro_batch = 32 does not divide",
    ("cifar10_spikformer", "neuron.kind=if"): "has no effect because model.name is",
}


def fits(path: Path, override: str) -> bool:
    of_others = "spikingjelly" in path.read_text("utf-8")
    built_here = override.startswith(("neuron.", "model."))
    return (path.stem, override) not in REFUSED and not (of_others and built_here)


@pytest.mark.parametrize(
    ("name", "override"),
    [
        (path.stem, override)
        for index, path in enumerate(RECIPES)
        for shift in (0, 5)
        if fits(path, override := OVERRIDES[(index + shift) % len(OVERRIDES)])
    ],
)
def test_a_recipe_takes_the_usual_overrides(name, override):
    path = RECIPES[NAMES.index(name)]
    ours = load_recipe(path)
    recipe = load_recipe(path, [override])
    assert recipe == replace(ours, override)
    assert recipe_from_toml(to_toml(recipe), name) == recipe


@pytest.mark.parametrize(("name", "override"), REFUSED)
def test_an_override_that_does_not_fit_is_refused(name, override):
    with pytest.raises(UserError, match=REFUSED[name, override]):
        load_recipe(RECIPES[NAMES.index(name)], [override])


def test_the_main_recipe_and_its_ann_twin_differ_in_one_word():
    spiking, ann = (
        lines_of(RECIPES[NAMES.index(name)]) for name in ("imagenette_r50", "imagenette_r50_ann")
    )
    assert [pair for pair in zip(spiking, ann, strict=True) if pair[0] != pair[1]] == [
        ('kind = "lif"', 'kind = "relu"')
    ]


def test_the_main_recipe_is_what_was_promised():
    recipe = load_recipe(RECIPES[NAMES.index("imagenette_r50")])
    assert (recipe.data.name, recipe.data.image_size) == ("imagenette", 224)
    assert (recipe.model.name, recipe.model.block, recipe.model.norm) == ("resnet50", "ms", "bn")
    assert (recipe.time_steps, recipe.train.precision) == (10, "bf16")
    assert (recipe.train.optimizer, recipe.train.schedule) == ("adamw", "one_cycle")


def test_the_recipe_on_cifar10_dvs_is_the_papers():
    """TET (Deng et al. 2022): recipe, network and neuron of the authors' code."""
    recipe = load_recipe(RECIPES[NAMES.index("cifar10_dvs_vggsnn")])
    assert (recipe.model.name, recipe.time_steps, recipe.data.image_size) == ("vggsnn", 10, 48)
    neuron, train = recipe.neuron, recipe.train
    assert (neuron.kind, 1 - 1 / neuron.tau, neuron.decay_input) == ("lif", 0.5, False)
    assert (neuron.reset, neuron.detach_reset, neuron.v_threshold) == ("hard", False, 1.0)
    surrogate = neuron.surrogate
    assert (surrogate.shape, surrogate.height, surrogate.width) == ("triangle", 1.0, 1.0)
    assert (recipe.loss.kind, recipe.loss.tet_lambda) == ("tet", 1e-3)
    assert (train.optimizer, train.lr, train.weight_decay) == ("adamw", 1e-3, 0.0)  # is Adam
    assert (train.batch_size, train.epochs, train.schedule) == (128, 150, "cosine")
    augmentation = recipe.data.augmentation
    assert (augmentation.flip, augmentation.roll) == (True, 5)


def test_the_recipe_on_gesture_is_the_papers():
    """SEW-ResNet (Fang et al. 2021): trained on 12 of 16 frames, a tenth of the rate every 64 epochs."""
    recipe = load_recipe(RECIPES[NAMES.index("dvs_gesture_7b")])
    assert (recipe.model.name, recipe.model.block) == ("net7b", "sew")
    assert (recipe.time_steps, recipe.data.augmentation.delete) == (16, 4)
    assert (recipe.data.bins, recipe.data.count, recipe.data.augment) == ("number", "raw", "none")
    neuron, train = recipe.neuron, recipe.train
    assert (neuron.kind, neuron.tau, neuron.decay_input) == ("plif", 2.0, True)
    assert (neuron.reset, neuron.detach_reset) == ("hard", True)
    assert (train.optimizer, train.lr, train.momentum, train.weight_decay) == ("sgd", 1e-3, 0.9, 0)
    assert (train.batch_size, train.epochs) == (16, 192)
    assert (train.schedule, train.gamma) == ("step", 0.1)
    assert [round(192 * share, 9) for share in train.milestones] == [64, 128]
