"""docs/recipes.md: the page of all keys, and the command that prints it."""

import subprocess
import sys
from pathlib import Path

from spiketriton.config.__main__ import markdown

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_of_all_keys_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == markdown(), (
        "run: python -m spiketriton.config > docs/recipes.md"
    )


def test_the_command_prints_the_page():
    done = subprocess.run(
        [sys.executable, "-m", "spiketriton.config"], capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, markdown(), "")
