"""Conversion: the neuron's closed form, nets against their ANN, the run folder, the mistakes."""

import pytest
import torch

from spiketriton.convert.conversion import (
    Options,
    calibration_images,
    channel_means,
    convert,
    least_error,
    neurons,
    percentile,
    sample,
    thresholds,
)
from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun, load_run
from tests.evaluate.support import NETS, ann


def test_percentiles_are_values_of_the_sample():
    values = torch.stack([torch.arange(1.0, 1001), -torch.arange(1.0, 1001)], 1)
    values = values[torch.randperm(1000)]
    assert percentile(values, 99.9).tolist() == [999, -2]
    assert percentile(values, 100).tolist() == [1000, -1]
    assert percentile(torch.tensor([[3.0], [1.0], [2.0]]), 1).tolist() == [1]


def test_thresholds_per_layer_are_equal_and_never_zero():
    torch.manual_seed(0)
    values = torch.randn(1000, 3).relu() * torch.tensor([1.0, 5.0, 0.0])
    for method in ("balanced", "calibrated"):
        per_layer = thresholds(values, Options(method=method, steps=4))
        assert per_layer.unique().numel() == 1
        own = thresholds(values, Options(method=method, steps=4, per_channel=True))
        assert own[1] > 3 * own[0] > 0
        assert own[2] == values.max()
        assert (thresholds(torch.zeros(9, 3), Options(method=method)) == 1).all()


@pytest.mark.parametrize("net", [net for net in NETS if net not in ("pool", "ms")])
def test_the_currents_come_to_those_of_the_ann(net, tmp_path):
    """Nothing is clipped (thresholds above all activations), so a long window leaves rounding."""
    run = ann(tmp_path / "ann", *NETS[net])
    model = convert(run, Options(percentile=100, images=120)).model
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
                model = convert(run, Options(method=method, steps=steps, images=120)).model
                errors[method] = float((model(images, steps).mean(0) - wanted).square().mean())
            assert errors["calibrated"] < 0.9 * errors["balanced"], steps


@pytest.mark.parametrize("steps", [1, 4])
def test_thresholds_are_tried_by_hundredths_of_the_largest_activation(steps):
    values = torch.rand(3000, 2, generator=torch.Generator().manual_seed(3)) ** 3
    found = least_error(values, steps)
    for column, threshold in zip(values.double().T, found.tolist(), strict=True):
        largest = float(column.max())
        errors = []
        for k in range(1, 101):
            step = largest * k / 100 / steps
            nearest = (column / step + 0.5).floor().clamp(0, steps) * step
            errors.append(float((nearest - column).square().mean()))
        assert threshold == pytest.approx(largest * (1 + errors.index(min(errors))) / 100)
    low = torch.full((100_000, 1), 0.01)
    low[7] = 1.0  # one in a hundred thousand: the smallest share is best
    assert least_error(low, 1).tolist() == pytest.approx([0.01])


def test_samples_are_whole_places_at_even_distances(monkeypatch):
    out = torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5)  # [T, B, C, W]
    places = out.permute(0, 1, 3, 2).reshape(-1, 4)
    assert torch.equal(sample(out), places)
    assert torch.equal(channel_means(out), places.mean(0))
    for most, stride in ((120, 1), (119, 2), (60, 2), (59, 3)):
        monkeypatch.setattr("spiketriton.convert.conversion.SAMPLES", most)
        assert torch.equal(sample(out), places[::stride])


def test_what_cannot_be_converted_is_named_and_what_the_ann_did_not_read_is_dropped(tmp_path):
    run = ann(tmp_path / "sums", "model.block=preact")
    with pytest.raises(UserError, match="preact blocks takes a sum and folds into no weights"):
        convert(run, Options())
    run = ann(tmp_path / "ann", "neuron.v_reset=-0.5", "neuron.tau=3.0", "model.norm=tebn")
    recipe = convert(run, Options(images=10)).recipe
    assert (run.recipe.neuron.v_reset, recipe.neuron.v_reset) == (-0.5, 0)
    assert (recipe.neuron.reset, recipe.model.norm) == ("soft", "none")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> TrainedRun:
    return ann(tmp_path_factory.mktemp("source") / "ann", *NETS["mlp"])


def test_after_calibration_the_mean_currents_are_the_anns(source):
    """On the images of the calibration, of two whole batches; the classifier is linear."""
    assert [len(batch) for batch in calibration_images(source, 17)] == [16, 16]
    model = convert(source, Options(method="calibrated", steps=3, images=32)).model
    images = torch.cat([source.to_device(x) for x in calibration_images(source, 32)])
    with torch.no_grad():
        wanted, got = source.model(images).mean((0, 1)), model(images, 3).mean((0, 1))
    assert torch.allclose(got, wanted, atol=1e-5)
    balanced = convert(source, Options(steps=3, images=32)).model
    assert all(not neuron.shift.any() for _, neuron in neurons(balanced))
    assert not torch.allclose(balanced(images, 3).mean((0, 1)), wanted, atol=1e-3)


def test_what_is_saved(source, tmp_path, monkeypatch):
    options = Options(steps=2, images=16)
    converted = convert(source, options)
    recipe, model = converted.recipe, converted.model
    folder = RunFolder.create(tmp_path / "net", "x")
    converted.save(folder)
    state = read_checkpoint(folder.checkpoints / "last.pt")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["last.pt"]
    assert (state["step"], state["name"]) == (source.step, recipe.name)
    assert state["conversion"] == {
        "source": str(source.folder.path), "checkpoint": "last", **vars(options),
    }  # fmt: skip
    loaded = load_run(folder.path)
    assert loaded.kind == "converted"
    assert torch.equal(loaded.model.fc.bias, model.fc.bias)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spiketriton.runs.checkpoint._write_part", full)
    with pytest.raises(UserError, match="could not be written: No space left"):
        converted.save(folder)
    with pytest.raises(UserError, match="is a converted run"):
        convert(loaded, options)
