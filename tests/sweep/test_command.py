"""Sweeps: the grid, its results, going on after a stop, tables and pictures."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from spiketriton.sweep import __main__ as module
from spiketriton.system.errors import EXIT_SIGINT, UserError
from spiketriton.training.guard import Diverged
from spiketriton.training.trainer import Trainer
from tests.small_runs import fastest_recipe

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return fastest_recipe(tmp_path)


def run(recipe: str, *axes: str, out: Path) -> int:
    return module.main([recipe, *axes, "--out", str(out)])


def results(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["seed"], "axis 'seed': accepted: key=v1,v2"),
        (["seed=0,,1"], "accepted: key=v1,v2"),
        (["seed=0,1", "seed=2,3"], "seed is given twice"),
        (["seed=0,0"], "a value is given twice"),
        (["sead=0,1"], "unknown key sead"),
        (["model.depth=1,many"], "model.depth"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(axes, said, recipe, tmp_path):
    with pytest.raises(UserError, match=said):
        run(recipe, *axes, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([], "1 cell in out: the recipe alone; key=v1,v2 sweeps a key"),
        (["seed=0,1"], "2 cells in out"),
        (
            ["neuron.tau=1.5,2", "neuron.kind=lif,relu", "seed=0,1"],
            "8 cells in out; 2 of them train what another does, as an ANN reads no other key of neuron",
        ),
    ],
)
def test_cells_that_train_the_same_are_said(axes, said):
    assert module.in_short(module.grid("quickstart", axes, Path("out")), Path("out")) == said


def test_a_sweep_ends_in_means_spreads_and_a_picture(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    axes = ("neuron.surrogate.width=0.5,2,4", "model.depth=2,3", "seed=0,1")
    assert run(recipe, *axes, out=out) == 0
    rows = results(out)
    assert len(rows) == 6
    for row in rows:
        assert len(row["scores"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["scores"]))
        assert row["spread"] == pytest.approx(np.std(row["scores"], ddof=1))
    by_width = {row["neuron.surrogate.width"]: row["width"] for row in rows}
    assert (by_width["0.5"], by_width["2"]) == (0.5, 2)
    said = capsys.readouterr().out
    assert "12/12  neuron.surrogate.width=4 model.depth=3 seed=1" in said
    assert (out / "norms.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "norms.png") in said


def test_finished_cells_are_kept(recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(recipe, "seed=0,1", out=out)
    before = results(out)
    trained = []
    fit = Trainer.fit
    monkeypatch.setattr(
        Trainer, "fit", lambda self, *a: (trained.append(self.recipe.seed), fit(self, *a))[1]
    )
    run(recipe, "seed=0,1,2", out=out)
    assert trained == [2]
    with pytest.raises(UserError, match="another sweep; accepted: a new folder, given with --out"):
        run(recipe, "seed=0,1", "time_steps=2", out=out)
    assert results(out)[0]["scores"][:2] == before[0]["scores"]


def test_a_stopped_cell_ends_as_if_it_never_stopped(recipe, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    axes = ("seed=0,1", "train.max_steps=6", "neuron.surrogate.width=1")
    run(recipe, *axes, out=whole)

    step = Trainer.train_step

    def interrupted(self: Trainer) -> None:
        step(self)
        if self.recipe.seed == 1 and self.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert run(recipe, *axes, out=parts) == EXIT_SIGINT
    said = capsys.readouterr().out
    assert "stopped in cell 2 of 2" in said
    assert f"--out {parts}" in said
    assert not (parts / "results.json").exists()
    monkeypatch.setattr(Trainer, "train_step", step)
    assert run(recipe, *axes, out=parts) == 0
    assert results(parts) == results(whole)


def test_a_cell_that_diverges_is_told_and_the_sweep_goes_on(recipe, tmp_path, monkeypatch, capsys):
    fit = Trainer.fit

    def diverges(self: Trainer, until: int | None = None):
        if self.recipe.seed == 0:
            raise Diverged("the loss is nan at step 1")
        return fit(self, until)

    monkeypatch.setattr(Trainer, "fit", diverges)
    out = tmp_path / "out"
    assert run(recipe, "time_steps=2,3", "seed=0,1", out=out) == 0
    said = capsys.readouterr().out
    assert "the loss is nan at step 1" in said
    assert re.search(r"^2 +0\.3 +[\d.]+ % +2 \(1 diverged\)", said, re.M)  # no spread of one
    assert results(out)[0]["scores"][0] is None
    assert results(out)[0]["mean"] == results(out)[0]["scores"][1]
    assert results(out)[0]["spread"] is None
