"""How values are written in errors, on the page of all keys and in TOML."""

import datetime
import tomllib

import pytest

from spiketriton.config.words import number, quoted, shown


@pytest.mark.parametrize(
    ("value", "text"), [(2**63 - 1, "9223372036854775807"), (1e3, "1000"), (1e-10, "1e-10")]
)
def test_bounds_are_written_as_people_do(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (2.0, "2.0"),
        ('a "b"\\', '"a \\"b\\"\\\\"'),
        ("x" * 80, '"' + "x" * 80 + '"'),
        ("x" * 81, '"' + "x" * 80 + '..."'),
        ({"a": 1}, "a table"),
        ([1, "a", [2]], '[1, "a", an array]'),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        (datetime.date(2024, 1, 2), "datetime.date(2024, 1, 2) (date)"),
        (2**128 - 1, "340282366920938463463374607431768211455"),
        (2**128, "an integer of 129 bits"),
    ],
)
def test_a_value_is_shown_as_toml_writes_it_or_named(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("text", "toml"),
    [
        ("é 日本 🙂", '"é 日本 🙂"'),
        ("\t\n", '"\\u0009\\u000A"'),
        ("\uffff\U00010ffe", '"\\uFFFF\\U00010FFE"'),  # the last with four digits
        ("\U000e0001", '"\\U000E0001"'),
    ],
)
def test_a_quoted_text_is_one_printable_line_that_toml_reads_back(text, toml):
    assert quoted(text) == toml
    assert tomllib.loads(f"x = {toml}")["x"] == text
