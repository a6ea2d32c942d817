"""docs/recipes.md: the page of all keys, and the command that prints it."""

import subprocess
import sys

import pytest

from spiketriton.config.__main__ import main
from spiketriton.errors import UserError
from tests.config.support import DOCS


def test_the_command_prints_the_page():
    done = subprocess.run(
        [sys.executable, "-m", "spiketriton.config"], capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, DOCS.read_text(encoding="utf-8"), "")


def test_an_argument_is_a_plugin():
    with pytest.raises(UserError, match=r"plugins\.modules: x cannot be imported"):
        main(["x"])
