"""Recipes as text: files, overrides, round trips; every mistake is refused in one line."""

import pytest

from spiketriton.config import DataConfig, load_recipe, recipe_from_toml, replace, to_toml
from spiketriton.system.errors import UserError
from tests.config.support import GOOD, mine, refused

BAD_FILES = {  # what the one line must say
    GOOD + "[train]\nepoch = 1": ["train.epoch", "did you mean train.epochs?"],
    GOOD + "lr = 1.0": ["model.lr", "did you mean train.lr?"],
    GOOD + "[loss]\nqqq = 1": ["loss.qqq", "known keys: loss.kind"],
    GOOD + "[trian]\nepochs = 1": ["table trian", "did you mean train?"],
    GOOD + "[zzzz]": ["table zzzz", "known tables: data, data.augmentation, model"],
    GOOD + "[surrogate]": ["did you mean neuron.surrogate?"],
    '"data.root" = "x"\n': ['"data.root"', "did you mean"],
    '"" = 1\n' + GOOD: ['unknown key ""', "seed"],
    "train = 3\n" + GOOD: ["train = 3", "a table, [train]"],
    GOOD + "depth = 20": ["model.depth = 20 has no effect", "leave model"],
    GOOD + "[train]\naccumulate = 5": ["train.accumulate = 5", "a divisor"],
    '[model]\nname = "mlp"': ["data.name is missing", '"imagenette"'],
    "[data]\nname = digits": ["invalid TOML", "line 2"],
    "seed = " + "9" * 5000: ["invalid TOML", "4300 digits"],
    "seed = " + "[" * 5000: ["invalid TOML"],
}


@pytest.mark.parametrize("text", BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_mistake_in_a_file_is_named(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    refused(BAD_FILES[text], load_recipe, path, source=f"{path}: ")


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('[data]\nroot = "Donn\xe9es"'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.toml: not UTF-8 at byte 19"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quickstar.toml", "quickstar.toml: no such recipe file; did you mean "),
        ("other/a.toml", "other/a.toml: no such recipe file; accepted: "),
        ("", "is a folder"),
        ("a\0b", "no such recipe file"),
        ("x" * 300, "cannot be read: File name"),
    ],
)
def test_paths_that_are_no_files_are_refused(tmp_path, name, said):
    (tmp_path / "quickstart.toml").write_text(GOOD)
    with pytest.raises(UserError) as raised:
        load_recipe(f"{tmp_path}/{name}")
    assert said in str(raised.value)


BAD_OVERRIDES = {
    "train.epochs": ["'train.epochs'", "accepted: key=value"],
    "=3": ["'=3'", "key=value"],
    "neuron.surrogate=atan": ["neuron.surrogate is a table", "neuron.surrogate.shape=..."],
    "train.=3": ["unknown key train."],
    "train.epoch=3": ["unknown key train.epoch;", "did you mean train.epochs?"],
    "train.epochs=": ['train.epochs = ""', "an integer"],
    "train.epochs=three": ['train.epochs = "three"', "an integer"],
    "train.epochs=3\nseed = 4": ["train.epochs", "an integer"],
    "train.compile=True": ['train.compile = "True"', "true or false"],
    "data.root=\udcff": ["data.root", "text"],
    "train.device=gpu": ["train.device", 'did you mean "cuda"?'],
    "neuron.kind=rellu": ["neuron.kind", 'did you mean "relu"?'],
    "model.depth=9": ["model.depth = 9 has no effect"],
    "train.accumulate=3": ["train.accumulate = 3", "train.batch_size = 64"],
}


@pytest.mark.parametrize(("override", "said"), BAD_OVERRIDES.items(), ids=range(len(BAD_OVERRIDES)))
def test_a_mistake_in_an_override_is_named(tmp_path, override, said):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    refused(said, load_recipe, path, ["seed=5", override])
    refused(said, replace, load_recipe(path), override)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.root='/my data'", "/my data"),
        ("data.root=C:\\data", "C:\\data"),
        ("data.root=2024", "2024"),
        ("data.root=a=b", "a=b"),
        ("data.workers=2", 2),
        ("data.workers=auto", "auto"),
        ('model.norm = "tebn"', "tebn"),
        ("train.lr=1", 1.0),
        ("train.compile=true", True),
        ("train.freeze=conv1", ("conv1",)),
    ],
)
def test_overrides_are_toml_values_or_bare_words(override, value):
    got = replace(mine(), override).values()[override.partition("=")[0].strip()]
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


ODD_TEXTS = [
    'a "quoted" word\\n',
    "tab\tnew\nline\r\n",
    "\x01\x1f\x7f\x85\u2028",
    "füür 日本 🙂",
    "\ue000\U000f0000",
    "'''\"\"\"# no comment",
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=map(ascii, ODD_TEXTS))
def test_any_text_survives_the_round_trip(text):
    recipe = mine(data=DataConfig(name="digits", root=text))
    toml = to_toml(recipe)
    assert recipe_from_toml(toml, "mine") == recipe
    toml.encode("utf-8")
    assert len(toml.splitlines()) == len(to_toml(mine()).splitlines())


def test_the_resolved_recipe_loads_to_an_equal_one():
    changes = ["loss.kind=tet", "neuron.surrogate.width=1e-5", "train.weight_decay=3.3e-17"]
    recipe = replace(mine(), *changes, "seed=9223372036854775807")
    assert recipe_from_toml(to_toml(recipe), "mine") == recipe
    assert to_toml(recipe_from_toml(to_toml(recipe), "mine")) == to_toml(recipe)


def test_a_byte_order_mark_and_dos_line_ends_are_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(path) == recipe_from_toml(GOOD, "mine")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning_rate", None), ("zyx", None), ("data.classweight", "loss.class_weights"),
        ("trian.lr", "train.lr"), ("epoch", "train.epochs"), ("lr", "train.lr"),
        ("neuron.tua", "neuron.tau"), ("neuron.width", "neuron.surrogate.width"),
        ("train.batch", "train.batch_size"), ("surrogate.widht", "neuron.surrogate.width"),
        ("data.root.x", "data.root"),
    ],
)  # fmt: skip
def test_a_key_near_to_nothing_suggests_nothing(key, meant):
    with pytest.raises(UserError) as raised:
        replace(mine(), f"{key}=1")
    assert ("did you mean" in str(raised.value)) == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in str(raised.value)


def test_what_a_recipe_changes_makes_it_again():
    recipe = recipe_from_toml(GOOD + "[train]\nepochs = 3\nfreeze = ['fc']", "mine")
    base = recipe_from_toml('data.name = "synthetic"\nmodel.name = "mlp"', "mine")
    assert {"train.epochs=3", 'train.freeze=["fc"]'} < {*recipe.overrides()}
    assert replace(base, *recipe.overrides()) == recipe
