"""`python -m spiketriton.evaluate`: what it counts on trained nets, and what it says."""

import json
import math
from dataclasses import replace

import pytest
import torch

from spiketriton.errors import UserError
from spiketriton.evaluate import main
from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.show.evaluation_tables import overtakes
from spiketriton.trained.evaluation import Evaluation, evaluate, read_evaluation, wilson
from spiketriton.trained.run import load_run
from tests.small_runs import small_trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A spiking run of a few steps, and its twin."""
    root = tmp_path_factory.mktemp("runs")
    for name, kind in (("lif", "lif"), ("ann", "relu")):
        small_trainer(root / name, f"neuron.kind={kind}", "train.epochs=1").fit()
    return root


@pytest.fixture(scope="module")
def evaluation(runs) -> Evaluation:
    return evaluate(load_run(runs / "lif"), steps=5)


def test_accuracy_at_t_is_the_trainers(runs, evaluation):
    for name, one in (("lif", evaluation), ("ann", evaluate(load_run(runs / "ann")))):
        state = read_checkpoint(runs / name / "checkpoints" / "last.pt")
        assert one.accuracy[one.time_steps - 1] == state["test_accuracy"]
        assert one.images == 50


def test_every_step_is_the_answer_of_a_window_of_its_length(runs, evaluation):
    run = load_run(runs / "lif")
    assert evaluation.steps == 5
    assert evaluation.time_steps == 3
    with torch.inference_mode():
        for t, accuracy in enumerate(evaluation.accuracy, 1):
            right = sum(
                int((run.model(run.to_device(x), t).mean(0).argmax(1) == y).sum())
                for x, y in run.data.test
            )
            assert accuracy == right / 50, t


def test_chunks_change_nothing(runs, evaluation, monkeypatch):
    monkeypatch.setattr("spiketriton.trained.evaluation.CHUNK", 2)
    again = evaluate(load_run(runs / "lif"), steps=5, batch_size=7)
    measured = {"images_per_s": 0.0}
    assert {**vars(again), **measured} == {**vars(evaluation), **measured}


def test_counts_are_those_of_the_spikes(runs, evaluation):
    """One spiking layer, looked at directly."""
    run = load_run(runs / "lif")
    for norm in (m for m in run.model.modules() if hasattr(m, "fused")):
        norm.fused = False
    spikes = []
    run.model.layer2[0].neuron1.register_forward_hook(lambda _, x, out: spikes.append(out))
    with torch.inference_mode():
        for images, _ in run.data.test:
            run.model(run.to_device(images), 5)
    spikes = torch.cat(spikes, 1)
    (layer,) = (one for one in evaluation.layers if one.name == "layer2.0.neuron1")
    assert layer.neurons == spikes[0, 0].numel()
    assert layer.rate == pytest.approx(spikes.mean((1, 2, 3, 4)).tolist())
    within = spikes[:3].sum((0, 1))
    assert layer.dead == int((within == 0).sum())
    assert layer.saturated == int((within == 3 * 50).sum())


def test_dead_and_saturated_neurons_are_found(runs):
    run = load_run(runs / "lif")
    with torch.no_grad():
        run.model.layer1[0].bn1.weight.zero_()
        run.model.layer1[0].bn1.bias.copy_(torch.tensor([5.0, -5.0, 5.0, 0.5]))
    layer = next(x for x in evaluate(run).layers if x.name == "layer1.0.neuron1")
    assert layer.saturated == layer.neurons // 2
    assert layer.dead == layer.neurons // 2  # 0.5, then 0.75, 0.875: below 1 within 3 steps


def test_the_confusion_matrix_adds_up(evaluation):
    counts = torch.tensor(evaluation.confusion)
    assert counts.sum() == 50
    assert counts.diagonal().sum() / 50 == pytest.approx(evaluation.accuracy[2])


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),  # no success: the interval is z^2 / (n + z^2) wide
        (5, 10, 0.236593, 0.763407),
        (10, 10, 0.722467, 1.0),
        (9500, 10000, 0.945553, 0.954102),
    ],
)
def test_wilson(right, images, low, high):
    assert wilson(right, images) == pytest.approx((low, high), abs=2e-6)


def test_an_evaluation_survives_the_disk(evaluation, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(evaluation.to_json())
    assert read_evaluation(path) == evaluation
    path.write_text(evaluation.to_json()[:100])
    with pytest.raises(UserError, match="evaluation"):
        read_evaluation(path)


def test_the_command_compares_runs(runs, tmp_path, capsys):
    out = tmp_path / "out"
    main([str(runs / "lif"), "--steps", "1,6", "--against", str(runs / "ann"), "--out", str(out)])
    text = capsys.readouterr().out
    assert "lif (lif)" in text
    assert "ann (ANN)" in text
    for name in ("accuracy", "energy", "rates", "confusion"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    both = json.loads((out / "comparison.json").read_text())
    assert [one["kind"] for one in both] == ["spiking", "ann"]
    assert [len(one["accuracy"]) for one in both] == [6, 1]


def test_one_step_is_no_steps(evaluation):
    assert overtakes(evaluation, replace(evaluation, accuracy=[0.0] * 5)).endswith("at 1 step.")
    late = replace(evaluation, accuracy=[0.0, 0.0, 1.0, 1.0, 1.0])
    assert overtakes(late, late).endswith("at 3 steps.")


def test_json_and_nothing_else(runs, tmp_path, capsys):
    main([str(runs / "ann"), "--json", "--images", "20", "--out", str(tmp_path)])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["images"] == 20
    assert one["energy_uj"] == [pytest.approx(one["ann_macs"] * 4.6e-6)]
    assert math.isfinite(one["images_per_s"])


def mistake(arguments: list[str]) -> str:
    with pytest.raises(UserError) as error:
        main(arguments)
    return str(error.value)


def test_mistakes_are_named(runs, tmp_path):
    lif = str(runs / "lif")
    assert "--steps '0'" in mistake([lif, "--steps", "1,0"])
    assert "--batch-size 'x'" in mistake([lif, "--batch-size", "x"])
    assert "does not exist" in mistake([str(tmp_path / "nothing")])
    assert "no recipe.toml" in mistake([str(tmp_path)])
    assert "change no weight" in mistake([lif, "time_steps=9"])
    small_trainer(tmp_path / "other", "data.name=synthetic", "train.max_steps=1").fit()
    assert "same data" in mistake([lif, "--against", str(tmp_path / "other")])
    small_trainer(tmp_path / "fewer", "data.test_images=40", "train.max_steps=1").fit()
    assert "--images N gives both" in mistake([lif, "--against", str(tmp_path / "fewer")])


def test_runs_without_weights_or_with_others_are_named(tmp_path):
    path = tmp_path / "run"
    small_trainer(path, "train.max_steps=1").fit()
    recipe = path / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("width = 4", "width = 6"))
    assert "conv1.weight has shape [4, 1, 3, 3] in it, and [6, 1, 3, 3]" in mistake([str(path)])
    recipe.write_bytes(b"seed = \xff")
    assert "not UTF-8" in mistake([str(path)])
    recipe.write_text(text)
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert "no checkpoint" in mistake([str(path)])
    assert "is damaged" in mistake([str(path), "--checkpoint", "best"])
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.unlink()
    assert "no checkpoint yet" in mistake([str(path)])
    assert "No such file" in mistake([str(path), "--checkpoint", "best"])


def test_a_damaged_last_checkpoint_is_not_called_last(tmp_path):
    small_trainer(tmp_path / "run", "train.epochs=1", "checkpoint.keep=1").fit()
    assert load_run(tmp_path / "run").checkpoint == "last"
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    assert load_run(tmp_path / "run").checkpoint == "best"


def test_tebn_has_no_steps_beyond_its_gains(tmp_path):
    small_trainer(tmp_path / "run", "model.norm=tebn", "train.max_steps=1").fit()
    assert "tebn has gains for 3" in mistake([str(tmp_path / "run"), "--steps", "4"])
    assert evaluate(load_run(tmp_path / "run")).steps == 3


def test_a_read_only_run_is_evaluated_elsewhere(runs, tmp_path, monkeypatch):
    before = sorted(path for path in (runs / "lif").rglob("*"))
    main([str(runs / "lif"), "--json", "--out", str(tmp_path)])
    assert sorted(path for path in (runs / "lif").rglob("*")) == before
    (tmp_path / "file").write_text("")
    assert "cannot be written" in mistake([str(runs / "lif"), "--out", str(tmp_path / "file")])
