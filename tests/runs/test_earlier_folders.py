"""Run folders of before: what docs/trust.md promises of them.

`folder_of_0_1` is a run of commit 3317ca80, the last one before this version's work: 24 steps of a small PLIF network
on the digits that come with the package. Whoever has to change it breaks the promise.
"""

import json
import shutil
from pathlib import Path

import pytest

from spiketriton.config.recipe import KEYS
from spiketriton.config.removed import REMOVED, taken_out
from spiketriton.evaluate.evaluation import evaluate
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.train import main as train
from spiketriton.training.trained import load_run
from tests.small_data import mentions

FOLDER = Path(__file__).parent / "folder_of_0_1"


@pytest.fixture
def run(tmp_path) -> Path:
    return shutil.copytree(FOLDER, tmp_path / "run")


def test_a_folder_of_0_1_is_evaluated_and_goes_on(run):
    *_, tested = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    found = evaluate(load_run(run))
    right = round(tested["test_accuracy"] * 360)
    # another processor may round otherwise, where two classes are level
    assert abs(round(found.accuracy[-1] * 360) - right) <= 2
    train(["--resume", str(run), "--extend", "train.max_steps=28", "--quiet"])
    assert RunFolder.find(run).reached() == 28


def test_removed_keys_at_their_defaults_are_left_out_and_said(run, capsys):
    recipe = run / "recipe.toml"
    begun = RunFolder.find(run).load_recipe()
    recipe.write_text(
        recipe.read_text()
        .replace("[data]\n", '[data]\nsampler = "shuffle"\n')
        .replace("[train]\n", "[train]\npatience = 0\nnesterov = false\n")
    )
    boards = "monitor.tensorboard, monitor.wandb"
    (line,) = capsys.readouterr().err.splitlines()
    mentions(line, run, "left out", f": {boards}")
    for _ in range(2):
        assert RunFolder.find(run).load_recipe() == begun
    (line,) = capsys.readouterr().err.splitlines()  # once, however often it is read
    mentions(line, run, "left out", f"data.sampler, {boards}, train.nesterov, train.patience")


@pytest.mark.parametrize(
    ("table", "text", "words"),
    [
        ("data", 'sampler = "balanced"', ('data.sampler = "balanced"', 'only "shuffle"')),
        ("train", "patience = false", ("train.patience = false", "only 0")),
        ("train", "eval_evry = 1", ("unknown key train.eval_evry",)),
    ],
)
def test_other_keys_of_before_are_refused_and_the_way_on_is_named(run, table, text, words):
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(f"[{table}]\n", f"[{table}]\n{text}\n"))
    with pytest.raises(UserError) as error:
        load_run(run)
    mentions(str(error.value), recipe, *words, f"train.init_from={run}", "commit 3317ca80cc")


def test_init_from_takes_the_weights_of_a_folder_that_cannot_go_on(run, tmp_path, capsys):
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[data]\n", '[data]\nsampler = "balanced"\n'))
    net = ["model.name=mlp", "model.depth=2", "model.width=16", "neuron.kind=plif"]
    few = ["train.max_steps=1", "train.batch_size=16", "--run-dir", str(tmp_path / "new")]
    train(["quickstart", *net, f"train.init_from={run}", *few])
    mentions(capsys.readouterr().out, "tensors taken from", run)


def test_a_recipe_of_ones_own_has_no_removed_key(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('[data]\nname = "digits"\nsampler = "shuffle"\n[model]\nname = "resnet8"\n')
    with pytest.raises(UserError) as error:
        train([str(path), "--run-dir", str(tmp_path / "run")])
    mentions(str(error.value), "data.sampler", "this key is gone")


def test_no_key_is_both_here_and_gone():
    assert not {*REMOVED} & {*KEYS}
    document: dict = {"train": {"patience": 0.0, "nesterov": False}, "data": 3}
    document["checkpoint"] = {"keep": 7}  # of any value
    assert [*taken_out(document)] == ["train.nesterov"]
    assert document.pop("checkpoint") == {}
    assert document == {"train": {"patience": 0.0}, "data": 3}
