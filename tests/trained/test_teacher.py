"""Distillation: the loss by hand, and a run that learns from its ANN twin."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from spiketriton.config import to_toml
from spiketriton.errors import EXIT_DONE, EXIT_SIGINT, UserError
from spiketriton.runs.folder import RunFolder
from spiketriton.train import main
from spiketriton.trained.run import load_run
from spiketriton.trained.teacher import Teacher
from spiketriton.trainer import Trainer
from tests.small_runs import assert_equal, last_state, small_recipe, small_trainer


def test_the_loss_is_that_of_the_labels_and_the_distance_to_the_teacher():
    currents, answers = torch.randn(3, 4, 5), torch.randn(1, 4, 5)
    teacher = Teacher(lambda images: answers, weight=0.3, temperature=2.0)
    p = (answers[0] / 2).softmax(1)
    far = (p * (p.log() - F.log_softmax(currents.mean(0) / 2, 1))).sum(1).mean() * 4
    found = teacher.blended(torch.tensor(1.5), currents, torch.zeros(4, 1))
    torch.testing.assert_close(found, 0.7 * torch.tensor(1.5) + 0.3 * far)
    same = Teacher(lambda images: currents, weight=1.0, temperature=3.0)
    far = same.blended(torch.tensor(9.0), currents, torch.zeros(4, 1))
    assert float(far) == pytest.approx(0, abs=1e-6)


def test_a_run_learns_from_its_twin(tmp_path):
    small_trainer(tmp_path / "ann", "neuron.kind=relu", "train.epochs=1").fit()
    keys = [f"loss.teacher={tmp_path / 'ann'}", "loss.teacher_weight=0.9", "train.epochs=1"]
    trainer = small_trainer(tmp_path / "whole", *keys)
    weights = {name: p.clone() for name, p in trainer.teacher.model.named_parameters()}
    trainer.fit()
    assert all(torch.equal(p, weights[n]) for n, p in trainer.teacher.model.named_parameters())
    small_trainer(tmp_path / "alone", "train.epochs=1").fit()
    alone = last_state(tmp_path / "alone")["model"]
    assert not torch.equal(alone["fc.weight"], last_state(tmp_path / "whole")["model"]["fc.weight"])


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        ("seed=1", "data.image_size=12", "trained on data of other image_size, 8; accepted: 12"),
        ("model.width=3", "loss.feature_weight=1.0", "loss.feature_weight compares what leaves"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(theirs, ours, words, tmp_path):
    small_trainer(tmp_path / "ann", "neuron.kind=relu", "train.max_steps=1", theirs).fit()
    with pytest.raises(UserError, match=words):
        small_trainer(tmp_path / "run", f"loss.teacher={tmp_path / 'ann'}", ours)


def test_features_are_compared_as_vectors_of_length_1(tmp_path):
    ann = small_trainer(tmp_path / "ann", "neuron.kind=relu", "train.max_steps=1")
    ann.fit()
    keys = [f"loss.teacher={tmp_path / 'ann'}", "loss.feature_weight=2.0", "train.epochs=1"]
    trainer = small_trainer(tmp_path / "run", *keys)
    teacher, net = trainer.teacher, trainer.model
    images = torch.randn(4, 1, 8, 8)
    outs = [{}, {}]
    for model, found in zip((net, teacher.model), outs, strict=True):
        for name, block in model.blocks():
            block.register_forward_hook(lambda m, x, out, n=name, f=found: f.update({n: out}))
    currents = net(images)
    found = teacher.blended(torch.tensor(1.5), currents, images)
    assert teacher.heard == ({}, {})  # no graph is held
    assert len(outs[0]) == len(net.blocks()) > 1
    alone = Teacher(teacher.model, teacher.weight, teacher.temperature)
    expected = alone.blended(torch.tensor(1.5), currents, images)
    for name, out in outs[0].items():
        a, b = out.mean(0).flatten(1), outs[1][name][0].flatten(1)
        cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
        expected = expected + 2.0 * (2 - 2 * cosine).mean() / len(outs[0])
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found, net.conv1.weight)[0].abs().sum() > 0
    trainer.fit()


def test_a_twin_is_trained_first_and_a_run_stopped_in_either_part_ends_with_the_same_bits(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    keys = ["train.epochs=1", "loss.feature_weight=1.0", "checkpoint.every=3"]
    small_trainer(Path("ann"), "neuron.kind=relu", "train.epochs=1", "checkpoint.every=3").fit()
    small_trainer(Path("whole"), *keys, "loss.teacher=ann").fit()
    Path("small.toml").write_text(to_toml(small_recipe(*keys, "loss.teacher=twin")))
    stops = [("relu", 2), ("lif", 4)]
    step = Trainer.train_step

    def interrupted(trainer):
        step(trainer)
        if stops and (trainer.recipe.neuron.kind, trainer.step) == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert main(["small.toml", "--run-dir", "run"]) == EXIT_SIGINT
    said = " ".join(capsys.readouterr().out.split())
    assert "first its teacher, the ANN twin: trained in run/twin" in said
    assert "its teacher was stopped; saved: step 2 of it" in said
    assert "train --resume run" in said
    assert not RunFolder(Path("run")).metrics.path.exists()
    assert main(["--resume", "run"]) == EXIT_SIGINT
    assert not stops
    assert main(["--resume", "run"]) == EXIT_DONE
    assert "ANN twin" not in capsys.readouterr().out.partition("step 4 is saved")[2]
    assert_equal(last_state(Path("run/twin"))["model"], last_state(Path("ann"))["model"])
    assert_equal(last_state(Path("run"))["model"], last_state(Path("whole"))["model"])
    assert load_run("run/twin").recipe.loss == small_recipe().loss
