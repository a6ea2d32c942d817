"""Parts of one's own: registered by modules and entry points, their names and keys checked strictly."""

import pickle
import sys
from importlib import import_module, metadata

import pytest

from spiketriton.config import load_recipe, parts, recipe_from_toml, replace, to_toml
from spiketriton.config.__main__ import main as print_page
from tests.config.support import refused

SOURCE = """
from dataclasses import dataclass
from spiketriton.plugins import PartOptions, Range, key, model, neuron, loss, data
__version__ = "3.1"
@dataclass(frozen=True, kw_only=True)
class Keys(PartOptions):
    hidden: int = key(16, "hidden neurons", Range(1, 64))
    share: float = key(0.5, numbers=Range(0, 1))
    "a share of something"
@model("my_net", options=Keys)
def my_net(recipe, parts, *, classes, channels, image_size):
    return recipe.model.options.hidden
@neuron("my_neuron")
def my_neuron(config):
    return config
@loss("my_loss")
def my_loss(config):
    return lambda currents, labels: currents.sum() * 0 + 7
@data("my_data")
def my_data(config):
    return 3
"""

TEXT = """
[plugins]
modules = ["my_parts.py"]
[data]
name = "digits"
[model]
name = "my_net"
"""


@pytest.fixture(autouse=True)
def forgotten():
    """No test finds the modules of another."""
    yield
    for name in [n for n in sys.modules if n.startswith(("spiketriton_plugin_my", "my_"))]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(SOURCE)
    (tmp_path / "my.toml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_beside_the_recipe_is_imported_from_anywhere(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    recipe = load_recipe(folder / "my.toml", ["model.my_net.hidden=7"])
    assert recipe.model.options.hidden == 7
    assert recipe.model.options.share == 0.5
    text = to_toml(recipe)
    assert f'modules = ["{folder}/my_parts.py"]' in text
    assert "[model.my_net]\nhidden = 7" in text
    assert recipe_from_toml(text, "my") == recipe
    assert replace(recipe, "model.my_net.share=0.25").model.options.share == 0.25
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(recipe) == hash(recipe_from_toml(text, "my"))


def test_a_module_is_imported_by_name_from_the_current_folder(folder):
    text = TEXT.replace("my_parts.py", "my_parts")
    assert recipe_from_toml(text, "my").plugins.modules == ("my_parts",)


MISTAKES = {
    "name = 'my_nt'": ["model.name", 'did you mean "my_net"?'],
    "name = 'my_net'\nmy_net.hidden = 65": ["model.my_net.hidden = 65", "from 1 to 64"],
    "name = 'my_net'\nmy_net.hiden = 1": ["model.my_net.hiden", "did you mean model.my_net.hid"],
    "name = 'my_net'\nmy_net = 1": ["model.my_net = 1", "a table, [model.my_net]"],
    "name = 'resnet8'\nmy_net.hidden = 1": ["model.my_net.hidden = 1 has no effect", '"resnet8"'],
    "name = 'my_net'\n[loss]\nkind = 'my_loss'\n[train]\nmixup = 0.2": [
        'train.mixup = 0.2 with loss.kind = "my_loss": labels are of several classes',
        "accepted with it: 0",
    ],
}


@pytest.mark.parametrize(("lines", "said"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_mistakes_are_named_as_those_of_built_in_keys(folder, lines, said):
    refused(said, recipe_from_toml, TEXT.replace('name = "my_net"', lines), "my")


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ('["nowhere.py"]', ["plugins.modules: no such file", "nowhere.py"]),
        ('["no_such_module_of_mine"]', ["no_such_module_of_mine cannot be imported", "No module"]),
        ('["broken.py"]', ["broken.py cannot be imported: ZeroDivisionError"]),
        ("[1]", ["plugins.modules", "an array of strings"]),
        ('["thief.py"]', ['model.name = "resnet8" is built in']),
        ('["keyless.py"]', ['data.name = "mine": options = ', "PartOptions", "frozen=True"]),
        ('["undecorated.py"]', ['data.name = "mine": options = ', "Keys", "frozen=True"]),
    ],
)
def test_plugins_that_cannot_be_used_are_named(folder, modules, said):
    (folder / "broken.py").write_text("1 / 0")
    thief = "from spiketriton.plugins import model\n@model('resnet8')\ndef f(): pass"
    (folder / "thief.py").write_text(thief)
    for name, base in {"keyless": "object", "undecorated": "PartOptions"}.items():
        keys = f"from spiketriton.plugins import PartOptions, data\nclass Keys({base}): n = 1\n"
        (folder / f"{name}.py").write_text(keys + "@data('mine', options=Keys)\ndef f(c): pass")
    refused(said, recipe_from_toml, TEXT.replace('["my_parts.py"]', modules), "my")


def test_a_part_of_a_module_that_the_recipe_does_not_list_is_refused(folder):
    recipe_from_toml(TEXT, "my")
    text = TEXT.replace('modules = ["my_parts.py"]', "modules = []")
    said = ['model.name = "my_net"', "not list", f'plugins.modules = ["{folder / "my_parts.py"}"]']
    refused(said, recipe_from_toml, text, "x")


def test_two_modules_cannot_share_a_name(folder):
    (folder / "my_other.py").write_text(SOURCE + "# another one")
    text = TEXT.replace('["my_parts.py"]', '["my_parts.py", "my_other.py"]')
    files = folder / "my_other.py", folder / "my_parts.py"
    refused(
        ["the plugin {} is registered by {} already".format(*files)], recipe_from_toml, text, "x"
    )


def test_a_program_that_imports_its_plugin_may_train_with_it(folder, monkeypatch):
    """Before the recipe names the file, or after it; a copy of the file is the same plugin."""
    monkeypatch.syspath_prepend(folder)
    for first in ("import", "recipe"):
        name = f"my_{first}"
        (folder / f"{name}.py").write_text(SOURCE.replace("my_", f"{name}_"))
        (folder / f"{name}_copy.py").write_text(SOURCE.replace("my_", f"{name}_"))
        text = TEXT.replace("my_parts", name).replace("my_net", f"{name}_net")
        if first == "import":
            import_module(name)
        recipes = [recipe_from_toml(text.replace(".py", end), "x") for end in (".py", "_copy.py")]
        assert {recipe.model.name for recipe in recipes} == {f"{name}_net"}
        import_module(name)
        assert recipe_from_toml(text, "x") == recipes[0]


def test_overrides_and_values_may_name_a_plugin_its_parts_and_their_keys(folder):
    """In a process that has not met the plugin."""
    (folder / "plain.toml").write_text('data.name = "digits"\nmodel.name = "resnet8"')
    keys = {"model.name": "my_net", "model.my_net.hidden": 7, "plugins.modules": "my_parts.py"}
    recipe = load_recipe("plain.toml", [f"{key}={value}" for key, value in keys.items()])
    assert recipe.plugins.modules == (str(folder / "my_parts.py"),)
    assert recipe.model.options.hidden == 7
    values = keys | {"plugins.modules": ["my_parts.py"]}
    assert load_recipe("plain.toml", values=values) == recipe


def test_an_installed_package_offers_parts_by_entry_points(folder, monkeypatch):
    offered = [
        metadata.EntryPoint(name, "my_parts:my_net", "spiketriton.models")
        for name in ("my_net", "nothing")
    ]
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: offered if group == "spiketriton.models" else []
    )
    monkeypatch.syspath_prepend(folder)
    parts.entry_points.cache_clear()
    text = TEXT.replace('[plugins]\nmodules = ["my_parts.py"]', "") + "my_net.hidden = 3"
    assert recipe_from_toml(text, "x").model.options.hidden == 3
    for name, said in (("my_ne", 'did you mean "my_net"'), ("nothing", "registers none")):
        refused([said], recipe_from_toml, text.replace('"my_net"', f'"{name}"'), "x")


def test_the_page_of_keys_has_a_place_for_parts(folder, capsys):
    print_page(["my_parts.py"])
    page = capsys.readouterr().out
    assert "## `[model.my_net]`" in page
    assert "| `model.my_net.hidden` | `16` | an integer from 1 to 64 | hidden neurons |" in page
    assert "| `model.my_net.share` | `0.5` | a number from 0 to 1 | a share of something |" in page
    print_page([])
    assert page.startswith(capsys.readouterr().out)
    refused(["no such file"], print_page, ["nowhere.py"])
