"""Shipped recipes are found by name from any folder, and their headers say what they need."""

import pytest

from spiketriton.config import load_recipe
from spiketriton.config.shipped import find_recipe, notes_of, shipped_recipes
from spiketriton.system.errors import UserError
from tests.config.support import GOOD


def test_a_name_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("quickstart", ["seed=4"])
    assert (recipe.name, recipe.seed, recipe.data.name) == ("quickstart", 4, "digits")


def test_a_file_wins_over_a_name_and_a_name_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart") == shipped_recipes()["quickstart"]
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text(GOOD)
    assert load_recipe("quickstart").train.epochs == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("quikstart", "quikstart: no such recipe file; did you mean quickstart (shipped)?"),
        ("recipes/quickstart.toml", "did you mean quickstart (shipped)?"),
        ("zzz.toml", "zzz.toml: no such recipe file; accepted: a TOML file, or a name that"),
        (".", ". is a folder"),
    ],
)
def test_what_is_not_found_is_named_with_what_was_meant(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_recipe(given)
    assert words in str(caught.value)


def test_every_header_says_how_much_memory_a_training_needs():
    assert [
        name for name, path in shipped_recipes().items() if "Memory" not in notes_of(path)
    ] == []


def test_notes_end_at_an_empty_line_and_other_words_before_a_colon_are_none(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        "# A net. More of it.\n#\n#   a command\n#\n# Memory: 3 GB,\n#   computed.\n#\n"
        "# To save it: less.\n#\n# Measured: 5 %.\nseed = 1\n# Published: no header\n"
    )
    assert notes_of(path) == {"Memory": "3 GB, computed.", "Measured": "5 %."}
