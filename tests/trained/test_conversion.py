"""Conversion: the neuron's closed form, nets against their ANN, the run folder, the mistakes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from spiketriton.convert import main
from spiketriton.errors import UserError
from spiketriton.evaluate import main as evaluate_main
from spiketriton.trained.conversion import (
    METHODS,
    Options,
    convert,
    least_error,
    levels,
    percentile,
    recording,
    thresholds,
)
from spiketriton.trained.converted import ConvertedIF
from spiketriton.trained.evaluation import evaluate
from spiketriton.trained.quantised import QuantisedReLU, retrain
from spiketriton.trained.run import load_run
from tests.small_runs import assert_equal, small_trainer


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_neuron_rounds_its_current_to_levels(steps):
    """The closed form of converted.py, over both ends of the range."""
    neuron = ConvertedIF(3)
    neuron.threshold.copy_(torch.tensor([0.5, 1.0, 3.0]))
    current = torch.linspace(-2, 7, 1000).view(1, 1000, 1).expand(steps, 1000, 3).contiguous()
    expected = levels(current[0], neuron.threshold, steps)
    assert torch.allclose(neuron(current).mean(0), expected, atol=1e-5)
    assert [len(column.unique()) for column in expected.T] == [steps + 1] * 3


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


NETS = {
    "plain": ["model.block=plain"],
    "sew": ["model.block=sew"],
    "ms": ["model.block=ms"],
    "pool": ["model.name=resnet18", "model.stem=imagenet", "data.image_size=16"],
    "pool ms": ["model.name=resnet18", "model.stem=imagenet", "model.block=ms"],
    "mlp": ["model.name=mlp", "model.depth=3", "model.width=16"],
    "no norm": ["model.name=plain", "model.depth=3", "model.norm=none"],
}


def ann(path, *overrides: str):
    small_trainer(path, "neuron.kind=relu", "train.max_steps=5", *overrides).fit()
    return load_run(path, augment=False)


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


@pytest.mark.parametrize("per_channel", [False, True])
def test_retraining_lowers_the_loss_at_few_steps(per_channel, tmp_path):
    run = ann(tmp_path / "ann", "train.max_steps=21", "data.augment=none")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    images, labels = next(run.data.train.from_step(0))
    losses = {}
    for method in ("calibrated", "qcfs"):
        options = Options(method=method, steps=2, images=120, epochs=6, per_channel=per_channel)
        _, model = convert(run, options)
        with torch.inference_mode():
            losses[method] = float(cross_entropy(model(images, 2).mean(0), labels))
    assert losses["qcfs"] < 0.9 * losses["calibrated"]
    _, again = convert(run, options)
    assert_equal(dict(again.state_dict()), dict(model.state_dict()))
    assert_equal(dict(run.model.state_dict()), before)  # the ANN is left as it was


@pytest.mark.parametrize("net", ["plain", "pool", "mlp"])
def test_a_converted_net_of_one_layer_gives_the_retrained_levels(net, tmp_path):
    """The first neuron's current is constant: its mean output is the activation trained for it."""
    run = ann(tmp_path / "ann", *NETS[net])
    kept = []
    with pytest.MonkeyPatch.context() as patch:

        def keep(run, model, epochs):
            retrain(run, model, epochs)
            kept.append(model)

        patch.setattr("spiketriton.trained.conversion.retrain", keep)
        patch.setattr("spiketriton.trained.conversion.calibrate", lambda *_: None)
        _, model = convert(run, Options(method="qcfs", steps=3, images=30))
    images = run.to_device(next(iter(run.data.test))[0])
    with (
        torch.inference_mode(),
        recording(kept[0], lambda x: x[0]) as wanted,
        recording(model, lambda x: x.mean(0)) as got,
    ):
        kept[0](images)
        model(images, 3)
    first = next(iter(wanted))
    level = kept[0].get_submodule(first).used() / 3
    different = (wanted[first][0] - got[first][0]).abs()
    assert (different > 0.01 * level).float().mean() < 0.002  # rounding at the edge of a level
    assert wanted[first][0].max() > level


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    ann(root / "ann")
    options = ["--steps", "5", "--per-channel", "--images", "30"]
    main([str(root / "ann"), "--run-dir", str(root / "net"), *options])
    return root


def test_the_result_is_a_run(converted, tmp_path, capsys):
    run = load_run(converted / "net")
    assert run.kind == "converted"
    assert run.recipe.neuron.kind == "if"
    assert run.time_steps == 5
    assert run.conversion["per_channel"]
    args = [str(converted / "net"), "--steps", "40", "--against", str(converted / "ann")]
    evaluate_main([*args, "--out", str(tmp_path)])
    assert "net (converted, balanced)" in capsys.readouterr().out
    one = evaluate(run, steps=20)
    assert one.macs_per_step == 0
    assert not one.leaky
    assert one.synaptic_operations[-1] > one.synaptic_operations[0] > 0


def test_a_long_window_runs_in_chunks_of_the_whole(converted):
    run = load_run(converted / "net")
    images = run.to_device(next(iter(run.data.test))[0])
    lengths = []
    run.model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[1]))
    evaluate(run, steps=70)
    assert max(lengths) <= 16
    with torch.inference_mode():
        whole = run.model(images, 21)
        run.model.set_stateful()
        parts = [run.model(images, k) for k in (1, 16, 4)]
    assert torch.equal(torch.cat(parts), whole)


def mistake(arguments: list[str]) -> str:
    with pytest.raises(UserError) as error:
        main(arguments)
    return str(error.value)


def test_mistakes_are_named(converted, tmp_path):
    net, source = str(converted / "net"), str(converted / "ann")
    target = tmp_path / "target"
    run_dir = ["--run-dir", str(target)]
    assert "accepted: its ANN twin" in mistake([net, *run_dir])
    assert not target.exists()
    assert "already holds a run" in mistake([source, "--run-dir", net])
    assert "--steps 0" in mistake([source, "--steps", "0"])
    assert "--percentile 101" in mistake([source, "--percentile", "101"])
    assert "no effect" in mistake([source, "--method", "calibrated", "--percentile", "99"])
    assert "invalid choice" in mistake([source, "--method", "rmp"])
    assert "--epochs has no effect" in mistake([source, "--epochs", "2"])
    assert "--epochs 0" in mistake([source, "--method", "qcfs", "--epochs", "0"])


def test_a_converted_run_is_not_trained_on(converted):
    from spiketriton.train import main as train_main

    with pytest.raises(UserError, match="converted"):
        train_main(["--resume", str(converted / "net")])


def test_the_recipe_drops_what_the_ann_did_not_read(tmp_path):
    run = ann(tmp_path / "ann", "neuron.v_reset=-0.5", "neuron.tau=3.0", "model.norm=tebn")
    recipe, _ = convert(run, Options(images=10))
    assert (run.recipe.neuron.v_reset, recipe.neuron.v_reset) == (-0.5, 0)
    assert (recipe.neuron.reset, recipe.model.norm) == ("soft", "none")
