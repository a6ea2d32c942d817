"""docs/design.md and CONTRIBUTING.md name folders and files that are there, and no folder of code is left out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("kernels/spiketriton_kernels", "spiketriton", "profiling")


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_is_there(page):
    named = set(re.findall(r"`([\w./]+\.(?:py|h|cpp|md))`", (ROOT / page).read_text("utf-8")))
    files = [
        path.as_posix()
        for folder in (*CODE, "tests", "docs", "studies")
        for path in (ROOT / folder).rglob("*")
    ]
    # NAME stands for any
    patterns = {name: f".*/{re.escape(name).replace('NAME', r'[a-z_]+')}" for name in named}
    missing = {n for n, p in patterns.items() if not any(re.fullmatch(p, path) for path in files)}
    assert named
    assert not missing


def test_every_folder_of_code_is_described():
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    described = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w/]+/)`", line)
    }
    files = {path for folder in CODE for path in (ROOT / folder).rglob("*.py")}
    there = {f"{path.parent.relative_to(ROOT)}/" for path in files}
    assert described == there - {"profiling/"}


def test_every_picture_is_shown_by_a_page():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        name
        for page in pages
        for name in re.findall(r"\]\((?:docs/)?img/([\w.]+)\)", page.read_text("utf-8"))
    }
    assert {path.name for path in (ROOT / "docs" / "img").iterdir()} == shown
