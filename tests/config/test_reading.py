"""Recipes as text: files, overrides, round trips; every mistake is refused in one line."""

import pytest

from spiketriton.config import (
    DataConfig,
    load_recipe,
    recipe_from_toml,
    replace,
    to_toml,
)
from spiketriton.errors import UserError
from tests.config.support import GOOD, mine, refused

# mistakes in a file: the text, and what the one line must say

BAD_FILES = {
    "unknown key": (GOOD + "[train]\nepoch = 1", ["train.epoch", "did you mean train.epochs?"]),
    "unknown key of the top level": ("sed = 1\n" + GOOD, ["sed", "did you mean seed?"]),
    "key without its table": ("epochs = 1\n" + GOOD, ["epochs", "did you mean train.epochs?"]),
    "key in the wrong table": (GOOD + "lr = 1.0", ["model.lr", "did you mean train.lr?"]),
    "unknown key, nothing near": (GOOD + "[loss]\nqqq = 1", ["loss.qqq", "known keys: loss.kind"]),
    "unknown table": (GOOD + "[trian]\nepochs = 1", ["table trian", "did you mean train?"]),
    "unknown table, nothing near": (
        GOOD + "[zzzz]",
        ["table zzzz", "known tables: data, data.augmentation, model"],
    ),
    "table without its parent": (GOOD + "[surrogate]", ["did you mean neuron.surrogate?"]),
    "dot in a quoted key": ('"data.root" = "x"\n', ['"data.root"', "did you mean"]),
    "empty key": ('"" = 1\n' + GOOD, ['unknown key ""', "seed"]),
    "value for a table": ("train = 3\n" + GOOD, ["train = 3", "a table, [train]"]),
    "key without effect": (GOOD + "depth = 20", ["model.depth = 20 has no effect", "leave model"]),
    "contradiction": (GOOD + "[train]\naccumulate = 5", ["train.accumulate = 5", "a divisor"]),
    "no data": ('[model]\nname = "mlp"', ["data.name is missing", '"imagenette"']),
    "no model": ('[data]\nname = "digits"', ["model.name is missing", '"resnet18"']),
    "invalid TOML": ("[data]\nname = digits", ["invalid TOML", "line 2"]),
    "endless number": ("seed = " + "9" * 5000, ["invalid TOML", "4300 digits"]),
    "endless nesting": ("seed = " + "[" * 5000, ["invalid TOML"]),
}


@pytest.mark.parametrize(("text", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_mistake_in_a_file_is_named(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    refused(said, load_recipe, path, source=f"{path}: ")


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('[data]\nroot = "Donn\xe9es"'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.toml: not UTF-8 at byte 19"):
        load_recipe(path)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "quickstart.toml").write_text(GOOD)
    with pytest.raises(
        UserError, match=r"quickstar\.toml: no such recipe file; did you mean .*t\."
    ):
        load_recipe(tmp_path / "quickstar.toml")
    with pytest.raises(UserError, match=r"did you mean .*quickstart\.toml\?"):
        load_recipe(tmp_path / "quickstart")
    with pytest.raises(UserError, match=r"other/a\.toml: no such recipe file; accepted: "):
        load_recipe(tmp_path / "other" / "a.toml")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300])
def test_paths_that_are_no_files_are_refused(tmp_path, name):
    with pytest.raises(
        UserError, match=r"is a folder|no such recipe file|cannot be read: File name"
    ):
        load_recipe(f"{tmp_path}/{name}")


# mistakes on the command line

BAD_OVERRIDES = {
    "train.epochs": ["'train.epochs'", "accepted: key=value"],
    "": ["override ''", "key=value"],
    "=3": ["'=3'", "key=value"],
    "train=3": ["train is a table", "train.epochs=..."],
    "neuron.surrogate=atan": ["neuron.surrogate is a table", "neuron.surrogate.shape=..."],
    "train.=3": ["unknown key train."],
    "train.epoch=3": ["unknown key train.epoch;", "did you mean train.epochs?"],
    "a.b=3": ["unknown key a.b;", "known tables: data, data.augmentation, model"],
    "data.root.x=3": ["unknown key data.root.x;", "did you mean data.root?"],
    "train.epochs=": ['train.epochs = ""', "an integer"],
    "train.epochs=three": ['train.epochs = "three"', "an integer"],
    "train.epochs=3\nseed = 4": ["train.epochs", "an integer"],
    "train.epochs=-1": ["train.epochs = -1", "an integer from 1"],
    "train.compile=True": ['train.compile = "True"', "true or false"],
    "data.root=": ['data.root = ""', "non-empty"],
    "data.root=\udcff": ["data.root", "text"],
    "neuron.kind=rellu": ["neuron.kind", 'did you mean "relu"?'],
    "model.depth=9": ["model.depth = 9 has no effect"],
    "train.accumulate=3": ["train.accumulate = 3", "train.batch_size = 64"],
}


@pytest.mark.parametrize(("override", "said"), BAD_OVERRIDES.items(), ids=range(len(BAD_OVERRIDES)))
def test_a_mistake_in_an_override_is_named(tmp_path, override, said):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    with pytest.raises(UserError) as raised:
        load_recipe(path, ["seed=5", override])
    assert [part for part in said if part not in str(raised.value)] == [], str(raised.value)
    with pytest.raises(UserError):
        replace(load_recipe(path), override)


@pytest.mark.parametrize(
    ("override", "table", "field", "value"),
    [
        ("data.root=/data", "data", "root", "/data"),
        ("data.root='/my data'", "data", "root", "/my data"),
        ("data.root=C:\\data", "data", "root", "C:\\data"),
        ("data.root=2024", "data", "root", "2024"),
        ("data.root=a=b", "data", "root", "a=b"),
        ("data.workers=2", "data", "workers", 2),
        ("data.workers=auto", "data", "workers", "auto"),
        ("neuron.kind=relu", "neuron", "kind", "relu"),
        ('model.norm = "tebn"', "model", "norm", "tebn"),
        ("model.norm=none", "model", "norm", "none"),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.lr=5e-4", "train", "lr", 5e-4),
        ("train.compile=true", "train", "compile", True),
    ],
)
def test_overrides_are_toml_values_or_bare_words(override, table, field, value):
    recipe = replace(recipe_from_toml(GOOD, "mine"), override)
    got = getattr(getattr(recipe, table), field)
    assert got == value
    assert type(got) is type(value)


def test_an_override_may_give_what_the_file_lacks(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[data]\nname = 'digits'")
    assert load_recipe(path, ["model.name=mlp", "model.depth=3"]).model.depth == 3


def test_a_key_that_an_override_leaves_without_effect_falls_back_to_its_default(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + '[train]\noptimizer = "sgd"\nmomentum = 0.5\n[neuron]\nv_reset = -0.5')
    recipe = load_recipe(path, ["train.optimizer=adamw", "neuron.reset=soft"])
    assert (recipe.train.momentum, recipe.neuron.v_reset) == (0.9, 0.0)
    with pytest.raises(UserError, match=r"train\.momentum = 0\.5 has no effect"):
        load_recipe(path, ["train.optimizer=adamw", "train.momentum=0.5"])


# what is accepted

ODD_TEXTS = [
    'a "quoted" word',
    "back\\slash\\n",
    "tab\tnew\nline\r\n",
    "\x01\x1f\x7f\x85\u2028",
    "füür 日本 🙂",
    "\ue000\U000f0000",
    "'''\"\"\"",
    "# no comment",
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=map(ascii, ODD_TEXTS))
def test_any_text_survives_the_round_trip(text):
    recipe = mine(data=DataConfig(name="digits", root=text))
    toml = to_toml(recipe)
    assert recipe_from_toml(toml, "mine") == recipe
    toml.encode("utf-8")
    assert len(toml.splitlines()) == len(
        to_toml(mine()).splitlines()
    )  # one line, whatever it holds


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.name=synthetic", "data.classes=3", "seed=9223372036854775807"],
        ["data.name=imagenette", "data.variant=160px"],
        ["neuron.reset=none", "neuron.surrogate.width=0.5"],
        ["neuron.surrogate.width=1e-5", "train.lr=0.1", "train.weight_decay=3.3e-17"],
        ["loss.kind=tet", "loss.tet_lambda=0", "train.optimizer=sgd", "train.nesterov=true"],
        ["monitor.enabled=false", "checkpoint.keep=3"],
    ],
)
def test_the_resolved_recipe_loads_to_an_equal_one(overrides):
    recipe = replace(mine(), *overrides)
    assert recipe_from_toml(to_toml(recipe), "mine") == recipe
    assert to_toml(recipe_from_toml(to_toml(recipe), "mine")) == to_toml(recipe)


def test_a_byte_order_mark_and_dos_line_ends_are_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(path) == recipe_from_toml(GOOD, "mine")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.ema", None), ("train.learning_rate", None), ("data.classweight", "loss.class_weights"),
        ("zyx", None), ("trian.lr", "train.lr"), ("epoch", "train.epochs"), ("lr", "train.lr"),
        ("neuron.tua", "neuron.tau"), ("neuron.width", "neuron.surrogate.width"),
        ("train.batch", "train.batch_size"), ("surrogate.widht", "neuron.surrogate.width"),
        ("neuron.surogate.width", "neuron.surrogate.width"), ("data.root.x", "data.root"),
    ],
)  # fmt: skip
def test_a_key_near_to_nothing_suggests_nothing(tmp_path, key, meant):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    with pytest.raises(UserError) as raised:
        load_recipe(path, [f"{key}=1"])
    assert ("did you mean" in str(raised.value)) == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in str(raised.value)


def test_what_a_recipe_changes_makes_it_again():
    recipe = recipe_from_toml(GOOD, "mine")
    changed = recipe.overrides()
    assert not [text for text in changed if text.startswith("train.momentum")]
    required = [text for text in changed if text.startswith(("data.name=", "model.name="))]
    tables = "\n".join(
        f"[{key.partition('.')[0]}]\nname = '{value}'"
        for key, _, value in (text.partition("=") for text in required)
    )
    assert replace(recipe_from_toml(tables, "mine"), *changed) == recipe
