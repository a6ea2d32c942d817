"""The boards have the numbers of metrics.jsonl."""

import sys
from types import SimpleNamespace

import pytest

import spiketriton
from examples import boards
from spiketriton.runs.rows import Rows

KEYS = {
    "data.train_images": 96,
    "data.test_images": 40,
    "batch_size": 32,
    "threads": 1,
    "epochs": 1,
    "log_every": 1,
}


def trained(tmp_path, log):
    run = spiketriton.train("quickstart", run_dir=tmp_path / "run", quiet=True, on_row=log, **KEYS)
    return Rows(run.path / "metrics.jsonl").read()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = trained(tmp_path, boards.tensorboard(str(tmp_path / "board")))
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
    assert logged == pytest.approx(losses, rel=1e-6)
    assert len(logged) == 3
    (test,) = events.Scalars("eval/test_accuracy")
    assert test.value == pytest.approx(rows[-1]["test_accuracy"], rel=1e-6)


def test_weights_and_biases_gets_the_same_numbers(tmp_path, monkeypatch):
    given, logged = [], []
    board = SimpleNamespace(log=logged.append)
    package = SimpleNamespace(init=lambda **options: given.append(options) or board)
    monkeypatch.setitem(sys.modules, "wandb", package)
    rows = trained(tmp_path, boards.weights_and_biases(project="mine", mode="offline"))
    assert given == [{"project": "mine", "mode": "offline"}]
    assert [row["step"] for row in logged] == [row["step"] for row in rows]
    losses = [row["train/loss"] for row in logged if "train/loss" in row]
    assert losses == pytest.approx([r["loss"] for r in rows if r["kind"] == "train"], rel=1e-6)
    found = logged[-1]["eval/test_accuracy"]
    assert found == pytest.approx(rows[-1]["test_accuracy"], rel=1e-6)
