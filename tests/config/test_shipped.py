"""The shipped recipes: all load, resolve to themselves, and say how they are run."""

import pytest

from spiketriton.config import load_recipe, recipe_from_toml, replace, to_toml
from spiketriton.config.shipped import folder_of_recipes, shipped_recipes
from spiketriton.system.errors import UserError
from tests.covering import each

RECIPES = shipped_recipes()


def lines_of(path):
    """The lines of a recipe without comments and blanks."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_resolves_to_itself_and_says_how_it_is_run(name):
    recipe = load_recipe(name)
    assert recipe_from_toml(to_toml(recipe), name) == recipe
    head = RECIPES[name].read_text("utf-8").partition("seed =")[0]
    place = RECIPES[name].relative_to(folder_of_recipes())
    assert f"spiketriton train recipes/{place}\n" in head
    assert head.startswith("# Never run here.\n") == (place.parent.name == "papers")
    assert all(line.startswith("#") for line in head.splitlines())


OVERRIDES = [
    "neuron.kind=relu", "neuron.kind=if", "neuron.reset=soft", "neuron.surrogate.width=0.5",
    "train.device=cpu", "train.batch_size=2", "train.optimizer=sgd", "train.optimizer=adamw",
    "data.name=synthetic", "data.root=/elsewhere", "loss.kind=tet", "model.block=sew", "model.norm=tebn",
]  # fmt: skip
REFUSED = {
    ("cifar10_dvs_vggsnn", "model.block=sew"): "has no effect because model.name is",
    ("cifar10_vgg16", "model.block=sew"): "has no effect because model.name is",
    ("imagenette_vgg8_64", "model.block=sew"): "has no effect because model.name is",
    ("cifar10_csnn_psn", "model.block=sew"): "has no effect because model.name is",
    **{
        (name, "neuron.reset=soft"): "neuron.reset = .soft. with neuron.kind = .(masked_)?psn."
        for name in ("digits_rows", "mnist_permuted")
    },
    ("cifar10_csnn_psn", "neuron.reset=soft"): "neuron.reset = .soft. with neuron.kind = .psn.",
    ("imagenet_sew18", "train.batch_size=2"): "train.micro_batch = 32 does not divide",
    **{
        (name, "model.block=sew"): "has no effect because model.name is"
        for name in (
            "digits_rows",
            "spoken_digits",
            "mnist_rows",
            "mnist_permuted",
            "cifar10_columns",
        )
    },
    ("cifar10_spikformer", "neuron.kind=if"): "has no effect because model.name is",
}


def fits(name, override):
    of_others = "spikingjelly" in RECIPES[name].read_text("utf-8")
    built_here = override.startswith(("neuron.", "model."))
    return (name, override) not in REFUSED and not (of_others and built_here)


@pytest.mark.parametrize(
    ("name", "override"), [pair for pair in each(list(RECIPES), OVERRIDES) if fits(*pair)]
)
def test_a_recipe_takes_the_usual_overrides(name, override):
    recipe = load_recipe(name, [override])
    assert recipe == replace(load_recipe(name), override)
    assert recipe_from_toml(to_toml(recipe), name) == recipe


@pytest.mark.parametrize(("name", "override"), REFUSED)
def test_an_override_that_does_not_fit_is_refused(name, override):
    with pytest.raises(UserError, match=REFUSED[name, override]):
        load_recipe(name, [override])


def test_the_main_recipe_and_its_ann_twin_differ_in_one_word():
    spiking, ann = (lines_of(RECIPES[name]) for name in ("imagenette_r50", "imagenette_r50_ann"))
    assert [pair for pair in zip(spiking, ann, strict=True) if pair[0] != pair[1]] == [
        ('kind = "lif"', 'kind = "relu"')
    ]
