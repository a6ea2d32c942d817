"""Recipes by machine: any text is a recipe that survives a round trip, or is refused in one line.

hypothesis draws values, keys, whole texts and mutations of the shipped recipes; the same examples
every time, more with --slow.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from spiketriton.config import KEYS, load_recipe, recipe_from_toml, replace, to_toml
from spiketriton.config.recipe import Arguments, Range
from spiketriton.config.shipped import shipped_recipes
from spiketriton.system.errors import UserError

SHIPPED = [path.read_text("utf-8") for path in shipped_recipes().values()]


@pytest.fixture
def hunt(request: pytest.FixtureRequest) -> Callable[[Callable[..., None]], None]:
    """Runs a test that `given` has wrapped."""
    return settings(
        max_examples=1500 if request.config.getoption("--slow") else 60,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )


def recipe_or_refusal(make: Callable[[], Any]) -> str | None:
    """None for a recipe that its own text gives back; else what the refusal said, one line."""
    try:
        recipe = make()
    except UserError as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == 1
        assert message.isprintable(), message
        assert len(message) < 900
        return message
    text = to_toml(recipe)
    again = recipe_from_toml(text, recipe.name)
    assert again == recipe
    assert to_toml(again) == text
    return None


# ---- values as TOML writes them

NUMBERS = st.one_of(
    st.integers(-3, 300).map(str),
    st.integers(-(2**200), 2**200).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["nan", "-inf", "+inf", "1e999", "-0.0", "0x1F", "1_000", "0o7", "1e-400"]),
    st.integers(4000, 6000).map(lambda digits: "9" * digits),
)
# quotes and backslashes are escaped; the rest of Unicode stands as it is, controls included
STRINGS = st.text(max_size=12).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
OTHERS = st.sampled_from(["true", "false", "[1]", "[]", "{}", "{a = 1}", "1979-05-27", "07:32:00"])


def good_value(dotted: str) -> st.SearchStrategy[str]:
    """Values that the key by itself accepts."""
    spec = KEYS[dotted]
    numbers = spec.field.metadata["numbers"] or Range(0, 0)
    floats = st.floats(
        numbers.low,
        numbers.high,
        exclude_min=numbers.open == "low",
        exclude_max=numbers.open == "high",
    ).map(repr)
    of = {
        bool: st.sampled_from(["true", "false"]),
        int: st.integers(int(numbers.low), int(numbers.high)).map(str),
        float: floats,
        str: st.sampled_from(['"data"', '"/é/日本 語"', "'C:\\data'", '"a=b #c"']),
        # plugins must be there to be imported
        tuple[str, ...]: st.just("[]" if dotted == "plugins.modules" else '["fc", "conv*"]'),
        tuple[float, ...]: st.lists(floats, max_size=3).map(lambda all: f"[{', '.join(all)}]"),
        Arguments: st.sampled_from(["{}", '{a = 1, "b c" = [0.5, "x"], d = {e = true}}']),
    }
    words = [st.sampled_from([f'"{word}"' for word in spec.words])] if spec.words else []
    return st.one_of(words + [of[kind] for kind in spec.kinds])


def in_toml(values: dict[str, str]) -> str:
    return "".join(f"{dotted} = {value}\n" for dotted, value in values.items())


@st.composite
def good_values(draw: st.DrawFn) -> dict[str, str]:
    keys = ["data.name", "model.name", *draw(st.lists(st.sampled_from(list(KEYS)), max_size=8))]
    return {dotted: draw(good_value(dotted)) for dotted in keys}


ANY_VALUE = st.one_of(NUMBERS, STRINGS, OTHERS)


def test_good_values_make_a_recipe_or_a_named_contradiction(hunt):
    @given(good_values())
    def test(values):
        message = recipe_or_refusal(lambda: recipe_from_toml(in_toml(values), "x"))
        if message is not None:
            assert any(dotted in message for dotted in values), message

    hunt(test)()


def test_any_text_at_all(hunt):
    @given(st.text(max_size=200) | st.text(alphabet="[]{}=\"'.,#\n\r\t_-+e019abc\\", max_size=200))
    @example("[" * 5000)
    @example("a=" + "[" * 5000)
    @example("." * 5000)
    @example("a." * 5000 + "a=1")
    def test(text):
        recipe_or_refusal(lambda: recipe_from_toml(text, "x"))

    hunt(test)()


def test_mutated_recipes(hunt):
    @given(st.data())
    def test(data):
        text = data.draw(st.sampled_from(SHIPPED))
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(text)))
            end = data.draw(st.integers(start, min(len(text), start + 12)))
            new = data.draw(st.one_of(st.text(max_size=4), ANY_VALUE, st.sampled_from(SHIPPED)))
            text = text[:start] + new + text[end:]
        recipe_or_refusal(lambda: recipe_from_toml(text, "x"))

    hunt(test)()


def test_overrides(hunt, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(SHIPPED[0], "utf-8")
    keys = st.sampled_from(list(KEYS)) | st.text(max_size=12)
    words = st.one_of(ANY_VALUE, st.text(max_size=12), st.just(""))

    @given(st.lists(st.tuples(keys, st.sampled_from(["=", " = ", "", "=="]), words), max_size=4))
    def test(parts):
        overrides = ["".join(part) for part in parts]
        message = recipe_or_refusal(lambda: load_recipe(path, overrides))
        if message is None:
            base = recipe_from_toml(SHIPPED[0], path.stem)
            assert replace(base, *overrides) == load_recipe(path, overrides)

    hunt(test)()
