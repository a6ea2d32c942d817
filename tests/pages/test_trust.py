"""The page of promises names tests and files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trust.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_the_page_names_many_tests():
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_on_the_page_exists(file, name):
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", re.findall(r"\((img/[\w.]+|\w+\.md)(?:#[\w-]+)?\)", PAGE))
def test_every_file_on_the_page_exists(file):
    assert (ROOT / "docs" / file).is_file()
