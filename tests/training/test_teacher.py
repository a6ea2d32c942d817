"""Distillation: the loss by hand, and a run that learns from its ANN twin."""

import pytest
import torch
from torch.nn import functional as F

from spiketriton.plugins.tasks import Reading
from spiketriton.system.errors import UserError
from spiketriton.training.teacher import Teacher
from tests.small_runs import QUICK, last_state, small_trainer


@pytest.mark.parametrize("read", ["mean", "last"])
def test_the_loss_is_that_of_the_labels_and_the_distance_to_the_teacher(read):
    currents, answers = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    ours, theirs = Reading(read), Reading("last")
    teacher = Teacher(lambda images: answers, 0.3, 2.0, ours, theirs)
    p = (answers[1] / 2).softmax(1)
    read_of = currents.mean(0) if read == "mean" else currents[2]
    far = (p * (p.log() - F.log_softmax(read_of / 2, 1))).sum(1).mean() * 4
    found = teacher.blended(torch.tensor(1.5), currents, torch.zeros(4, 1))
    torch.testing.assert_close(found, 0.7 * torch.tensor(1.5) + 0.3 * far)
    same = Teacher(lambda images: currents, 1.0, 3.0, ours, ours)
    far = same.blended(torch.tensor(9.0), currents, torch.zeros(4, 1))
    assert float(far) == pytest.approx(0, abs=1e-6)


def test_a_run_learns_from_its_twin(tmp_path):
    small_trainer(tmp_path / "ann", *QUICK, "neuron.kind=relu", "train.epochs=1").fit()
    keys = [f"loss.teacher={tmp_path / 'ann'}", "loss.teacher_weight=0.9", "train.epochs=1"]
    trainer = small_trainer(tmp_path / "whole", *QUICK, *keys)
    weights = {name: p.clone() for name, p in trainer.teacher.model.named_parameters()}
    trainer.fit()
    assert all(torch.equal(p, weights[n]) for n, p in trainer.teacher.model.named_parameters())
    small_trainer(tmp_path / "alone", *QUICK, "train.epochs=1").fit()
    alone = last_state(tmp_path / "alone")["model"]
    assert not torch.equal(alone["fc.weight"], last_state(tmp_path / "whole")["model"]["fc.weight"])


def test_a_teacher_of_other_data_is_refused(tmp_path):
    small_trainer(tmp_path / "ann", *QUICK, "neuron.kind=relu", "train.max_steps=1").fit()
    words = "trained on data of other image_size, 8; accepted: 12"
    with pytest.raises(UserError, match=words):
        small_trainer(
            tmp_path / "run", *QUICK, f"loss.teacher={tmp_path / 'ann'}", "data.image_size=12"
        )
