"""Rows as tables, cell by cell."""

import pytest

from profiling.render.tables import number


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0, "0"),
        (9.999, "10.00"),
        (0.012345, "0.0123"),
        (123.6, "124"),
        (-2.5, "-2.50"),
        (9876543, "9,876,543"),
    ],
)
def test_numbers_have_three_digits(value, words):
    assert number(value) == words
