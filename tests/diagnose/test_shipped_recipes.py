"""No recipe that is known to learn has an obstacle, however narrow it is made and however small its images are."""

import re
from pathlib import Path

import pytest

from spiketriton.config import load_recipe
from spiketriton.diagnose.ablations import Experiment
from spiketriton.diagnose.cures import cures
from spiketriton.diagnose.diagnosed import Subject
from spiketriton.gradients.verdict import Word, judge

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = (
    *("data.name=digits", "data.workers=0", "data.train_images=64", "train.batch_size=8"),
    *("train.micro_batch=0", "train.accumulate=1", "train.precision=fp32"),
)
# in seconds; the others are as wide as they are
NARROW = ("model.width=4", "model.width=16")
OTHERS = (
    "cifar10_csnn_psn",
    "cifar10_qkformer",
    "cifar10_sdt",
    "cifar10_spikformer",
)


TOLD = {  # right words: so narrow, the first is at chance after four epochs of digits; the second may wake
    ("cifar10_r19_tdbn", "model.width=4"): (Word.SILENT,),
    ("cifar10_csnn_psn", "data.image_size=32"): (Word.ASLEEP,),
}


def known() -> list[str]:
    """Recipes of spiking nets for still images whose first lines have an accuracy, published or measured."""
    found = (
        path for path in sorted(RECIPES.rglob("*.toml")) if not re.search("dvs|_ann", path.stem)
    )
    header = re.compile(r"# (?:Published|Measured): \D{0,40}\d")
    texts = ((path.stem, path.read_text("utf-8")) for path in found)
    return [name for name, text in texts if header.search(text) and 'name = "sequence"' not in text]


def obstacles(name: str, *changes: str) -> tuple[Word, ...]:
    (path,) = RECIPES.rglob(f"{name}.toml")
    recipe = load_recipe(path, [*SMALL, *changes])
    experiment = Experiment(Subject(recipe, name))
    verdict = judge(experiment.prober().measure(), recipe, experiment.signal)
    assert verdict.obstacles or verdict.word in (Word.FREE, Word.NOT_JUDGED)
    if verdict.forward.arrives is not False:
        assert bool(cures(recipe, verdict)) == bool(verdict.obstacles)
    return verdict.obstacles


def test_recipes_that_learn_are_found():
    assert {*OTHERS} < {*known()}
    assert {"cifar10_r19_tet", "cifar10_r19_tebn", "imagenet_sew18", "quickstart"} < {*known()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(name, change, marks=[pytest.mark.slow] * (i % 2 != j))
        for i, name in enumerate(sorted({*known()} - {*OTHERS}))
        for j, change in enumerate(NARROW)
    ],
)
def test_a_recipe_that_learns_has_no_obstacle(name, change):
    assert obstacles(name, change, "data.image_size=16") == TOLD.get((name, change), ())


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_network_with_its_own_sizes_that_learns_has_no_obstacle(name):
    size = "data.image_size=32"
    assert obstacles(name, size) == TOLD.get((name, size), ())


@pytest.mark.parametrize(
    ("kind", "block"), [("lif", "plain"), ("ilif", "sew"), ("lif", "ms"), ("ilif", "plain")]
)
def test_the_default_start_of_a_deep_net_has_no_obstacle(kind, block):
    """ResNet-56 of 8 channels, which ends at 53 to 66 % in studies/gradient_flow/rows.csv."""
    deep = (f"neuron.kind={kind}", f"model.block={block}", "model.name=resnet56", "model.width=8")
    assert obstacles("quickstart", *deep, "data.image_size=16") == ()
