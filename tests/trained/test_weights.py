"""Weights as safetensors: what is written makes a run with the same answers, and other files are refused."""

import json

import pytest
import torch

import spiketriton
from spiketriton import export, pull
from spiketriton.errors import UserError
from spiketriton.trained.run import load_run
from spiketriton.trained.weights import card, export_safetensors, make_run
from tests.small_runs import small_trainer

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    small_trainer(path, "train.max_steps=2", "neuron.kind=plif").fit()
    return path


def test_a_file_makes_a_run_with_the_same_answers(trained, tmp_path, capsys):
    file = tmp_path / "net.safetensors"
    assert export.main([str(trained), "--to", "safetensors", "--out", str(file)]) == 0
    assert "step 2, read back: they differ by 0" in capsys.readouterr().out
    pull.main([str(file), "--run-dir", str(tmp_path / "new")])
    run, again = (spiketriton.load_run(path) for path in (trained, tmp_path / "new"))
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(run.predict(images), again.predict(images))
    assert (again.step, again.recipe, again.facts) == (run.step, run.recipe, run.facts)
    with pytest.raises(UserError, match="already holds a run"):
        make_run(file, tmp_path / "new")


def test_a_recipe_that_names_code_needs_consent(trained, tmp_path):
    run = load_run(trained)
    file = tmp_path / "net.safetensors"
    export_safetensors(run, file)
    with safetensors.safe_open(file, "pt") as opened:
        said = opened.metadata()
    said["recipe"] = said["recipe"].replace('name = "resnet8"', 'name = "stranger.nets:make"')
    safetensors.save_file(safetensors.load_file(file), file, said)
    with pytest.raises(UserError, match="names code that would run now"):
        make_run(file, tmp_path / "new")
    assert not (tmp_path / "new" / "recipe.toml").exists()


@pytest.mark.parametrize("wrong", ["text", "no recipe", "other facts", "other step"])
def test_other_files_are_refused_in_one_line(wrong, trained, tmp_path):
    file = tmp_path / "net.safetensors"
    export_safetensors(load_run(trained), file)
    with safetensors.safe_open(file, "pt") as opened:
        said = opened.metadata()
    if wrong == "text":
        file.write_text("text")
    else:
        changed = {"recipe": None} if wrong == "no recipe" else {"step": "many"}
        if wrong == "other facts":
            changed = {"data": json.dumps({"name": 3})}
        said = {key: value for key, value in (said | changed).items() if value is not None}
        safetensors.save_file(safetensors.load_file(file), file, said)
    with pytest.raises(UserError, match=r"net\.safetensors is not what spiketriton export"):
        make_run(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_card_says_what_was_measured_and_nothing_else(trained):
    run = load_run(trained)
    assert "not evaluated" in card(run)
    assert "Accuracy" not in card(run)
    assert 'kind = "plif"' in card(run)
