"""Conversion: the neuron's closed form, nets against their ANN, the run folder, the mistakes."""

import pytest
import torch

from spiketriton.trained.conversion import (
    METHODS,
    Options,
    convert,
    least_error,
    levels,
    percentile,
    thresholds,
)
from tests.trained.support import NETS, ann


def test_percentiles_are_values_of_the_sample():
    values = torch.stack([torch.arange(1.0, 1001), -torch.arange(1.0, 1001)], 1)[
        torch.randperm(1000)
    ]
    assert percentile(values, 99.9).tolist() == [999, -2]
    assert percentile(values, 100).tolist() == [1000, -1]


def test_thresholds_per_layer_are_equal_and_never_zero():
    torch.manual_seed(0)
    values = torch.randn(1000, 3).relu() * torch.tensor([1.0, 5.0, 0.0])
    for method in METHODS:
        per_layer = thresholds(values, Options(method=method, steps=4))
        assert per_layer.unique().numel() == 1
        own = thresholds(values, Options(method=method, steps=4, per_channel=True))
        assert own[1] > 3 * own[0] > 0
        assert own[2] > 0
        assert (thresholds(torch.zeros(9, 3), Options(method=method)) == 1).all()


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_the_least_error_is_the_least_of_a_finer_search(steps):
    torch.manual_seed(1)
    values = torch.randn(4000, 1).relu()

    def error(threshold: float) -> float:
        return float((levels(values, torch.tensor([threshold]), steps) - values).square().mean())

    found = error(float(least_error(values, steps)))
    best = min(error(t) for t in torch.linspace(0.01, 5, 1500).tolist())
    assert found <= best * 1.02
    assert found < error(float(values.max()))


@pytest.mark.parametrize("net", NETS)
def test_the_currents_come_to_those_of_the_ann(net, tmp_path):
    """Nothing is clipped (thresholds above all activations), so a long window leaves rounding."""
    run = ann(tmp_path / "ann", *NETS[net])
    _, model = convert(run, Options(percentile=100, images=120))
    for _, neuron in model.spiking_layers():
        neuron.threshold *= 1.3
    images = run.to_device(next(iter(run.data.test))[0])
    with torch.inference_mode():
        wanted = run.model(images)[0]
        errors = [
            float((model(images, steps).mean(0) - wanted).square().mean().sqrt() / wanted.std())
            for steps in (32, 1024)
        ]
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 4


def test_calibration_brings_few_steps_closer(tmp_path):
    run = ann(tmp_path / "ann", "train.max_steps=21")
    images = run.to_device(next(iter(run.data.test))[0])
    with torch.inference_mode():
        wanted = run.model(images)[0]
        for steps in (2, 4):
            errors = {}
            for method in ("balanced", "calibrated"):
                _, model = convert(run, Options(method=method, steps=steps, images=120))
                errors[method] = float((model(images, steps).mean(0) - wanted).square().mean())
            assert errors["calibrated"] < 0.9 * errors["balanced"], steps


def test_the_recipe_drops_what_the_ann_did_not_read(tmp_path):
    run = ann(tmp_path / "ann", "neuron.v_reset=-0.5", "neuron.tau=3.0", "model.norm=tebn")
    recipe, _ = convert(run, Options(images=10))
    assert (run.recipe.neuron.v_reset, recipe.neuron.v_reset) == (-0.5, 0)
    assert (recipe.neuron.reset, recipe.model.norm) == ("soft", "none")
