"""What is diagnosed: a recipe file or a run folder."""

import pytest

from spiketriton.config import to_toml
from spiketriton.diagnose.ablations import Experiment
from spiketriton.diagnose.diagnosed import find_subject
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.gradients.support import nothing
from tests.small_runs import QUICK, small_recipe, small_trainer


def test_a_recipe_has_fresh_weights(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(to_toml(small_recipe()))
    found = find_subject(str(path), ["time_steps=2"], nothing)
    assert (found.recipe.time_steps, found.title) == (2, f"recipe {path}")
    assert (found.state, found.learned, found.step) == (None, None, 0)
    with pytest.raises(UserError, match="an ANN has neither time nor a surrogate"):
        find_subject(str(path), ["neuron.kind=relu"], nothing)


def test_a_run_has_its_weights_and_what_its_last_test_showed(tmp_path):
    run = tmp_path / "run"
    small_trainer(run, "train.epochs=15", *QUICK).fit()
    found = find_subject(str(run), [], nothing)
    assert (found.title, found.step) == (f"run {run}, after step 105", 105)
    assert found.state is not None
    test = [row for row in RunFolder(run).metrics.read() if row["kind"] == "eval"][-1]
    assert found.learned is not None
    assert (found.learned.score.value, found.learned.images) == (test["test_accuracy"], 50)
    labels = load_run(run).data.test.dataset.split.labels[load_run(run).data.test.members]
    assert found.learned.score.chance == test["test_chance"]
    assert test["test_chance"] == pytest.approx(float(labels.bincount().max()) / 50)
    assert found.begun
    other = find_subject(str(run), ["neuron.surrogate.width=2"], nothing)
    assert (other.learned, other.begun) == (None, False)  # of another net
    assert {x.surrogate.width for _, x in Experiment(other).prober().layers} == {2.0}


def test_a_wrong_name_is_told_of_both(tmp_path):
    with pytest.raises(UserError, match=r"runs/q9: no such recipe file"):
        find_subject(str(tmp_path / "runs" / "q9"), [], nothing)
    with pytest.raises(UserError, match="time_stepz") as wrong:
        find_subject("quickstart", ["time_stepz=2"], nothing)
    assert "folder of a run" not in str(wrong.value)


def test_folders_without_a_run_or_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        find_subject(str(tmp_path), [], nothing)
    (tmp_path / "recipe.toml").write_text(to_toml(small_recipe()))
    with pytest.raises(UserError, match="no checkpoint; diagnose its recipe instead"):
        find_subject(str(tmp_path), [], nothing)
