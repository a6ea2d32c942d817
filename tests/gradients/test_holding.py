"""The width that is measured again during training."""

import json
from pathlib import Path

import pytest
import torch

from spiketriton.config import Recipe
from spiketriton.data import build_data
from spiketriton.gradients import holding
from spiketriton.gradients.calibration import Calibration, calibrate, probe_batches
from spiketriton.gradients.diagnosis import diagnose
from spiketriton.gradients.holding import AT_ONCE, LIMITS, SHARE, TIMES, hold, holds, interval
from spiketriton.gradients.probing import Batch
from spiketriton.gradients.subject import Subject, find_subject
from spiketriton.models import Network, build_model
from spiketriton.training.losses import build_loss
from tests.small_runs import Lines, assert_equal, last_state, small_recipe, small_trainer

CLOSED = (
    "model.residual_gain=0",
    "neuron.surrogate.width=auto",
    "train.optimizer=adamw",
    "data.augment=none",
)
PLAIN = (*CLOSED, "model.residual_bias=0.25")


def calibrated(recipe: Recipe) -> tuple[Network, list[Batch], Calibration]:
    data = build_data(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, classes=10, channels=data.channels, image_size=data.image_size)
    batches = probe_batches(data, model, torch.device("cpu"))
    return model, batches, calibrate(recipe, model, batches)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], True),
        (["train.optimizer=sgd"], True),
        (["neuron.surrogate.width=auto_per_layer"], True),
        (["neuron.surrogate.hold=false"], False),
        (["model.residual_gain=1"], False),
        (["model.block=sew"], False),
        (["model.block=ms"], False),
    ],
)
def test_only_plain_blocks_that_start_closed_are_held(changes, expected):
    recipe = small_recipe(*CLOSED, *changes)
    *_, found = calibrated(recipe)
    assert holds(recipe, found) == expected


@pytest.mark.parametrize("steps", [1, 21, 400, 4680, 10**6])
@pytest.mark.parametrize(("batch_size", "images"), [(16, 32), (32, 64), (128, 64), (256, 8)])
def test_measuring_stays_a_small_share_of_the_training(steps, batch_size, images):
    every = interval(steps, batch_size, images)
    assert steps // every <= TIMES * 2  # steps that TIMES does not divide
    assert (steps // every) * images <= SHARE * steps * batch_size


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mode", ["auto", "auto_per_layer"])
def test_a_gradient_that_grows_is_evened_and_another_is_left_alone(mode, optimizer, monkeypatch):
    recipe = small_recipe(*PLAIN, f"neuron.surrogate.width={mode}", f"train.optimizer={optimizer}")
    model, batches, found = calibrated(recipe)
    loss, autocast = build_loss(recipe.loss), torch.enable_grad

    def again(found: Calibration) -> Calibration | None:
        return hold(model, found, 7, recipe.neuron.v_threshold, batches, loss, autocast)

    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert again(found) is None  # closed blocks hand the gradient on as it is
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    model.start_blocks(1.0, 0.25)  # as training opens them, and further
    held = again(found)
    assert held is not None
    step, gain, width = held.held[-1]
    assert (step, width) == (7, held.width)
    grown, evened = LIMITS[found.goal]
    assert gain > grown
    assert AT_ONCE * found.width <= width < found.width
    factors = [held.widths[name] / own for name, own in found.widths.items()]
    assert factors == pytest.approx([width / found.width] * len(factors))
    # measured again until it is even, and nothing is left to do
    while (narrower := again(held)) is not None:
        assert AT_ONCE * held.width <= narrower.width < held.width
        assert narrower.held[:-1] == held.held
        held, width = narrower, narrower.width
    net = holding.WidthProber(holding.Prober(model, batches, loss), recipe.neuron.v_threshold)
    aim = holding.Aim(found.goal, evened, "")
    relative = torch.tensor(list(held.widths.values())).double().numpy() / width
    even, _ = holding.Search(aim, net, model.last_of_blocks(), relative).goal(width)
    assert evened * 0.98 <= even <= grown
    assert Calibration.of_state(json.loads(json.dumps(held.state_dict()))) == held
    # where even half of the width would not do, it is left
    monkeypatch.setitem(LIMITS, found.goal, (0.0, even / 100))
    assert again(held) is None
    monkeypatch.setattr(holding, "FUTILE", 0.0)
    assert again(held) is not None


def test_a_run_narrows_its_widths_says_so_and_resumes_with_them(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(holding.LIMITS, "block gain in a step", (0.0, 0.2))
    monkeypatch.setattr(holding, "FUTILE", 0.0)
    monkeypatch.setattr(holding, "SHARE", 0.5)  # every 4 or 8 steps
    whole, parts, display = tmp_path / "whole", tmp_path / "parts", Lines()
    trainer = small_trainer(whole, *PLAIN, display=display)
    trainer.fit()
    kept = json.loads((whole / "calibration.json").read_text())
    assert kept == last_state(whole)["calibration"]
    steps = [step for step, _, _ in kept["held"]]
    assert steps
    assert kept["width"] == kept["held"][-1][2]
    widths = {layer.surrogate.width for _, layer in trainer.model.spiking_layers()}
    assert widths == {kept["width"]}
    assert (
        f"step {steps[0]}: the gradient has begun to grow through depth (block gain in a step "
        in display.text
    )

    small_trainer(parts, *PLAIN).fit(until=steps[0])  # saved just before it is measured
    small_trainer(parts, *PLAIN, resume=True).fit(until=steps[0] + 1)
    small_trainer(parts, *PLAIN, resume=True).fit()
    assert_equal(last_state(parts), last_state(whole))

    free = tmp_path / "free"
    small_trainer(free, *PLAIN, "neuron.surrogate.hold=false").fit()
    assert last_state(free)["calibration"]["held"] == []


def test_diagnose_says_that_a_run_without_it_needs_it(tmp_path: Path, monkeypatch):
    run, still = tmp_path / "run", "neuron.surrogate.hold=false"
    monkeypatch.setattr(holding, "FUTILE", 0.0)
    small_trainer(run, *PLAIN, still, "train.max_steps=7").fit()

    def changes(grown: float, *overrides: str) -> list[str]:
        monkeypatch.setitem(holding.LIMITS, "block gain in a step", (grown, grown / 2))
        found = diagnose(find_subject(str(run), overrides, lambda text: None))
        return [cure.change for cure in found.cures if "hold" in cure.change]

    assert changes(0.01) == ["neuron.surrogate.hold=true"]
    assert changes(100.0) == []
    assert changes(0.01, "neuron.surrogate.hold=true") == []
    fresh = small_recipe(*PLAIN, still)
    assert not any("hold" in cure.change for cure in diagnose(Subject(fresh, "fresh")).cures)
