"""docs/README.zh.md has the commands, numbers, pictures and links of README.md."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)]+)\)")


def commands(page: str) -> list[str]:
    """The lines of its code, without comments."""
    text = (ROOT / page).read_text("utf-8")
    lines = "\n".join(FENCE.findall(text)).splitlines()
    return [line for line in (line.partition("#")[0].rstrip() for line in lines) if line]


def numbers(page: str) -> list[str]:
    text = FENCE.sub("", (ROOT / page).read_text("utf-8"))
    return sorted(re.findall(r"\d+(?:\.\d+)*", LINK.sub("]", text)))


def links(page: str) -> set[str]:
    """Links and pictures, from the top of the repository; not those between the two pages."""
    path = ROOT / page
    found = {os.path.normpath(path.parent / to) for to in LINK.findall(path.read_text("utf-8"))}
    return {os.path.relpath(to, ROOT) for to in found} - {"README.md", "docs/README.zh.md"}


def sections(page: str) -> list[int]:
    """How many paragraphs, tables and blocks each section has."""
    text = FENCE.sub("block", (ROOT / page).read_text("utf-8"))
    return [len(part.strip().split("\n\n")) for part in text.split("\n## ")]


@pytest.mark.parametrize("said", [commands, numbers, links, sections])
def test_both_pages_say_the_same(said):
    assert said("docs/README.zh.md") == said("README.md")
