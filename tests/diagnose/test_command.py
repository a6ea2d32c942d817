"""diagnose: its page, its files and its exit codes."""

import json
from pathlib import Path

import pytest

from spiketriton.config import Recipe, to_toml
from spiketriton.diagnose.__main__ import main
from spiketriton.system.errors import UserError
from tests.small_runs import QUICK, small_recipe, small_trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

DEEP = (
    "model.name=mlp",
    "model.depth=48",
    "train.optimizer=sgd",
    "train.clip_grad_norm=0",
    "train.lr=0.1",
)
WIDE = "neuron.surrogate.width=1"


def recipe_file(folder: Path, recipe: Recipe) -> Path:
    path = folder / "small.toml"
    path.write_text(to_toml(recipe), "utf-8")
    return path


def test_a_recipe_ends_in_page_json_and_picture(tmp_path, capsys):
    path, out = recipe_file(tmp_path, small_recipe()), tmp_path / "out"
    assert main([str(path), "time_steps=2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "verdict: " in said
    assert str(out / "diagnosis.png") in said
    assert (out / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "diagnosis.json").read_text())
    assert found["time_steps"] == 2
    assert len(found["rows"]) == 2 * len(found["depth_profile"])


def test_a_diagnosis_of_a_run_lies_in_the_run_and_replaces_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_trainer(tmp_path / "run", *QUICK, "train.max_steps=2").fit()
    for change in ([], [], ["neuron.surrogate.width=2"]):  # the second is equal to the first
        assert main(["run", *change]) == 0
    assert "\nrun/diagnosis-2.png\nrun/diagnosis-2.json\n" in capsys.readouterr().out
    found = sorted(path.name for path in (tmp_path / "run").glob("diagnosis*.json"))
    assert found == ["diagnosis-2.json", "diagnosis.json"]
    assert not (tmp_path / "runs").exists()


def test_json_is_all_that_is_printed_and_complete(tmp_path, capsys):
    path = recipe_file(tmp_path, small_recipe(*DEEP, WIDE))
    assert (
        main([str(path), "--json", "train.batch_size=32", "--batches", "2", "--tries", "10"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 64
    assert found["verdict"]["word"] == "exploding"
    assert found["verdict"]["backward"]["ratio"] > 1
    assert found["verdict"]["findings"]
    assert found["trials"]["steps"] == 10
    assert found["trials"]["changes"][0]["change"] == "train.clip_grad_norm=1"
    assert {"name", "change", "depth_gain", "time_ratio"} <= set(found["switches"][0])
    assert {"layer", "time_step", "grad_input_rms", "outside_share"} <= set(found["rows"][0])
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_is_left_as_it_is(tmp_path):
    run = tmp_path / "run"
    small_trainer(run, *QUICK, "train.max_steps=1").fit()
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    main([str(run), "--json"])
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{recipe}", "neuron.kind=relu"], 'neuron.kind = "relu"'),
        (["{recipe}", "neuron.kind=lof"], "accepted"),
        (["{recipe}", "--batches", "0"], "--batches: 0: accepted"),
        (["{recipe}", "--tries", "-1"], "--tries: -1: accepted"),
        (["{recipe}", "--batches", "two"], "--batches: two: accepted"),
        (["{recipe}", "--out", "{recipe}/x"], "cannot be written"),
        (["{recipe}", "data.name=imagenette", "data.root={folder}", "data.download=false"], "imag"),
    ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path):
    recipe = recipe_file(tmp_path, small_recipe())
    names = {"recipe": str(recipe), "folder": str(tmp_path)}
    with pytest.raises(UserError, match=said) as raised:
        main([argument.format(**names) for argument in arguments])
    assert "\n" not in str(raised.value)
