"""Retraining with quantised activations: levels, gradients, what it gains."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from spiketriton.errors import UserError
from spiketriton.trained import quantised as quantised_module
from spiketriton.trained.conversion import Options, convert, levels
from spiketriton.trained.quantised import QuantisedReLU, retrain
from tests.small_runs import assert_equal
from tests.trained.support import NETS, ann


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_quantised_relu_has_levels_and_the_gradients_of_their_threshold(per_channel):
    threshold = torch.tensor([0.5, 1.0, 3.0] if per_channel else [2.0])
    activation = QuantisedReLU(threshold, steps=4)
    current = torch.linspace(-2, 7, 300).view(1, 100, 3, 1).requires_grad_()
    out = activation(current)
    high = threshold.view(-1, 1)
    assert torch.allclose(out, levels(current, high, 4), atol=1e-6)
    out.sum().backward()
    inside = (current > 0) & (current < high)
    assert torch.equal(current.grad, inside.float())
    # above the threshold 1, inside what the level is away from the current, in thresholds
    by_threshold = torch.where(inside, (levels(current, high, 4) - current) / high, current > high)
    expected = by_threshold.detach().sum((0, 1, 3))
    expected = expected if per_channel else expected.sum()
    assert torch.allclose(activation.threshold.grad, expected, atol=1e-4)
    with torch.no_grad():
        activation.threshold.fill_(-1)
    assert (activation.used() > 0).all()


def test_retraining_lowers_the_loss_at_few_steps(tmp_path):
    run = ann(tmp_path / "ann", "train.max_steps=21", "data.augment=none", "model.residual_gain=1")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    images, labels = next(run.data.train.from_step(0))
    losses = {}
    for method in ("calibrated", "qcfs"):
        options = Options(method=method, steps=2, images=120, epochs=6, per_channel=True)
        model = convert(run, options).model
        with torch.inference_mode():
            losses[method] = float(cross_entropy(model(images, 2).mean(0), labels))
    assert losses["qcfs"] < 0.9 * losses["calibrated"]
    again = convert(run, options).model
    assert_equal(dict(again.state_dict()), dict(model.state_dict()))
    assert_equal(dict(run.model.state_dict()), before)  # the ANN is left as it was


def test_retraining_clips_the_gradient(tmp_path):
    sgd = "train.optimizer=sgd", "train.weight_decay=0", "train.clip_grad_norm=1e-7"
    run = ann(tmp_path / "ann", "train.max_steps=2", *sgd)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    retrain(run, run.model, 2)
    for name, value in run.model.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6, msg=name)


def watched(run, monkeypatch, epochs: int, broken_from: int | None = None) -> list[float]:
    """Retrains; the learning rate of each loss, which is NaN from one call on."""
    made, rates = [], []
    build = quantised_module.build_optimizer
    monkeypatch.setattr(
        quantised_module, "build_optimizer", lambda *a: made.append(build(*a)) or made[-1]
    )

    def loss(currents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rates.append(made[-1].param_groups[0]["lr"])
        value = cross_entropy(currents.mean(0), labels)
        return value * math.nan if broken_from is not None and len(rates) > broken_from else value

    monkeypatch.setattr(quantised_module, "build_loss", lambda *_: loss)
    model = copy.deepcopy(run.model)
    try:
        retrain(run, model, epochs)
        assert not model.training
    except UserError as error:
        assert "diverged: the loss is nan" in str(error)  # noqa: PT017
        rates.append(math.nan)
    return rates


def test_the_learning_rate_falls_to_0_and_a_loss_that_is_nan_is_seen(tmp_path, monkeypatch):
    """7 steps an epoch; the loss is looked at every 50 steps and at the last."""
    run = ann(tmp_path / "ann", *NETS["mlp"])
    cosine = [0.01 / 4 * (1 + math.cos(math.pi * n / 14)) / 2 for n in range(14)]
    assert watched(run, monkeypatch, 2) == pytest.approx(cosine, rel=1e-5)
    assert len(watched(run, monkeypatch, 1, broken_from=2)) == 7 + 1
    assert len(watched(run, monkeypatch, 1, broken_from=0)) == 1 + 1
    assert len(watched(run, monkeypatch, 8, broken_from=40)) == 51 + 1
    run = ann(tmp_path / "parts", *NETS["mlp"], "train.accumulate=2")
    rates = watched(run, monkeypatch, 1)
    assert len(rates) == 2 * run.data.train.steps_per_epoch
    assert rates[::2] == rates[1::2]
