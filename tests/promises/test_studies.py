"""Every command of a study's script is one that its program accepts; nothing is trained here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spiketriton.config import load_recipe
from spiketriton.runs.cells import grid
from spiketriton.sweep import parse

ROOT = Path(__file__).parents[2]

RECORDS = """#!{python}
import json, sys
with open({file!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> list[list[str]]:
    """What docs/gradient_flow.sh gives to python, which writes it down instead."""
    folder = tmp_path_factory.mktemp("study")
    fake, file = folder / "python", folder / "commands.jsonl"
    fake.write_text(RECORDS.format(python=sys.executable, file=str(file)))
    fake.chmod(0o755)
    (folder / "out").mkdir()
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    script = ["sh", "docs/gradient_flow.sh", str(folder / "out")]
    subprocess.run(script, cwd=ROOT, env=os.environ | {"PATH": path}, check=True)
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_all_sweeps_and_trainings_are_accepted(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    outs = []
    for words in commands:
        if words[:2] == ["-m", "spiketriton.sweep"]:
            args = parse(words[2:])
            assert grid(args.recipe, args.axes, tmp_path)
            outs.append(args.out)
        elif words[:2] == ["-m", "spiketriton.train"]:
            at = words.index("--run-dir")
            load_recipe(words[2], words[3:at])
            outs.append(words[at + 1])
    assert len(outs) > 50
    assert len(set(outs)) == len(outs), "two commands write to one folder"
