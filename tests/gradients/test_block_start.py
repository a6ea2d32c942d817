"""What residual blocks start at: chosen by what of the image comes through, kept with the run."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketriton.config import Recipe
from spiketriton.data import build_data
from spiketriton.gradients import block_start
from spiketriton.gradients.aims import OPENED
from spiketriton.gradients.block_start import BlockStart, find_block_start, wants_block_start
from spiketriton.gradients.calibration import calibrate, probe_batches, wants_calibration
from spiketriton.gradients.probing import Batch, Prober, cut_time
from spiketriton.models import Network, build_model
from spiketriton.training.losses import build_loss
from tests.small_runs import Lines, assert_equal, last_state, small_recipe, small_trainer

AUTO = "model.residual_gain=auto"


def built(recipe: Recipe) -> tuple[Network, list[Batch]]:
    data = build_data(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, classes=10, channels=data.channels, image_size=data.image_size)
    return model, probe_batches(data, model, torch.device("cpu"))


def starts(model: Network) -> set[tuple[float, float]]:
    """Weight and bias of the last norms of all blocks; one pair if they start alike."""
    norms = [block.stages()[-1][1] for _, block in model.blocks()]
    pairs = {(w, b) for n in norms for w, b in zip(n.weight.tolist(), n.bias.tolist(), strict=True)}
    return {(round(w, 6), round(b, 6)) for w, b in pairs}  # float32 holds no more


class Scripted:
    """In a prober's place: overlaps that depend on the blocks' start by a formula."""

    def __init__(self, model: Network, formula) -> None:
        self.model, self.formula = model, formula

    def overlap(self) -> np.ndarray:
        ((gain, bias),) = starts(self.model)
        last = self.formula(round(gain, 4), round(bias, 4))
        return np.array([1.0, last])


def chosen(formula, *overrides: str) -> BlockStart:
    recipe = small_recipe(AUTO, *overrides)
    model, _ = built(recipe)
    found = find_block_start(recipe, model, Scripted(model, formula))
    assert starts(model) == {(round(found.gain, 6), round(found.bias, 6))}
    return found


@pytest.mark.parametrize(
    ("kept", "gain", "tried"),
    [
        ([0.3], 1.0, 1),
        ([0.29, 0.3], 0.7, 2),
        ([0.0, 0.1, 0.2, 0.29, 0.6, 0.9, 1.0], 0.2, 5),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.3], 0.0, 7),
        ([0.0, 0.0, 0.1, 0.2, 0.1, 0.0, 0.0], 0.35, 7),  # none will do: the best
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1.0, 7),
        ([np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, 0.5], 0.0, 7),
    ],
)
@pytest.mark.parametrize(
    ("block", "name", "enough"),
    [("sew", "resnet20", 0.3), ("ms", "resnet20", 0.8), ("ms", "resnet50", 0.3)],
)
def test_the_largest_gain_is_taken_that_keeps_enough_of_the_image(
    kept, gain, tried, block, name, enough
):
    table = dict(zip(block_start.GAINS, np.array(kept) * enough / 0.3, strict=False))
    found = chosen(lambda g, _: table[g], f"model.block={block}", f"model.name={name}")
    assert (found.gain, found.bias, found.margins) == (gain, 0.0, ())
    assert found.overlap == pytest.approx(np.nan_to_num(table[gain]))
    assert [pair[0] for pair in found.tried] == list(reversed(block_start.GAINS[:tried]))


@pytest.mark.parametrize(
    ("kept", "gain"),
    [
        ([0.3], 1.0),
        ([0.29, 0.5, 0.6, 0.9, 0.89, 0.8, 0.7], 0.35),
        ([0.0, 0.0, 0.0, 0.0, 0.1, 0.8, 0.9], 0.0),
    ],
)
def test_plain_blocks_get_the_gain_with_which_most_is_kept(kept, gain):
    table = dict(zip(block_start.GAINS, kept, strict=False))
    found = chosen(lambda g, _: table[g], "model.residual_bias=0.25")
    assert (found.gain, found.overlap) == (gain, table[gain])


@pytest.mark.parametrize(
    ("overrides", "biases"),
    [
        ([], [0.0, 0.1, 0.25, 0.4]),
        (["neuron.kind=if"], [0.0]),  # it keeps what it was given: no margin
        (["neuron.kind=if", "neuron.v_threshold=0.5"], [-0.5, 0.0]),
        (["neuron.v_threshold=0.5"], [-0.5, -0.45, -0.375, -0.3, 0.0]),
        # the current is halved, so that a spike of 1 must become 2 to reach the threshold
        (["neuron.decay_input=true", "time_steps=2"], [0.0, 1.0, 1.2]),
        (["neuron.decay_input=true", "time_steps=10"], [0.0, 1.0]),
        (["time_steps=10"], [0.0, 0.1, 0.25, 0.4]),
        (["neuron.tau=5.0", "time_steps=10"], [0.0, 0.1]),
        (["neuron.v_threshold=2.0", "time_steps=10"], [0.0, 1.0]),
        # none lifts a spike and leaves silent neurons silent: one of each
        (["neuron.decay_input=true", "neuron.tau=4", "time_steps=4"], [0.0, 1.3166, 3.0]),
        (["neuron.kind=if", "neuron.v_threshold=2.0", "time_steps=4"], [0.0, 0.45, 1.0]),
    ],
)
def test_biases_lift_a_spike_of_the_shortcut_to_the_threshold_and_above(overrides, biases):
    found = chosen(lambda g, b: float(g < 1), *overrides)
    assert [bias for bias, _ in found.margins] == pytest.approx(biases, abs=1e-4)
    assert found.bias == found.margins[0][0]  # the smallest of equals


def test_the_smallest_bias_is_taken_with_which_open_blocks_keep_the_image():
    opened = {0.0: 0.2, 0.1: 0.93, 0.25: 0.96, 0.4: 1.0}
    # the mean over layers is compared, of which the first keeps everything
    found = chosen(lambda g, b: 2 * opened[b] - 1 if g == block_start.AJAR else float(g < 1))
    assert found.bias == 0.25
    assert dict(found.margins) == pytest.approx(opened)


@pytest.mark.parametrize(("bias", "kept"), [("auto", 0.0), ("0.3", 0.3)])
def test_blocks_start_as_usual_where_enough_gets_through(bias, kept):
    found = chosen(lambda g, b: 0.3 if g == 1 else 1.0, f"model.residual_bias={bias}")
    assert found == BlockStart(1.0, kept, 0.3, ((1.0, 0.3),))
    assert found.line().startswith(
        "residual blocks start at gain 1, as usual: the last layer keeps 30 %"
    )


def test_a_bias_of_the_recipe_is_kept():
    found = chosen(lambda g, b: 1.0 if g <= 0.2 else 0.0, "model.residual_bias=0.3")
    assert (found.gain, found.bias, found.margins) == (0.2, 0.3, ())  # the largest of equals


def test_who_wants_a_start():
    assert wants_block_start(small_recipe(AUTO))
    assert not wants_block_start(small_recipe("model.residual_gain=0"))
    assert not wants_block_start(small_recipe(AUTO, "neuron.kind=relu"))
    assert wants_calibration(small_recipe(AUTO))
    assert not wants_calibration(small_recipe("model.residual_gain=0"))


@pytest.mark.parametrize("block", ["plain", "sew", "ms"])
def test_the_chosen_start_keeps_more_of_the_image_than_the_usual_one(block):
    recipe = small_recipe(AUTO, "model.name=resnet20", f"model.block={block}")
    model, batches = built(recipe)
    prober = Prober(model, batches, build_loss(recipe.loss))
    usual = prober.overlap()[-1]
    found = calibrate(recipe, model, batches)
    assert found.blocks is not None
    assert prober.overlap()[-1] == pytest.approx(found.blocks.overlap, abs=1e-6)
    assert found.blocks.overlap > usual + 0.1
    assert found.mode == "given"
    assert set(found.widths.values()) == {recipe.neuron.surrogate.width}
    assert found.lines() == [found.blocks.line()]


def test_the_width_of_blocks_that_start_as_usual_is_the_usual_one():
    changes = ("neuron.surrogate.width=auto", "model.block=sew", "time_steps=4")
    recipes = [small_recipe(*changes), small_recipe(*changes, AUTO)]
    usual, ours = (calibrate(recipe, *built(recipe)) for recipe in recipes)
    assert ours.blocks is not None
    assert ours.blocks.gain == 1
    assert (ours.width, ours.goal) == (usual.width, usual.goal)


@pytest.mark.parametrize("block", ["plain", "sew", "ms"])
@pytest.mark.parametrize("gain", ["auto", "0", "0.1"])
def test_a_width_is_measured_through_opened_blocks(block, gain):
    deep = ["model.name=resnet44"] * (gain == "auto")  # else blocks may stay open
    target = {"plain": 0.8, "sew": 1.0, "ms": 1.05}[block]
    cut = (
        cut_time if block == "plain" else nullcontext
    )  # plain ones by what comes back within a step
    recipe = small_recipe(
        "neuron.surrogate.width=auto", f"model.block={block}", f"model.residual_gain={gain}", *deep
    )
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    ((start, bias),) = starts(model)
    assert found.goal == ("block gain in a step" if block == "plain" else "block gain")
    assert start == (found.blocks.gain if found.blocks else float(gain))
    model.start_blocks(max(start, OPENED), bias)
    with cut(model):
        measured = Prober(model, batches, build_loss(recipe.loss)).measure()
    profile = [
        measured.depth_profile[measured.names.index(name)] for name in model.last_of_blocks()
    ]
    reached = (profile[0] / profile[-1]) ** (1 / (len(profile) - 1))
    assert reached == pytest.approx(found.reached, rel=1e-6)
    if found.met:
        assert reached == pytest.approx(target, rel=0.0101)


def test_per_layer_only_the_layers_between_blocks_move():
    recipe = small_recipe("neuron.surrogate.width=auto_per_layer", AUTO, "model.name=resnet20")
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    ends = set(model.last_of_blocks())
    assert {found.widths[name] for name in found.widths.keys() - ends} == {found.width}
    assert len({found.widths[name] for name in ends}) > 1


def test_the_state_is_json_and_comes_back():
    recipe = small_recipe(AUTO, "neuron.surrogate.width=auto")
    model, batches = built(recipe)
    found = calibrate(recipe, model, batches)
    state = json.loads(json.dumps(found.state_dict()))
    again = type(found).of_state(state)
    assert again == found
    del state["blocks"]  # a run from before there were any
    assert type(found).of_state(state).blocks is None


def test_a_run_begins_there_and_resumes_without_beginning_again(tmp_path: Path):
    auto = (AUTO, "neuron.surrogate.width=auto")
    lines = Lines()
    whole = small_trainer(tmp_path / "whole", *auto, display=lines)
    whole.fit()
    assert "residual blocks start at gain" in lines.text
    blocks = whole.calibration.blocks
    written = json.loads((tmp_path / "whole" / "calibration.json").read_text())
    assert written["blocks"]["gain"] == blocks.gain

    fresh = small_trainer(tmp_path / "first", *auto)
    fresh.calibrate()
    assert starts(fresh.model) == {(round(blocks.gain, 6), round(blocks.bias, 6))}

    small_trainer(tmp_path / "cut", *auto).fit(until=10)
    resumed = small_trainer(tmp_path / "cut", *auto, resume=True)
    assert starts(resumed.model) != {(blocks.gain, blocks.bias)}  # training has moved them
    resumed.fit()
    assert_equal(last_state(tmp_path / "cut"), last_state(tmp_path / "whole"))
