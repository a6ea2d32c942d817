"""What layers without skip connections start at."""

import json

import pytest
import torch

from spiketriton.gradients.calibration import calibrate, wants_calibration
from spiketriton.gradients.layer_start import LayerStart, wants_layer_start
from spiketriton.gradients.probing import Prober
from spiketriton.models.layers import IDENTITY_NOISE
from spiketriton.plain import of_plain
from spiketriton.training.losses import build_loss
from tests.gradients.test_block_start import built
from tests.small_runs import Lines, assert_equal, last_state, small_recipe, small_trainer

DEEP = ("model.name=mlp", "model.depth=30", "model.width=64", "time_steps=6", "neuron.reset=hard")
AUTO = "model.start=auto"


@pytest.mark.parametrize("net", ["mlp", "plain"])
@pytest.mark.parametrize("depth", [3, 24])
def test_deep_layers_start_as_the_identity_and_shallow_ones_as_usual(net, depth):
    width = {"mlp": 64, "plain": 16}[net]
    changes = (*DEEP, f"model.name={net}", f"model.depth={depth}", f"model.width={width}")
    recipe = small_recipe(*changes, AUTO)
    model, batches = built(recipe)
    kaiming = {name: value.clone() for name, value in model.state_dict().items()}
    usual = Prober(model, batches, build_loss(recipe.loss)).overlap()[-1]
    found = calibrate(recipe, model, batches).layers
    assert found.usual == pytest.approx(max(usual, found.usual))
    assert found.identity == (depth == 24)
    weight, before = (states["layers.2.weights.weight"] for states in (model.state_dict(), kaiming))
    if found.identity:
        moved = weight - IDENTITY_NOISE * before
        place = (slice(None), slice(None), *[w // 2 for w in weight.shape[2:]])
        torch.testing.assert_close(moved[place], torch.eye(width))
        assert found.overlap > 0.3 > found.usual
        again, _ = built(small_recipe(*changes, "model.start=identity"))
        torch.testing.assert_close(again.state_dict()["layers.2.weights.weight"], weight)
    else:
        assert torch.equal(weight, before)
        assert found.overlap == found.usual >= 0.3
    found.apply(model)  # once more changes nothing
    assert torch.equal(model.state_dict()["layers.2.weights.weight"], weight)


def test_what_was_chosen_is_said_and_kept():
    found = LayerStart(True, 0.04, 0.91)
    assert found.line() == (
        "layers start as the identity: the last one keeps 91 % of an image's identity, 4 % with "
        "Kaiming's weights"
    )
    assert of_plain(LayerStart, json.loads(json.dumps(vars(found)))) == found
    assert (
        LayerStart(False, 0.5, 0.5)
        .line()
        .startswith("layers start with Kaiming's weights, as usual")
    )


def test_who_wants_a_start():
    assert wants_layer_start(small_recipe(*DEEP, AUTO))
    assert wants_calibration(small_recipe(*DEEP, AUTO))
    assert not wants_layer_start(small_recipe(*DEEP))
    assert not wants_calibration(small_recipe(*DEEP, AUTO, "neuron.kind=relu"))


def test_a_run_begins_there_and_resumes_without_beginning_again(tmp_path):
    auto = (*DEEP, AUTO, "neuron.surrogate.width=auto")
    lines = Lines()
    small_trainer(tmp_path / "whole", *auto, display=lines).fit()
    assert "layers start as the identity" in lines.text
    written = json.loads((tmp_path / "whole" / "calibration.json").read_text())
    assert written["layers"]["identity"]
    small_trainer(tmp_path / "cut", *auto).fit(until=10)
    small_trainer(tmp_path / "cut", *auto, resume=True).fit()
    assert_equal(last_state(tmp_path / "cut"), last_state(tmp_path / "whole"))
