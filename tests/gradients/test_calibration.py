"""Calibrated widths: the target is hit on nets built at random, and kept with the run."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketriton.config import Recipe, replace
from spiketriton.data import build_data
from spiketriton.gradients.aims import ADAMW, SGD, SHORTCUTS, aim_of
from spiketriton.gradients.calibration import (
    LAYER_RANGE,
    Calibration,
    calibrate,
    probe_batches,
    wants_calibration,
)
from spiketriton.gradients.probing import Batch, Prober
from spiketriton.models import Network, build_model
from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.training.losses import build_loss
from spiketriton_kernels import SHAPES, Surrogate
from tests.small_runs import Lines, assert_equal, last_state, small_recipe, small_trainer


def built(recipe: Recipe) -> tuple[Network, list[Batch]]:
    data = build_data(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, classes=10, channels=data.channels, image_size=data.image_size)
    return model, probe_batches(data, model, torch.device("cpu"))


def set_width(model: Network, width: float) -> None:
    for _, layer in model.spiking_layers():
        old = layer.surrogate
        layer.surrogate = Surrogate(old.shape, old.height, width)


def gain_of(recipe: Recipe, model: Network, batches: list[Batch]) -> float:
    """The depth gain by its definition, or the block gain where that is the goal."""
    measured = Prober(model, batches, build_loss(recipe.loss)).measure()
    profile = measured.depth_profile
    if aim_of(recipe).goal == "block gain":
        profile = profile[[measured.names.index(name) for name in model.last_of_blocks()]]
    return float(np.exp(np.log(profile[:-1] / profile[1:]).mean()))


def transmission_of(
    recipe: Recipe, model: Network, batches: list[Batch], width: float = 0
) -> float:
    """The share of the gradient that neurons pass on, by its definition; at `width` if given."""
    shares = []
    own = [layer.surrogate for _, layer in model.spiking_layers()]
    for flat in (False, True):
        for (_, layer), surrogate in zip(model.spiking_layers(), own, strict=True):
            chosen = 1e7 if flat else (width or surrogate.width)
            layer.surrogate = Surrogate(surrogate.shape, surrogate.height, chosen)
            layer.detach_reset = True
        measured = Prober(model, batches, build_loss(recipe.loss)).measure()
        spike, grads = (np.square(x).mean(1) for x in (measured.grad_spike, measured.grad_input))
        shares.append(np.sqrt(grads / spike))
    return float(np.exp(np.log(shares[0] / shares[1]).mean()))


def random_recipe(seed: int, optimizer: str, mode: str = "auto") -> Recipe:
    draw = random.Random(seed)
    net = draw.choice(["mlp", "plain", "resnet8"])
    kind = draw.choice(["if", "lif", "plif"])
    changes = [f"seed={seed}", f"train.optimizer={optimizer}", f"neuron.surrogate.width={mode}"]
    changes += [f"model.name={net}", f"neuron.kind={kind}", f"time_steps={draw.randint(2, 5)}"]
    if net != "resnet8":
        changes += [f"model.depth={draw.randint(4, 9)}", f"model.width={draw.choice([16, 32])}"]
    else:
        blocks = ["plain"] if optimizer == "adamw" else ["plain", "sew", "ms"]
        changes += [f"model.block={draw.choice(blocks)}", "model.width=8"]
    if kind != "if":
        changes += [f"neuron.tau={draw.choice([1.5, 2.0, 5.0])}"]
    changes += [f"neuron.reset={draw.choice(['hard', 'soft'])}"]
    changes += [f"neuron.detach_reset={draw.choice(['true', 'false'])}"]
    changes += [f"neuron.surrogate.shape={SHAPES[seed % len(SHAPES)]}"]
    changes += [f"neuron.v_threshold={draw.choice([0.5, 1.0, 1.5])}"]
    return replace(small_recipe(), "train.batch_size=32", *changes)


@pytest.mark.parametrize(
    ("changes", "goal", "target"),
    [
        (["train.optimizer=sgd"], "depth gain", 1.15),
        (["train.optimizer=adamw"], "transmission", 0.4),
        (["train.optimizer=adamw", "model.residual_gain=0"], "block gain in a step", 0.8),
        (
            ["train.optimizer=adamw", "model.residual_gain=0", "model.name=resnet50"],
            "block gain in a step",
            1.1,
        ),
        (["train.optimizer=sgd", "model.residual_gain=0"], "block gain", 1.0),
        (
            ["train.optimizer=sgd", "model.residual_gain=0", "model.name=resnet50"],
            "block gain",
            1.5,
        ),
        (["train.optimizer=sgd", "model.name=resnet18", "model.block=preact"], "depth gain", 1.15),
        (["train.optimizer=sgd", "model.block=ms"], "block gain", 1.05),
        (["train.optimizer=sgd", "model.name=mlp", "model.start=identity"], "depth gain", 0.8),
        (["train.optimizer=adamw", "model.name=mlp", "model.start=identity"], "depth gain", 0.8),
    ],
)
def test_what_a_width_is_judged_by(changes, goal, target):
    aim = aim_of(replace(small_recipe(), *changes))
    assert (aim.goal, aim.target) == (goal, target)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layers_that_start_as_the_identity_get_a_narrow_surrogate(optimizer):
    changes = ("model.name=mlp", "model.depth=16", "neuron.surrogate.width=auto")
    recipe = small_recipe(*changes, f"train.optimizer={optimizer}", "model.start=identity")
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    assert (found.goal, found.target, found.met) == ("depth gain", 0.8, True)
    assert gain_of(recipe, model, batches) == pytest.approx(0.8, rel=0.05)

    either = replace(recipe, "model.start=auto")
    for identity in (True, False):
        assert (aim_of(either, identity=identity) == aim_of(recipe)) == identity


@pytest.mark.parametrize("seed", range(8))
def test_sgd_gets_its_depth_gain(seed):
    recipe = random_recipe(seed, "sgd")
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    assert found.goal == aim_of(recipe).goal
    assert found.met
    assert gain_of(recipe, model, batches) == pytest.approx(aim_of(recipe).target, rel=0.05)
    assert set(found.widths.values()) == {found.width}


@pytest.mark.parametrize("seed", range(12, 20))
def test_adamw_gets_its_share_of_the_gradient_through(seed):
    recipe = random_recipe(seed, "adamw")
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    assert found.goal == "transmission"
    assert found.met
    share = transmission_of(recipe, model, batches)
    assert share == pytest.approx(ADAMW.target, rel=0.05)


@pytest.mark.parametrize("block", ["sew", "ms"])
@pytest.mark.parametrize(("seed", "optimizer"), [(20, "adamw"), (21, "sgd"), (22, "adamw")])
def test_nets_with_shortcuts_get_theirs(seed, optimizer, block):
    recipe = replace(
        random_recipe(seed, optimizer),
        "model.name=resnet8",
        f"model.block={block}",
        "model.width=8",
    )
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    aim = SHORTCUTS[block]
    assert (found.goal, found.target, found.why) == ("block gain", aim.target, aim.why)
    assert found.met
    assert gain_of(recipe, model, batches) == pytest.approx(aim.target, rel=0.05)
    assert f"target {aim.target:g}: shortcuts carry the gradient" in found.lines()[0]


def test_nets_too_deep_for_float32_are_calibrated():
    """A flat surrogate multiplies the gradient by about 4 a layer: in 80 layers beyond float32."""
    changes = [
        "model.name=mlp",
        "model.depth=80",
        "model.width=32",
        "time_steps=10",
        "neuron.kind=if",
    ]
    changes += ["train.batch_size=32", "train.optimizer=adamw", "neuron.surrogate.width=auto"]
    recipe = replace(small_recipe(), *changes)
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    assert found.met
    assert found.reached == pytest.approx(ADAMW.target, rel=0.05)
    assert all(layer.on_fire is None for _, layer in model.spiking_layers())
    flat = Prober(model, batches, build_loss(recipe.loss))
    set_width(model, 1e5)
    with np.errstate(all="ignore"):
        assert not np.isfinite(flat.measure().depth_profile).all()
        assert np.isfinite(flat.measure(rescaled=True).depth_profile).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_constant_width_would_do(optimizer):
    """The best constant, the geometric mean of the calibrated widths, misses most nets."""
    nets = []
    for seed in range(5):
        recipe = random_recipe(seed, optimizer)
        model, batches = built(recipe)
        nets.append((recipe, model, batches, calibrate(recipe, model, batches).width))
    widths = [width for *_, width in nets]
    constant = math.exp(np.log(widths).mean())
    missed = 0
    for recipe, model, batches, _ in nets:
        set_width(model, constant)
        aim = aim_of(recipe)
        if aim.goal != "transmission":
            error = gain_of(recipe, model, batches) / aim.target - 1
        else:
            error = transmission_of(recipe, model, batches, constant) / aim.target - 1
        missed += abs(error) > 0.05
    assert missed > len(nets) / 2
    assert max(widths) > 2 * min(widths)


def test_the_target_holds_for_images_it_did_not_see():
    recipe = small_recipe(
        "model.name=mlp",
        "model.depth=6",
        "time_steps=6",
        "train.batch_size=32",
        "train.optimizer=sgd",
        "neuron.surrogate.width=auto",
    )
    model, batches = built(recipe)
    calibrate(recipe, model, batches)
    other = replace(recipe, "seed=99")
    fresh = probe_batches(build_data(other), model, torch.device("cpu"))
    assert not torch.equal(fresh[0][0], batches[0][0])
    assert gain_of(recipe, model, fresh) == pytest.approx(SGD.target, rel=0.1)


def test_adamw_gets_a_wider_surrogate_than_sgd():
    changes = ("model.name=mlp", "model.depth=6", "time_steps=6", "neuron.surrogate.width=auto")
    widths = []
    for optimizer in ("sgd", "adamw"):
        recipe = small_recipe(*changes, f"train.optimizer={optimizer}")
        widths.append(calibrate(recipe, *built(recipe)).width)
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("net", ["mlp", "resnet8"])
def test_each_layer_meets_the_target_by_itself(optimizer, net):
    changes = [f"model.name={net}", "neuron.surrogate.width=auto_per_layer", "train.batch_size=32"]
    changes += ["time_steps=6"]  # with fewer the deep layers fall silent
    changes += ["model.depth=6"] if net == "mlp" else []
    recipe = small_recipe(*changes, f"train.optimizer={optimizer}")
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    assert found.met
    assert found.missed == ()
    assert len(set(found.widths.values())) > 1
    for name, layer in model.spiking_layers():
        assert layer.surrogate.width == found.widths[name]
    if optimizer == "sgd":
        profile = Prober(model, batches, build_loss(recipe.loss)).measure().depth_profile
        assert profile[:-1] / profile[1:] == pytest.approx(SGD.target, rel=0.05)
    else:
        assert transmission_of(recipe, model, batches) == pytest.approx(ADAMW.target, rel=0.05)


@pytest.mark.parametrize("mode", ["auto", "auto_per_layer"])
def test_a_target_out_of_reach_is_said(mode):
    """With a height of 0.01 every gradient vanishes, however wide the surrogate is."""
    recipe = small_recipe(
        f"neuron.surrogate.width={mode}",
        "neuron.surrogate.height=0.01",
        "train.optimizer=sgd",
        "model.name=mlp",
        "model.depth=8",
    )
    found = calibrate(recipe, *built(recipe))
    assert not found.met
    assert "no width" in found.lines()[1]
    assert found.width == max(width for width, _ in found.scan)
    if mode == "auto_per_layer":
        assert found.missed
        assert found.missed[0] in found.lines()[1]
        assert max(found.widths.values()) <= found.width * LAYER_RANGE * 1.001


def test_every_norm_can_be_calibrated():
    for norm in ("bn", "tdbn", "tebn", "none"):
        recipe = small_recipe(
            f"model.norm={norm}", "train.optimizer=sgd", "neuron.surrogate.width=auto"
        )
        model, batches = built(recipe)
        assert calibrate(recipe, model, batches).met
        assert gain_of(recipe, model, batches) == pytest.approx(SGD.target, rel=0.05)


def test_it_is_deterministic_and_leaves_nothing_behind():
    recipe = small_recipe("neuron.surrogate.width=auto", "neuron.detach_reset=false")
    model, batches = built(recipe)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    statistics = {key: value.clone() for key, value in model.named_buffers()}
    model.eval()
    random_state = torch.get_rng_state()
    first = calibrate(recipe, model, batches)
    assert calibrate(recipe, model, batches) == first
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.named_parameters())
    assert all(torch.equal(statistics[key], value) for key, value in model.named_buffers())
    for _, layer in model.spiking_layers():
        assert layer.detach_reset is False
        assert layer.probe is None


def test_the_state_is_json_and_comes_back():
    recipe = small_recipe("neuron.surrogate.width=auto_per_layer")
    found = calibrate(recipe, *built(recipe))
    again = Calibration.of_state(json.loads(json.dumps(found.state_dict())))
    assert again == found
    fresh, _ = built(recipe)
    again.apply(fresh)
    assert [layer.surrogate.width for _, layer in fresh.spiking_layers()] == list(
        found.widths.values()
    )


def test_who_wants_a_calibration():
    assert wants_calibration(small_recipe("neuron.surrogate.width=auto"))
    assert wants_calibration(small_recipe("neuron.surrogate.width=auto_per_layer"))
    assert not wants_calibration(small_recipe())
    assert not wants_calibration(small_recipe("neuron.surrogate.width=auto", "neuron.kind=relu"))


AUTO = ("neuron.surrogate.width=auto", "train.optimizer=sgd", "data.augment=none")


def test_a_run_keeps_its_widths_and_resumes_with_them(tmp_path: Path):
    """The middle of training would give other widths: they come of the checkpoint."""
    whole, parts, display = tmp_path / "whole", tmp_path / "parts", Lines()
    trainer = small_trainer(whole, *AUTO, display=display)
    trainer.fit()
    kept = json.loads((whole / "calibration.json").read_text())
    assert kept == read_checkpoint(whole / "checkpoints" / "last.pt")["calibration"]
    assert kept["met"]
    widths = {layer.surrogate.width for _, layer in trainer.model.spiking_layers()}
    assert widths == {kept["width"]}
    assert "surrogate width: " in display.text
    assert re.search(r"measured before training, in \d\S* s", display.text)
    assert "depth gain" in display.text

    small_trainer(parts, *AUTO).fit(until=9)
    (parts / "calibration.json").unlink()
    display = Lines()
    small_trainer(parts, *AUTO, resume=True, display=display).fit()
    assert "surrogate width" not in display.text
    assert_equal(last_state(parts), last_state(whole))


def test_the_ann_twin_calibrates_nothing(tmp_path: Path):
    small_trainer(tmp_path / "run", *AUTO, "neuron.kind=relu", "train.max_steps=1").fit()
    assert not (tmp_path / "run" / "calibration.json").exists()
