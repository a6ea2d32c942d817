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


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    logged, flushed = {}, []

    def add(name, value, step):
        logged[name, step] = value

    def writer(folder):
        assert folder == "board"
        return SimpleNamespace(add_scalar=add, flush=lambda: flushed.append(len(logged)))

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer)
    )
    rows = trained(tmp_path, boards.tensorboard("board"))
    assert len(flushed) == len(rows) == 4
    assert flushed[-1] == len(logged)
    for row in rows:
        name = "loss" if row["kind"] == "train" else "test_accuracy"
        found = logged[f"{row['kind']}/{name}", row["step"]]
        assert found == pytest.approx(row[name], rel=1e-6)


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
