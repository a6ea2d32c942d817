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
from spiketriton.errors import UserError
from tests.config.support import GOOD, mine, refused

BAD_VALUES = {
    "table for a value": (GOOD + "[train.lr]\nx = 1", ["train.lr = a table", "a number above 0"]),
    "date for a value": (GOOD + "[train]\nlr = 2024-01-01", ["train.lr", "date", "a number"]),
    "bool for int": (GOOD + "[train]\nepochs = true", ["train.epochs = true", "an integer from 1"]),
    "bool for float": (GOOD + "[train]\nlr = false", ["train.lr = false", "a number above 0"]),
    "string for int": (GOOD + '[train]\nepochs = "3"', ['train.epochs = "3"', "an integer"]),
    "float for int": (GOOD + "[train]\nepochs = 1.0", ["train.epochs = 1.0", "an integer"]),
    "int for bool": (GOOD + "[train]\ncompile = 1", ["train.compile = 1", "true or false"]),
    "string for bool": (GOOD + '[train]\ncompile = "yes"', ['"yes"', "true or false"]),
    "int for string": ("data.root = 3\n", ["data.root = 3", "text"]),
    "nan": (GOOD + "[train]\nlr = nan", ["train.lr = nan", "a number above 0, at most 1000"]),
    "negative infinity": (GOOD + "[neuron]\nv_reset = -inf", ["neuron.v_reset = -inf", "-1e6"]),
    "below the range": (GOOD + "[neuron]\ntau = 0.5", ["neuron.tau = 0.5", "from 1 to 1e6"]),
    "at an open start": (GOOD + "[train]\nlr = 0.0", ["train.lr = 0.0", "above 0, at most 1000"]),
    "at an open end": (GOOD + "[train]\nwarmup = 1.0", ["train.warmup = 1.0", "from 0, below 1"]),
    "above the range": ("seed = 9223372036854775808\n" + GOOD, ["seed", "to 9223372036854775807"]),
    "zero time steps": ("time_steps = 0\n" + GOOD, ["time_steps = 0", "an integer from 1"]),
    "huge int": ("seed = 0x" + "f" * 9000 + "\n" + GOOD, ["seed", "36000 bits", "an integer from"]),
    "huge int for float": (GOOD + "[train]\nlr = 0x" + "f" * 999, ["train.lr", "a number above 0"]),
    "not among the choices": (GOOD + '[neuron]\nkind = "lfi"', ['did you mean "lif"?', '"relu"']),
    "wrong word for a number": (
        GOOD + '[neuron.surrogate]\nwidth = "wide"',
        ['neuron.surrogate.width = "wide"', "a number from 1e-6 to 1e6"],
    ),
    "empty string": ("data.root = ''\n", ['data.root = ""', "non-empty"]),
    "NUL in a path": ('data.root = "a\\u0000"\n', ["data.root", "without NUL"]),
    "unknown data set": ('[data]\nname = "imagenet"', ['did you mean "imagenette"?', '"cifar10"']),
}


@pytest.mark.parametrize(("text", "said"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_wrong_value_is_named(text, said):
    refused(said, recipe_from_toml, text, "mine")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TrainConfig(epochs=0), r"train\.epochs = 0"),
        (lambda: SurrogateConfig(width="wide"), r"neuron\.surrogate\.width"),
        (lambda: LossConfig(label_smoothing=1.0), r"loss\.label_smoothing = 1\.0"),
        (lambda: NeuronConfig(surrogate="atan"), r"neuron\.surrogate.*a SurrogateConfig"),
        (lambda: mine(data={"name": "digits"}), r"data.*a DataConfig"),
        (lambda: mine(name="a/b"), "recipe name 'a/b'"),
        (lambda: mine(seed=True), "seed = true"),
        (lambda: mine(train=TrainConfig(momentum=0.5)), r"train\.momentum = 0\.5 has no effect"),
        (lambda: mine(train=TrainConfig(accumulate=5)), r"train\.accumulate = 5"),
    ],
)
def test_recipes_built_in_python_are_checked_too(build, said):
    with pytest.raises(UserError, match=said):
        build()


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
        assert len(spec.field.metadata["doc"]) > 5, dotted
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
