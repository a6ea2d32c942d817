"""The shipped recipes: all load, resolve to themselves, and say how they are run."""

from pathlib import Path

import pytest

from spiketriton.config import load_recipe, recipe_from_toml, replace, to_toml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
NAMES = [path.stem for path in RECIPES]

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=NAMES)


def lines_of(path):
    """The lines of a recipe without comments and blanks."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line]


def test_the_promised_recipes_are_there():
    assert set(NAMES) >= {
        "quickstart",
        "fashion_mnist_r20",
        "cifar100_r18",
        "cifar100_r50",
        "imagenette_r18",
        "imagenette_r50",
        "imagenette_r50_ann",
    }


@each_recipe
def test_a_recipe_loads_and_its_resolved_text_loads_to_the_same(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe_from_toml(to_toml(recipe), path.stem) == recipe


@each_recipe
def test_the_head_of_a_recipe_has_its_command(path):
    head = path.read_text("utf-8").partition("seed =")[0]
    assert f"python -m spiketriton.train recipes/{path.name}\n" in head
    assert all(line.startswith("#") for line in head.splitlines())


@each_recipe
@pytest.mark.parametrize(
    "override",
    [
        "neuron.kind=relu",
        "neuron.kind=if",
        "neuron.reset=soft",
        "neuron.surrogate.width=auto",
        "train.device=cpu",
        "train.batch_size=2",
        "train.optimizer=sgd",
        "train.optimizer=adamw",
        "data.name=synthetic",
        "data.root=/elsewhere",
        "loss.kind=tet",
        "model.block=sew",
        "model.norm=tebn",
    ],
)
def test_a_recipe_takes_the_usual_overrides(path, override):
    recipe = load_recipe(path, [override])
    assert recipe == replace(load_recipe(path), override)
    assert recipe_from_toml(to_toml(recipe), path.stem) == recipe


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
