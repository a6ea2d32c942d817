"""docs/sequences.md, as it is typed: its data set, its recipe and its commands, shorter."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import spiketriton
from spiketriton.config import load_recipe
from spiketriton.config.names import SEQUENCES, UNROLLED
from spiketriton.config.shipped import shipped_recipes
from spiketriton.system.commandline import home_of
from spiketriton.system.errors import EXIT_DONE

PAGE = (Path(__file__).parents[2] / "docs" / "sequences.md").read_text("utf-8")


@pytest.mark.usefixtures("no_pictures")
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind, file in (("python", "my_signals.py"), ("toml", "my_signals.toml")):
        (text,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
        Path(file).write_text(text, "utf-8")
    (shell,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    commands = shell.splitlines()
    assert len(commands) == 3
    for command in commands:
        _, option, *words = shlex.split(command)
        assert importlib.import_module(home_of(option)).main(words) in (EXIT_DONE, None)
    said = capsys.readouterr().out
    assert "500 training and 100 test sequences of 50 steps of 4 values, 3 classes" in said
    assert "without the order in time: the same net, steps shuffled" in said
    run = spiketriton.load_run("runs/signals", plugins=True)
    assert run.metrics["test_accuracy"][-1] > 0.5
    np.save("one.npy", np.zeros((40, 4)))
    assert run.predict("one.npy").shape == (1, 3)
    values = np.random.default_rng(0).normal(size=(1, 50, 4))
    stream = run.stream()
    answers = [stream.step(values[:, t]) for t in range(50)]
    torch.testing.assert_close(answers[-1], run.predict(values))


def test_the_page_names_what_there_is():
    for name in (*SEQUENCES, *UNROLLED):
        assert f"`{name}`" in PAGE or f'"{name}"' in PAGE
    named = re.findall(r"`(\w+)`", PAGE.rpartition("Recipes: ")[2].partition(". ")[0])
    assert len(named) == 5
    for name in named:
        recipe = load_recipe(shipped_recipes()[name])
        assert recipe.model.name == "sequence"
