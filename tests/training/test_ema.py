"""The moving average of the weights: its definition, its state, and what it leaves alone."""

import pytest
import torch

from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.training.ema import MovingAverage
from spiketriton.training.trained import load_run
from tests.small_runs import QUICK, assert_equal, small_trainer


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_by_its_definition(decay):
    net = torch.nn.BatchNorm1d(3)
    average = MovingAverage(net, decay)
    expected = {name: v.clone().double() for name, v in net.state_dict().items()}
    for n in range(1, 30):
        with torch.no_grad():
            net.weight.copy_(torch.randn(3))
            net.running_mean.copy_(torch.randn(3))
        average.update()
        if n == 9:  # resumed
            saved, average = average.state_dict(), MovingAverage(net, decay)
            average.load_state_dict(saved)
        d = min(decay, (1 + n) / (10 + n))
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[name] = d * expected[name] + (1 - d) * net.state_dict()[name]
    for name, value in average.average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert "num_batches_tracked" not in average.average


def test_it_is_applied_within_a_block_alone():
    net = torch.nn.Linear(2, 2)
    average = MovingAverage(net, 0.9)
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    with average.applied():
        assert torch.equal(net.weight, before)
    assert torch.equal(net.weight, before + 1)
    assert torch.equal(average.average["weight"], before)


def test_the_average_is_tested_saved_loaded_and_changes_no_training(tmp_path):
    small_trainer(tmp_path / "plain", *QUICK, "train.epochs=1").fit()
    trainer = small_trainer(tmp_path / "run", *QUICK, "train.epochs=1", "train.ema=0.9")
    trainer.fit()
    plain, averaged = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("plain", "run")
    )
    assert_equal(plain["model"], averaged["model"])
    rows = [row for row in RunFolder(tmp_path / "run").metrics.read() if row["kind"] == "eval"]
    assert all(0 <= row["ema_accuracy"] <= 1 and row["ema_loss"] > 0 for row in rows)
    assert rows[-1]["ema_loss"] != rows[-1]["test_loss"]
    run = load_run(tmp_path / "run", checkpoint="ema")
    assert run.checkpoint == "ema"
    assert torch.equal(run.model.fc.weight, trainer.update.ema.average["fc.weight"])
    assert not torch.equal(run.model.fc.weight, trainer.model.fc.weight)
    with pytest.raises(Exception, match=r"has no average of its weights: its train\.ema is 0"):
        load_run(tmp_path / "plain", checkpoint="ema")
