"""The result of a diagnosis: verdict, width, causes, cures."""

import json

import numpy as np
import pytest
import torch

from spiketriton.gradients.aims import SGD
from spiketriton.gradients.diagnosis import diagnose, two_digits
from spiketriton.gradients.subject import Subject, find_subject
from spiketriton.gradients.variants import Experiment
from spiketriton.gradients.verdict import Cure, lost_at
from tests.small_runs import small_recipe, small_trainer


def subject(*changes: str) -> Subject:
    return Subject(small_recipe(*changes), "recipe small.toml")


def nothing(text: str) -> None:
    raise AssertionError(text)


DEEP = ("model.name=mlp", "model.depth=8", "train.optimizer=sgd", "time_steps=5")
NARROW, WIDE = "neuron.surrogate.width=0.05", "neuron.surrogate.width=20"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_better_width_is_the_one_that_training_takes(tmp_path, precision, optimizer):
    """On the same images, augmented, in the same precision and memory layout."""
    changes = (
        f"train.precision={precision}",
        f"train.optimizer={optimizer}",
        "data.augment=standard",
        "train.channels_last=true",
        "train.max_steps=1",
    )
    small_trainer(tmp_path / "run", *changes, "neuron.surrogate.width=auto").fit()
    taken = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert taken["met"]
    assert diagnose(subject(*changes, "neuron.surrogate.width=2")).better_width == taken["width"]
    # and what diagnose measures with `auto`
    found = diagnose(subject(*changes, "neuron.surrogate.width=auto"), 2)
    assert found.better_width == taken["width"] == pytest.approx(found.width, rel=1e-12)
    gain = found.measured.depth_gain if optimizer == "sgd" else found.transmission
    assert gain == pytest.approx(taken["reached"], rel=1e-5)


def test_an_overlap_in_two_digits():
    assert [two_digits(x) for x in (0.987, 0.0, -0.02, float("nan"))] == [
        "0.99",
        "0.00",
        "0.00",
        "-",
    ]


@pytest.mark.parametrize(
    ("change", "word", "better"),
    [(NARROW, "vanishing", ">"), (WIDE, "exploding", "<")],
)
def test_a_wrong_width_is_found_and_a_better_one_named(change, word, better):
    found = diagnose(subject(*DEEP, change))
    assert found.verdict.depth.word == word
    assert found.cures[0].change == "neuron.surrogate.width=auto"
    width = float(change.partition("=")[2])
    assert found.better_width is not None
    assert (found.better_width > width) == (better == ">")
    # it is measured too, and comes out as what lessens the trouble most
    assert f"nearest to 1 with neuron.surrogate.width={found.better_width:.3g}" in found.causes()[0]


def test_the_better_width_is_one():
    """With the width that is named the gain is nearly even."""
    found = diagnose(subject(*DEEP, "neuron.surrogate.width=1.5"))
    again = diagnose(subject(*DEEP, f"neuron.surrogate.width={found.better_width}"), 2)
    assert found.measured.depth_gain != pytest.approx(SGD.target, rel=0.1)
    assert again.measured.depth_gain == pytest.approx(SGD.target, rel=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_width_that_auto_chose_is_not_called_sick(optimizer):
    """Of 40 layers that start as the identity, by measurement: 0.8 from layer to layer is 2e-4 over all."""
    start = ("model.depth=40", "model.start=auto", "neuron.surrogate.width=auto")
    found = diagnose(subject(*DEEP, *start, f"train.optimizer={optimizer}"), 2)
    depth = found.verdict.depth
    assert found.auto.layers is not None
    assert found.auto.layers.identity
    assert depth.ratio < 1e-3
    assert depth.word == "healthy"
    assert "a depth gain of 0.8 is aimed at" in depth.sentence()
    narrow = diagnose(subject(*DEEP, *start[:2], "neuron.surrogate.width=0.05"), 2)
    assert narrow.verdict.depth.word == "vanishing"


def test_a_deep_plain_net_forgets_the_image_and_shortcuts_keep_it():
    blocks = ("model.name=resnet20", "model.width=8", "time_steps=4")
    plain, skips = (diagnose(subject(*blocks, f"model.block={kind}")) for kind in ("plain", "ms"))
    assert plain.overlap[0] > 0.8 > skips.overlap[-1] > 0.1 > plain.overlap[-1]
    names = plain.measured.names
    lost = lost_at(plain.overlap)
    assert lost is not None
    assert (
        f"from {names[lost]} on an image with 5 % noise is as different as another image"
        in plain.forgotten()
    )
    assert "another image" not in skips.forgotten()
    # the number given with the cure is that of the net with it
    why = f"the last layer then sees the image (overlap {skips.overlap[-1]:.2f})"
    assert Cure("model.block=ms", why) in plain.cures
    # what else would keep it, as a net without norm that hardly fires, is no cure
    silent = ("model.block=sew", "model.name=resnet32", "neuron.surrogate.width=0.3")
    assert not any("norm" in cure.change for cure in diagnose(subject(*blocks, *silent)).cures)
    mlp = diagnose(subject(*DEEP, "model.depth=24", "model.width=128", "time_steps=10"))
    lost = lost_at(mlp.overlap)
    assert f"model.depth={lost}" in [cure.change for cure in mlp.cures]


def test_a_run_is_measured_at_its_weights_and_widths(tmp_path):
    run = tmp_path / "run"
    auto = ("neuron.surrogate.width=auto", "data.augment=none")
    trainer = small_trainer(run, *auto)
    trainer.fit()
    subject_of_run = find_subject(str(run), [], nothing)
    assert subject_of_run.step == 21
    experiment = Experiment(subject_of_run, 1)
    assert experiment.widths == json.loads((run / "calibration.json").read_text())["widths"]
    model = experiment.build(subject_of_run.recipe)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    fresh = diagnose(subject(*auto))
    trained = diagnose(subject_of_run)
    assert not np.allclose(fresh.measured.grad_input, trained.measured.grad_input)
    assert "no norm" not in [switch.name for switch in trained.variants]
    assert trained.subject.title == f"run {run}, after step 21"
    assert trained.as_json()["step"] == 21
    other = find_subject(str(run), ["neuron.surrogate.width=0.3"], nothing)
    assert set(Experiment(other, 1).widths.values()) == {0.3}


def test_the_same_recipe_gets_the_same_diagnosis():
    first, second = (diagnose(subject("neuron.surrogate.width=auto")).as_json() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("block", ["plain", "sew", "ms"])
def test_a_measured_start_is_diagnosed_as_training_begins(tmp_path, block):
    changes = ("model.name=resnet20", f"model.block={block}", "model.residual_gain=auto")
    changes += ("neuron.surrogate.width=auto", "train.max_steps=1")
    small_trainer(tmp_path / "run", *changes).fit()
    taken = json.loads((tmp_path / "run" / "calibration.json").read_text())
    found = diagnose(subject(*changes), 2)
    assert found.better_width == (taken["width"] if taken["met"] else None)
    assert found.overlap[-1] == pytest.approx(taken["blocks"]["overlap"], abs=1e-6)
    assert "vanishing" not in found.verdict.line()
    names = [variant.change for variant in found.variants]
    assert "model.norm=none" in names  # whose blocks have no norm to start from
