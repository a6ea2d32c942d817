"""What the workflows run is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OURS = re.compile(
    r"(?<![\w./-])(?:\.ci|tests|docs|kernels|profiling|recipes|spiketriton|examples|studies)/[\w./-]*"
)


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_every_file_that_a_workflow_names_is_there(path):
    named = OURS.findall(path.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_every_target_that_a_workflow_makes_is_one(path):
    made = re.findall(r"run: make (\w+)", path.read_text("utf-8"))
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {*made} <= {*targets}
    assert made or path.stem != "docs"


def test_the_workflow_of_tests_names_files():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    assert len(OURS.findall(text)) > 3


def test_the_readme_opens_with_the_two_commands_that_set_up_and_run():
    """`.ci/run` looks for the second one, at the start of a line."""
    text = (ROOT / "README.md").read_text("utf-8")
    _, block, _ = text.split("```", 2)
    main, tests = block.removeprefix("bash").strip().splitlines()
    assert main == "pip install -e . && spiketriton train quickstart"
    assert tests == 'pip install -e ".[dev]" && pytest'
