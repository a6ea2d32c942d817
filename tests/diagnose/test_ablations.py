"""One thing changed at a time: what changes, and what does not."""

import numpy as np
import pytest

from spiketriton.config import replace
from spiketriton.diagnose.ablations import Experiment, last_norms
from spiketriton.diagnose.diagnosed import find_subject
from spiketriton.gradients import prober as probing
from spiketriton.gradients.measurement import COLUMNS
from spiketriton.gradients.through_time import cut_time
from spiketriton.gradients.verdict import lost_at
from spiketriton.system.errors import UserError
from tests.gradients.support import DEEP, nothing, subject
from tests.small_runs import small_trainer


@pytest.mark.parametrize(
    ("overlap", "lost"),
    [
        ([0.9, 0.5, 0.25], None),  # the limit itself still keeps something
        ([0.9, 0.5, 0.24], 2),
        ([0.9, 0.05, 0.3], None),
        ([0.9, 0.05, 0.0], 1),
        ([0.0, 0.0], 0),
        ([0.9, float("nan")], None),
    ],
)
def test_the_layer_from_which_on_the_image_is_lost(overlap, lost):
    assert lost_at(np.array(overlap), 0.25) == lost


def test_a_batch_larger_than_a_small_data_set_is_reduced_to_it():
    few = ("data.train_images=20", "train.batch_size=32", "train.accumulate=2")
    assert Experiment(subject(*few), 2).images == 40
    assert Experiment(subject("data.train_images=20", "train.batch_size=10"), 3).images == 30


def test_the_variants_change_what_they_say():
    changes = (*DEEP, "neuron.surrogate.height=2", "neuron.surrogate.width=0.3")
    experiment = Experiment(subject(*changes))
    measured, ablations = experiment.measure(experiment.prober()), experiment.ablations()
    assert {ablation.change: ablation.override for ablation in ablations} == {
        "surrogate half as wide": "neuron.surrogate.width=0.15",
        "surrogate twice as wide": "neuron.surrogate.width=0.6",
        "surrogate height 1": "neuron.surrogate.height=1",
        "gradient through the reset": "neuron.detach_reset=false",
        "no reset": "neuron.reset=none",
        "no leak": "neuron.kind=if",
        "no norm": "model.norm=none",
        "no gradient from step to step": "",
    }
    base, gains = measured.depth_gain, [ablation.measured.depth_gain for ablation in ablations]
    assert gains[0] < base < gains[1]
    # heights multiply every layer's gradient but the carried part's share is the same
    assert gains[2] == pytest.approx(base / 2, rel=1e-3)
    for ablation in ablations:
        # what acts on the backward pass alone leaves the spikes and the overlap as they are
        forward = ablation.change in ("no reset", "no leak", "no norm")
        assert np.array_equal(ablation.measured.firing_rate, measured.firing_rate) != forward
        assert (ablation.overlap == experiment.signal.overlap[-1]) != forward
    # the recipe line does what was measured
    for ablation in (ablations[1], ablations[5]):
        other = Experiment(subject(*changes, ablation.override))
        again = other.measure(other.prober())
        assert np.allclose(again.grad_input_rms, ablation.measured.grad_input_rms, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (("neuron.kind=if", "model.norm=none"), {"neuron.kind=lif", "model.norm=bn"}),
        (("neuron.detach_reset=false",), {"neuron.detach_reset=true", "neuron.kind=if"}),
        (("model.shortcut_gradient=surrogate",), {"model.shortcut_gradient=straight_through"}),
    ],
)
def test_a_variant_is_what_the_recipe_is_not(changes, lines):
    experiment = Experiment(subject(*changes))
    ablations = experiment.ablations()
    assert lines <= {ablation.override for ablation in ablations}
    recipe = experiment.recipe
    assert all(replace(recipe, v.override) != recipe for v in ablations if v.override)


@pytest.mark.parametrize("net", ["mlp", "resnet8", "ms"])
def test_without_the_path_through_time_nothing_is_carried(net):
    changes = {"mlp": DEEP, "resnet8": ()}.get(net, (f"model.block={net}",))
    experiment = Experiment(subject(*changes, "neuron.kind=plif"), 1)
    prober = experiment.prober()
    whole = prober.measure()
    with cut_time(prober.model):
        cut = prober.measure()
    again = prober.measure()
    for name in COLUMNS:
        assert np.array_equal(getattr(whole, name), getattr(again, name), equal_nan=True), name
    assert (whole.grad_carry_rms[:, :-1] > 0).any()
    assert (cut.grad_carry_rms == 0).all()
    assert np.allclose(cut.firing_rate, whole.firing_rate, atol=1e-3)
    # the last layer's last step has no future in either
    assert cut.grad_input_rms[-1, -1] == pytest.approx(whole.grad_input_rms[-1, -1], rel=1e-3)


def test_blocks_that_start_closed_are_opened_for_a_measurement_alone():
    closed, half = (Experiment(subject(f"model.residual_gain={gain}")) for gain in (0, 0.5))
    assert (closed.opens(), half.opens()) == (True, False)
    prober = closed.prober()
    found, expected = closed.measure(prober), half.measure(half.prober())
    assert np.allclose(found.grad_input_rms, expected.grad_input_rms, rtol=1e-4)
    assert not any(norm.weight.any() for norm in last_norms(prober.model))


def test_large_nets_are_measured_on_few_images(monkeypatch):
    monkeypatch.setitem(probing.BUDGET, "cpu", 1.0)
    assert Experiment(subject(), 1).images == probing.FEWEST


def test_weights_that_do_not_fit_are_the_users_mistake(tmp_path):
    small_trainer(tmp_path / "run", "train.max_steps=1").fit()
    with pytest.raises(UserError, match="do not fit this recipe"):
        Experiment(find_subject(str(tmp_path / "run"), ["model.width=6"], nothing))
