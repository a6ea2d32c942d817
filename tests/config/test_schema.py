"""docs/recipes.md and docs/recipe.schema.json, which accepts what is shipped and refuses what the parser refuses."""

import tomllib
from pathlib import Path

import jsonschema
import pytest

from spiketriton.config import recipe_from_toml, schema, to_toml
from spiketriton.config.__main__ import FIRST, main
from spiketriton.system.errors import UserError
from tests.config.support import GOOD

ROOT = Path(__file__).parents[2]
VALID = jsonschema.Draft202012Validator(schema.schema())


@pytest.mark.parametrize(
    ("option", "file"), [([], "recipes.md"), (["--schema"], "recipe.schema.json")]
)
def test_the_file_is_what_the_command_prints(option, file, capsys):
    main(option)
    assert capsys.readouterr().out == (ROOT / "docs" / file).read_text("utf-8")
    jsonschema.Draft202012Validator.check_schema(schema.schema())


def test_the_page_begins_with_the_ten_keys_that_a_newcomer_needs(capsys):
    main([])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert len(FIRST) == 10
    assert [row.split("`")[1] for row in rows[:10]] == [*FIRST]


def test_every_shipped_recipe_is_accepted_as_written_and_as_resolved():
    paths = [*(ROOT / "recipes").rglob("*.toml"), *(ROOT / "examples").rglob("*.toml")]
    assert len(paths) > 20
    for path in paths:
        text = path.read_text("utf-8")
        VALID.validate(tomllib.loads(text))
        if "plugins" not in text:
            VALID.validate(tomllib.loads(to_toml(recipe_from_toml(text, path.stem))))


@pytest.mark.parametrize(
    "wrong",
    [
        "time_stepss = 4\n" + GOOD,
        "time_steps = 0\n" + GOOD,
        GOOD + '[train]\noptimizer = "adm"',
        GOOD + "[train]\nmomentum = 1.0",
        GOOD + "[train]\nlr = 0",
        GOOD + "[trian]\nlr = 0.1",
        GOOD + '[neuron]\ntau = "two"',
        GOOD + "[train]\nfreeze = [1]",
        '[data]\nname = "digits"',
    ],
)
def test_what_the_parser_refuses_of_one_key_is_refused(wrong):
    assert not VALID.is_valid(tomllib.loads(wrong))
    with pytest.raises(UserError):
        recipe_from_toml(wrong, "wrong")
    assert VALID.is_valid(tomllib.loads(GOOD))
