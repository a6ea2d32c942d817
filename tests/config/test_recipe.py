"""Keys: each refuses values of another type, outside its range or not among its words."""

import dataclasses
import pickle

import pytest

from spiketriton.config import (
    KEYS,
    DataConfig,
    LossConfig,
    ModelConfig,
    NeuronConfig,
    Recipe,
    SurrogateConfig,
    TrainConfig,
    recipe_from_toml,
    replace,
)
from spiketriton.config.recipe import Range
from tests.config.support import GOOD, mine, refused

BAD_VALUES = {  # lines below a small recipe -> what the refusal says
    "[train.lr]\nx = 1": ["train.lr = a table", "a number above 0"],
    "[train]\nlr = 2024-01-01": ["train.lr", "date", "a number"],
    "[train]\nepochs = true": ["train.epochs = true", "an integer from 1"],
    "[train]\nlr = false": ["train.lr = false", "a number above 0"],
    "[train]\nepochs = '3'": ['train.epochs = "3"', "an integer"],
    "[train]\nepochs = 1.0": ["train.epochs = 1.0", "an integer"],
    "[train]\ncompile = 1": ["train.compile = 1", "true or false"],
    "[train]\nfreeze = [1]": ["train.freeze = [1]", "an array of strings"],
    "[train]\nlr = nan": ["train.lr = nan", "a number above 0, at most 1000"],
    "[train]\nlr = 0.0": ["train.lr = 0.0", "above 0, at most 1000"],
    "[train]\nwarmup = 1.0": ["train.warmup = 1.0", "from 0, below 1"],
    "[neuron]\nv_reset = -inf": ["neuron.v_reset = -inf", "-1e6"],
    "[neuron]\ntau = 0.5": ["neuron.tau = 0.5", "from 1 to 1e6"],
    f"[train]\nlr = 0x{'f' * 999}": ["train.lr", "bits", "a number above 0"],
    "[neuron]\nkind = 'lfi'": ['did you mean "lif"?', '"relu"'],
    "[neuron.surrogate]\nwidth = 'wide'": ['neuron.surrogate.width = "wide"', "a number from 1e-6"],
    "[loss]\nteacher = 3": ["loss.teacher = 3", "text"],
    "[loss]\nteacher = ''": ['loss.teacher = ""', "non-empty"],
    '[loss]\nteacher = "a\\u0000"': ["loss.teacher", "without NUL"],
}


@pytest.mark.parametrize("lines", BAD_VALUES)
def test_a_wrong_value_is_named(lines):
    refused(BAD_VALUES[lines], recipe_from_toml, GOOD + lines, "mine")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TrainConfig(epochs=0), "train.epochs = 0"),
        (lambda: LossConfig(label_smoothing=1.0), "loss.label_smoothing = 1.0"),
        (lambda: NeuronConfig(surrogate="atan"), "accepted: a SurrogateConfig"),
        (lambda: mine(name="a/b"), "recipe name 'a/b'"),
        (lambda: mine(train=TrainConfig(momentum=0.5)), "train.momentum = 0.5 has no effect"),
        (lambda: mine(train=TrainConfig(accumulate=5)), "train.accumulate = 5"),
        (lambda: ModelConfig(name="mlp", options=TrainConfig()), "model.options"),
    ],
)
def test_recipes_built_in_python_are_checked_too(build, said):
    refused([said], build)


def test_defaults_are_as_documented_in_the_contract():
    recipe = recipe_from_toml(GOOD, "mine")
    assert (recipe.name, recipe.seed, recipe.time_steps) == ("mine", 0, 4)
    assert recipe == Recipe(
        name="mine", data=DataConfig(name="digits"), model=ModelConfig(name="resnet8")
    )
    assert recipe.neuron == NeuronConfig(
        kind="lif", tau=2.0, v_threshold=1.0, reset="auto", detach_reset=True
    )
    assert recipe.neuron.resets_by == "hard"
    assert recipe.neuron.surrogate == SurrogateConfig(shape="atan", height=1.0, width=0.3)


def test_recipes_are_frozen_hash_and_compare():
    one, two = recipe_from_toml(GOOD, "mine"), recipe_from_toml(GOOD, "mine")
    assert one == two
    assert hash(one) == hash(two)
    assert one != replace(one, "seed=1")
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seed = 1


def test_every_key_is_explained_and_accepts_its_default():
    for dotted, spec in KEYS.items():
        assert len(spec.doc) > 5, dotted
        if not spec.required:
            assert spec.check(spec.default) == spec.default


@pytest.mark.parametrize(
    ("range_", "inside", "outside", "text"),
    [
        (Range(1, 4), [1, 2.5, 4], [0, 0.99, 4.01, 5], "from 1 to 4"),
        (Range(0, 1, open="high"), [0, 0.999], [-1e-9, 1, 1.0, 2], "from 0, below 1"),
        (Range(0, 1e6, open="low"), [1e-300, 1e6], [0, 0.0, -1, 1e6 + 1], "above 0, at most 1e6"),
        (Range(-1e6, 2**63 - 1), [-1e6, 2**63 - 1], [2**63], "from -1e6 to 9223372036854775807"),
    ],
)
def test_a_range_holds_its_closed_ends_and_says_which_are_open(range_, inside, outside, text):
    assert [value for value in inside if value not in range_] == []
    assert [value for value in (*outside, float("nan")) if value in range_] == []
    assert str(range_) == text
