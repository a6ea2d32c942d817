"""Recipes: every kind of mistake is refused in one line; what is accepted survives a round trip."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from spiketriton import config
from spiketriton.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    NeuronConfig,
    Recipe,
    SurrogateConfig,
    TrainConfig,
    load_recipe,
    recipe_from_toml,
    replace,
    to_toml,
)
from spiketriton.config.__main__ import markdown
from spiketriton.errors import UserError, one_line, run_command

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"

GOOD = """
[data]
name = "digits"
[model]
name = "resnet8"
"""


def plain_net(extra=""):
    return '[data]\nname = "digits"\n[model]\nname = "plain"\n' + extra


# mistakes in a file: the text, and what the one line must say

BAD_FILES = {
    "unknown key": (GOOD + "[train]\nepoch = 1", ["train.epoch", "did you mean train.epochs?"]),
    "unknown key of the top level": ("sed = 1\n" + GOOD, ["sed", "did you mean seed?"]),
    "key without its table": ("epochs = 1\n" + GOOD, ["epochs", "did you mean train.epochs?"]),
    "key in the wrong table": (GOOD + "lr = 1.0", ["model.lr", "did you mean train.lr?"]),
    "unknown key, nothing near": (GOOD + "[loss]\nqqq = 1", ["loss.qqq", "known keys: loss.kind"]),
    "unknown table": (GOOD + "[trian]\nepochs = 1", ["table trian", "did you mean train?"]),
    "unknown table, nothing near": (GOOD + "[zzzz]", ["table zzzz", "known tables: data, model"]),
    "table without its parent": (GOOD + "[surrogate]", ["did you mean neuron.surrogate?"]),
    "dot in a quoted key": ('"data.root" = "x"\n', ['"data.root"', "did you mean"]),
    "empty key": ('"" = 1\n' + GOOD, ['unknown key ""', "seed"]),
    "value for a table": ("train = 3\n" + GOOD, ["train = 3", "a table, [train]"]),
    "table for a value": (GOOD + "[train.lr]\nx = 1", ["train.lr = a table", "a number above 0"]),
    "array for a value": (GOOD + "[train]\nlr = [1]", ["train.lr = an array", "a number"]),
    "date for a value": (GOOD + "[train]\nlr = 2024-01-01", ["train.lr", "date", "a number"]),
    "bool for int": (GOOD + "[train]\nepochs = true", ["train.epochs = true", "an integer from 1"]),
    "bool for float": (GOOD + "[train]\nlr = false", ["train.lr = false", "a number above 0"]),
    "string for int": (GOOD + '[train]\nepochs = "3"', ['train.epochs = "3"', "an integer"]),
    "string for float": (GOOD + '[train]\nlr = "0.1"', ['train.lr = "0.1"', "a number"]),
    "float for int": (GOOD + "[train]\nepochs = 1.0", ["train.epochs = 1.0", "an integer"]),
    "int for bool": (GOOD + "[train]\ncompile = 1", ["train.compile = 1", "true or false"]),
    "string for bool": (GOOD + '[train]\ncompile = "yes"', ['"yes"', "true or false"]),
    "int for string": ("data.root = 3\n", ["data.root = 3", "text"]),
    "nan": (GOOD + "[train]\nlr = nan", ["train.lr = nan", "a number above 0, at most 1000"]),
    "infinity": (GOOD + "[train]\nlr = inf", ["train.lr = inf", "a number above 0, at most 1000"]),
    "negative infinity": (GOOD + "[neuron]\nv_reset = -inf", ["neuron.v_reset = -inf", "-1e6"]),
    "below the range": (GOOD + "[neuron]\ntau = 0.5", ["neuron.tau = 0.5", "from 1 to 1e6"]),
    "at an open start": (GOOD + "[train]\nlr = 0.0", ["train.lr = 0.0", "above 0, at most 1000"]),
    "at an open end": (GOOD + "[train]\nwarmup = 1.0", ["train.warmup = 1.0", "from 0, below 1"]),
    "above the range": ("seed = 9223372036854775808\n" + GOOD, ["seed", "to 9223372036854775807"]),
    "negative seed": ("seed = -1\n" + GOOD, ["seed = -1", "an integer from 0"]),
    "zero time steps": ("time_steps = 0\n" + GOOD, ["time_steps = 0", "an integer from 1"]),
    "huge int": ("seed = 0x" + "f" * 9000 + "\n" + GOOD, ["seed", "36000 bits", "an integer from"]),
    "huge int for float": (GOOD + "[train]\nlr = 0x" + "f" * 999, ["train.lr", "a number above 0"]),
    "not among the choices": (GOOD + '[neuron]\nkind = "lfi"', ['did you mean "lif"?', '"relu"']),
    "wrong word for a number": (
        GOOD + '[neuron.surrogate]\nwidth = "wide"',
        ['neuron.surrogate.width = "wide"', 'a number from 1e-6 to 1e6 or "auto"'],
    ),
    "empty string": ("data.root = ''\n", ['data.root = ""', "not empty"]),
    "NUL in a path": ('data.root = "a\\u0000"\n', ["data.root", "no NUL"]),
    "no data": ('[model]\nname = "mlp"', ["data.name is missing", '"imagenette"']),
    "no model": ('[data]\nname = "digits"', ["model.name is missing", '"resnet18"']),
    "empty file": ("", ["data.name is missing"]),
    "unknown data set": ('[data]\nname = "imagenet"', ['did you mean "imagenette"?', '"cifar10"']),
    "block without skips": (plain_net('block = "sew"'), ['model.block = "sew"', '"plain"']),
    "accumulate does not divide": (
        GOOD + "[train]\nbatch_size = 10\naccumulate = 3",
        ["train.accumulate = 3", "train.batch_size = 10", "a divisor"],
    ),
    "plif that leaves nothing": (
        GOOD + '[neuron]\nkind = "plif"\ntau = 1',
        ["neuron.tau = 1.0", "a number above 1"],
    ),
    "nesterov without momentum": (
        GOOD + '[train]\noptimizer = "sgd"\nmomentum = 0\nnesterov = true',
        ["train.nesterov = true", "train.momentum above 0"],
    ),
    "reset above the threshold": (
        GOOD + "[neuron]\nv_reset = 1",
        ["neuron.v_reset = 1.0", "below neuron.v_threshold = 1.0"],
    ),
    "v_reset with soft reset": (
        GOOD + '[neuron]\nreset = "soft"\nv_reset = -1',
        ["neuron.v_reset = -1.0 has no effect", 'neuron.reset is "soft"'],
    ),
    "stem of a small resnet": (GOOD + 'stem = "cifar"', ["model.stem", 'model.name is "resnet8"']),
    "depth of a resnet": (GOOD + "depth = 20", ["model.depth = 20", 'model.name is "resnet8"']),
    "variant without imagenette": (
        'data.name = "digits"\ndata.variant = "320px"\nmodel.name = "mlp"',
        ["data.variant", 'data.name is "digits"'],
    ),
    "classes without synthetic": (
        'data.name = "digits"\ndata.classes = 10\nmodel.name = "mlp"',
        ["data.classes", 'data.name is "digits"'],
    ),
    "momentum with adamw": (GOOD + "[train]\nmomentum = 0.9", ["train.momentum", '"adamw"']),
    "nesterov with adamw": (GOOD + "[train]\nnesterov = false", ["train.nesterov", '"adamw"']),
    "tet_lambda with cross-entropy": (
        GOOD + "[loss]\ntet_lambda = 0.05",
        ["loss.tet_lambda", 'loss.kind is "cross_entropy"'],
    ),
    "tau without a leak": (GOOD + '[neuron]\nkind = "if"\ntau = 2', ["neuron.tau", '"if"']),
    "decay_input without a leak": (
        GOOD + '[neuron]\nkind = "if"\ndecay_input = true',
        ["neuron.decay_input = true", '"if"'],
    ),
    "detach_reset without reset": (
        GOOD + '[neuron]\nreset = "none"\ndetach_reset = true',
        ["neuron.detach_reset", 'neuron.reset is "none"'],
    ),
    "monitor off and configured": (
        GOOD + "[monitor]\nenabled = false\nevery = 5",
        ["monitor.every = 5", "monitor.enabled is false"],
    ),
    "tensorboard without monitor": (
        GOOD + "[monitor]\nenabled = false\ntensorboard = true",
        ["monitor.tensorboard = true", "monitor.enabled is false"],
    ),
    "invalid TOML": ("[data]\nname = digits", ["invalid TOML", "line 2"]),
    "cut short": ("[data]\nname =", ["invalid TOML", "line 2"]),
    "the same key twice": ("seed = 1\nseed = 2", ["invalid TOML", "line 2"]),
    "endless number": ("seed = " + "9" * 5000, ["invalid TOML", "4300 digits"]),
    "endless nesting": ("seed = " + "[" * 5000, ["invalid TOML"]),
}


@pytest.mark.parametrize(("text", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_mistake_in_a_file_is_named(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_recipe(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert [part for part in said if part not in message] == [], message
    assert message == one_line(message)
    assert len(message) < len(str(path)) + 400


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
    with pytest.raises(UserError, match=r"other/a\.toml: no such recipe file$"):
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
    "a.b=3": ["unknown key a.b;", "known tables: data, model"],
    "data.root.x=3": ["unknown key data.root.x;", "did you mean data.root?"],
    "train.epochs=": ['train.epochs = ""', "an integer"],
    "train.epochs=three": ['train.epochs = "three"', "an integer"],
    "train.epochs=3\nseed = 4": ["train.epochs", "an integer"],
    "train.epochs=-1": ["train.epochs = -1", "an integer from 1"],
    "train.compile=True": ['train.compile = "True"', "true or false"],
    "data.root=": ['data.root = ""', "not empty"],
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


def test_the_last_override_wins(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seed = 1\n" + GOOD)
    assert load_recipe(path, ["seed=2", "seed=3"]).seed == 3


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


def test_defaults_are_as_documented_in_the_contract():
    recipe = recipe_from_toml(GOOD, "mine")
    assert (recipe.name, recipe.seed, recipe.time_steps) == ("mine", 0, 4)
    assert recipe == Recipe(
        name="mine", data=DataConfig(name="digits"), model=ModelConfig(name="resnet8")
    )
    assert recipe.neuron == NeuronConfig(
        kind="lif", tau=2.0, v_threshold=1.0, reset="hard", detach_reset=True
    )
    assert recipe.neuron.surrogate == SurrogateConfig(shape="atan", height=1.0, width=1.0)


def test_recipes_are_frozen_hash_and_compare():
    one, two = recipe_from_toml(GOOD, "mine"), recipe_from_toml(GOOD, "mine")
    assert one == two
    assert hash(one) == hash(two)
    assert one != replace(one, "seed=1")
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seed = 1


@pytest.mark.parametrize("norm", ["bn", "tdbn", "tebn", "none"])
@pytest.mark.parametrize("memory", ["standard", "packed"])
def test_the_ann_twin_of_any_recipe_is_one_word_away(norm, memory):
    recipe = recipe_from_toml(
        GOOD + f'norm = "{norm}"\nmemory = "{memory}"\n[neuron]\nkind = "plif"\ntau = 3.0',
        "mine",
    )
    twin = replace(recipe, "neuron.kind=relu")
    ours, theirs = to_toml(recipe).splitlines(), to_toml(twin).splitlines()
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == [
        ('kind = "plif"', 'kind = "relu"')
    ]


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


def mine(**changes):
    given = {"data": DataConfig(name="digits"), "model": ModelConfig(name="resnet8")}
    return Recipe(**{"name": "mine", **given, **changes})


def test_integers_become_floats_where_a_number_is_asked():
    assert type(NeuronConfig(tau=2).tau) is float
    assert NeuronConfig(tau=2) == NeuronConfig(tau=2.0)


ODD_TEXTS = [
    'a "quoted" word',
    "it's",
    "back\\slash\\n",
    "tab\tnew\nline\r\n",
    "\x01\x1f\x7f\x85\u2028",
    "füür 日本 🙂",
    "\ue000\U000f0000",
    "'''\"\"\"",
    "# no comment",
    "[train]",
    " ",
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
        ["model.name=plain", "model.depth=50"],
        ["model.name=resnet50", "model.stem=cifar"],
        ["neuron.kind=if", "neuron.reset=soft"],
        ["neuron.reset=none", "neuron.surrogate.width=auto_per_layer"],
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


# the page, the command, the exit codes


def test_the_page_of_all_keys_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == markdown(), (
        "run: python -m spiketriton.config > docs/recipes.md"
    )


def test_every_key_is_explained_and_accepts_its_default():
    for dotted, spec in config.KEYS.items():
        assert len(spec.field.metadata["doc"]) > 5, dotted
        if not spec.required:
            assert spec.check(spec.default) == spec.default


def test_the_command_prints_the_page():
    done = subprocess.run(
        [sys.executable, "-m", "spiketriton.config"], capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, markdown(), "")


def test_a_user_error_is_one_line_and_code_2(capsys):
    def main(argv):
        raise UserError(f"no {argv[0]}\n  at all\u2028here")

    with pytest.raises(SystemExit) as left:
        run_command(main, ["cake"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: no cake at all here\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (143, 143)])
def test_a_command_leaves_with_its_code(returned, code):
    with pytest.raises(SystemExit) as left:
        run_command(lambda argv: returned, [])
    assert left.value.code == code


def test_the_arguments_default_to_those_of_the_process(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["program", "a", "b=c"])
    with pytest.raises(SystemExit):
        run_command(seen.extend)
    assert seen == ["a", "b=c"]


def test_ctrl_c_is_code_130_without_a_traceback(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        run_command(main, [])
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_mistakes_keep_their_traceback_and_code_1():
    program = "from spiketriton.errors import run_command\nrun_command(lambda argv: 1 // 0, [])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr
