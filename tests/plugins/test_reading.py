"""What is read of the currents, against its definition, image by image and step by step."""

import math
from types import SimpleNamespace

import pytest
import torch

import spiketriton
from spiketriton import plugins
from spiketriton.config import LossConfig
from spiketriton.data.sources import ArraySplit, Source
from spiketriton.plugins.tasks import Reading, Task, build_loss, task_of
from spiketriton.system.errors import UserError
from tests.small_runs import small_trainer

T, B, K = 5, 4, 3
LENGTHS = torch.tensor([5, 1, 3, 2])


def drawn() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(T, B, K, generator=generator, dtype=torch.float64)


def defined(currents, read, lengths=None):
    """By a loop over the sequences."""
    found = []
    for b in range(currents.shape[1]):
        valid = currents[: len(currents) if lengths is None else int(lengths[b]), b]
        found.append(valid.mean(0) if read == "mean" else valid[-1])
    return torch.stack(found)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("read", ["mean", "last"])
def test_answers_are_those_of_a_loop(read, lengths):
    currents = drawn()
    torch.testing.assert_close(Reading(read)(currents, lengths), defined(currents, read, lengths))
    dense = drawn().view(T, B, K, 1, 1).expand(T, B, K, 2, 3)
    torch.testing.assert_close(
        Reading(read)(dense, lengths)[..., 1, 2], defined(currents, read, lengths)
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("read", ["mean", "last"])
def test_answers_so_far_are_those_of_each_shorter_window(read, lengths):
    currents = drawn()
    found = [*Reading(read).so_far(currents, lengths)]
    assert len(found) == T
    for t, answers in enumerate(found, 1):
        known = None if lengths is None else lengths.clamp(max=t)
        expected = defined(currents[:t], read, known)
        torch.testing.assert_close(answers, expected.float())


@pytest.mark.parametrize("read", ["mean", "last"])
@pytest.mark.parametrize("kind", ["cross_entropy", "tet"])
def test_no_loss_reads_what_is_not_valid(kind, read):
    currents, labels = drawn(), torch.tensor([0, 1, 2, 0])
    padded = torch.arange(T)[:, None] >= LENGTHS
    currents[padded] = math.nan
    currents.requires_grad_()
    task = task_of(LossConfig(kind=kind, read=read))
    loss = task.loss(currents, labels, LENGTHS)
    (gradient,) = torch.autograd.grad(loss, currents)
    assert not gradient[padded].any()
    alone = [
        task.loss(currents[: LENGTHS[b], b : b + 1], labels[b : b + 1]).detach() for b in range(B)
    ]
    torch.testing.assert_close(loss.detach(), torch.stack(alone).mean())
    answers = defined(currents.detach(), read, LENGTHS)
    assert task.measure(currents, labels, LENGTHS) == (answers.argmax(1) == labels).sum()
    torch.testing.assert_close(task.predict(currents, LENGTHS).detach(), answers.softmax(1))


def test_the_last_step_alone_is_learnt_where_it_is_read():
    currents = drawn().requires_grad_()
    loss = build_loss(LossConfig(read="last"))(currents, torch.tensor([0, 1, 2, 0]))
    (gradient,) = torch.autograd.grad(loss, currents)
    assert not gradient[:-1].any()
    assert gradient[-1].all()


@pytest.mark.usefixtures("blank_pictures")
def test_score_evaluation_prediction_and_report_read_the_last_step(tmp_path):
    trainer = small_trainer(tmp_path / "run", "loss.read=last", "time_steps=3", "train.max_steps=2")
    trainer.fit()
    test = [row for row in trainer.folder.metrics.read() if row["kind"] == "eval"][-1]
    run = spiketriton.load_run(tmp_path / "run")
    found = run.evaluate()
    right = torch.zeros(3)
    images = 0
    for x, y in run._run.data.test:
        with torch.inference_mode():
            currents = run.model(run._run.to_device(x))
        right += (currents.argmax(2) == y).sum(1)
        images += len(y)
    assert found.values == pytest.approx((right / images).tolist())
    assert (found.read, found.values[-1]) == (
        "last time step",
        pytest.approx(test["test_accuracy"]),
    )
    assert sum(found.confusion[k][k] for k in range(len(found.classes))) == right[-1]
    assert "read: last time step" in run.report().read_text("utf-8")


@pytest.mark.parametrize(("read", "answer"), [("mean", [0.5, 0.5]), ("last", [0.9, 0.1])])
def test_predictions_are_probabilities_of_what_is_read(read, answer):
    currents = torch.tensor([[[0.1, 0.9]], [[0.9, 0.1]]]).log()
    found = task_of(LossConfig(read=read)).predict(currents)
    torch.testing.assert_close(found, torch.tensor([answer]))


SIDE = 8
IMAGES = torch.linspace(0, 1, 48 * SIDE**2).view(48, 1, SIDE, SIDE)
kept = SimpleNamespace(whole=True)


@plugins.data("waves")
def waves(config):
    split = ArraySplit(IMAGES, torch.arange(48.0)[:, None].expand(48, 3) / 48)
    known = {"channels": 1, "statistics": ((0.5,), (0.3,)), "move": "crop"}
    return Source(train=split, test=split, classes=("a", "b", "c"), image_size=SIDE, **known)


@plugins.task("each_step")
class EachStep(Task):
    """A target for each of three time steps."""

    score, higher_is_better = "error", False

    @property
    def whole(self):
        return kept.whole

    def loss(self, currents, targets):
        return (currents.mean(2).T - targets).square().mean()

    def measure(self, currents, targets):
        return (currents.mean(2).T - targets).square().mean(1).sum()


KEYS = (
    "data.name=waves", "data.train_images=0", "data.test_images=0", "data.augment=none", "loss.kind=each_step",
    f"plugins.modules=['{__name__}']", f"data.image_size={SIDE}", "time_steps=3", "train.max_steps=2",
)  # fmt: skip


def test_a_target_for_each_step_is_scored_on_each_step(tmp_path):
    trainer = small_trainer(tmp_path / "run", *KEYS)
    trainer.fit()
    test = [row for row in trainer.folder.metrics.read() if row["kind"] == "eval"][-1]
    assert test["test_error"] == pytest.approx(test["test_loss"])
    found = spiketriton.load_run(tmp_path / "run", plugins=True).evaluate()
    assert all(map(math.isnan, found.values[:2]))
    assert found.values[2] == pytest.approx(test["test_error"], rel=1e-5)


def test_that_only_whole_windows_have_a_score_must_be_said(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "whole", False)
    with pytest.raises(
        UserError, match="measure of the first 2 steps, which whole = True leaves out, failed"
    ):
        small_trainer(tmp_path / "run", *KEYS)
