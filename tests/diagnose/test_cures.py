"""What is tried of a net whose gradient vanishes or explodes through time."""

import numpy as np
import pytest
import torch
from torch import nn

import spiketriton
from spiketriton.diagnose.cures import (
    CLIPPING,
    DETACHED,
    HEIGHT,
    Cure,
    Why,
    change_neurons,
    cures,
    own_cures,
)
from spiketriton.diagnose.words import WHY, change
from spiketriton.gradients.measurement import Signal
from spiketriton.gradients.verdict import Learned, Verdict, Word, judge
from spiketriton.neurons import adopt
from spiketriton.plugins.tasks import Score
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.nn import LIF
from tests.models.test_foreign import HERE, recipe_of
from tests.show.support import measurement
from tests.small_runs import small_recipe

RECURRENT = ["model.name=sequence", "data.sequence=rows", "time_steps=8", "model.recurrent=true"]


def verdict(word: Word) -> Verdict:
    """Of two layers and 20 steps."""
    ones = np.ones((2, 20))
    fading = 1e-3 if word == Word.FORGETS else 1e20
    shares = {"credit": fading ** np.linspace(1, 0, 20) * ones, "direct": 0 * ones}
    shares["remembered"] = shares["credit"]
    found = judge(
        measurement(ones, firing_rate=ones, **shares),
        "sgd",
        Signal(np.ones(2), True, memory="states"),
    )
    assert found.word == word
    return found


@pytest.mark.parametrize(
    ("changes", "word", "expected"),
    [
        (
            ["loss.read=last"],
            Word.FORGETS,
            [
                "neuron.tau=20",
                "neuron.kind=if",
                "neuron.kind=psn",
                "loss.read=mean",
                "loss.kind=tet",
            ],
        ),
        (
            ["loss.kind=tet", "neuron.tau=20", "neuron.detach_reset=false"],
            Word.FORGETS,
            ["neuron.kind=if", "neuron.detach_reset=true", "neuron.kind=psn"],
        ),
        (["neuron.kind=if", "loss.kind=tet"], Word.FORGETS, ["neuron.kind=psn"]),
        (
            [*RECURRENT, "loss.kind=tet"],
            Word.FORGETS,
            ["neuron.tau=20", "neuron.kind=if", "model.recurrent=false"],
        ),
        (
            [*RECURRENT, "train.optimizer=sgd"],
            Word.BURSTS,
            ["model.recurrent=false", "train.clip_grad_norm=1"],
        ),
        (
            ["neuron.detach_reset=false", "neuron.surrogate.height=5", "train.optimizer=sgd"],
            Word.BURSTS,
            ["neuron.detach_reset=true", "neuron.surrogate.height=1", "train.clip_grad_norm=1"],
        ),
    ],
)
def test_a_recipe_is_tried_with_what_reaches_further(changes, word, expected):
    recipe = small_recipe("model.norm=bn", "train.clip_grad_norm=0", *changes)
    assert [change(cure) for cure in cures(recipe, verdict(word))][: len(expected)] == expected
    assert all(cure.why in WHY for cure in cures(recipe, verdict(word)))


def test_a_net_that_is_stuck_is_tried_with_them_where_no_row_speaks_of_it():
    """Of 20 steps whose first one gets little; before training nothing is tried."""
    recipe, ones = small_recipe("loss.read=last", "model.norm=bn"), np.ones((2, 20))
    shares = {"credit": 1e-3 ** np.linspace(1, 0, 20) * ones, "direct": 0 * ones}
    measured = measurement(ones, firing_rate=ones, **shares, remembered=shares["credit"])
    stuck = Learned(None, 2.3, Score(value=0.1, chance=0.1, spread=0.01), 360, 2.3)
    for memory, learned, tau in (("other", stuck, 1), ("other", None, 0), ("", stuck, 0)):
        signal = Signal(np.ones(2), True, memory=memory)
        found = judge(measured, recipe, signal, learned, begun=learned is not None)
        assert found.word == (Word.NOT_JUDGED if learned is None else Word.CHANCE)
        assert [change(cure) for cure in cures(recipe, found)].count("neuron.tau=20") == tau


def test_the_neurons_of_a_network_that_a_recipe_names_are_given_a_longer_memory():
    recipe = recipe_of(f"{HERE}:Shared", "loss.read=last")
    found = [change(cure) for cure in cures(recipe, verdict(Word.FORGETS))]
    longer = "tau = 20, the length of the window, of every neuron"
    assert found == [longer, "loss.read=mean", "loss.kind=tet"]


def test_a_silent_net_of_a_high_threshold_is_tried_with_the_default():
    for threshold, expected in ((50, ["neuron.v_threshold=1", "model.norm=bn"]), (0.5, [])):
        recipe = small_recipe(
            "model.name=mlp", "model.depth=2", "model.norm=none", f"neuron.v_threshold={threshold}"
        )
        measured = measurement(np.ones((2, 4)), firing_rate=np.zeros((2, 4)))
        found = judge(measured, recipe, Signal(np.zeros(2), False))
        assert [change(cure) for cure in cures(recipe, found)][: len(expected)] == expected


def test_a_net_that_is_asleep_is_tried_with_changes():
    """Its outputs are the same for all images, and its first layer gets a gradient."""
    recipe = small_recipe("model.name=mlp", "model.depth=2", "model.norm=none")
    measured = measurement(np.ones((2, 4)), firing_rate=np.zeros((2, 4)))
    found = judge(measured, recipe, Signal(np.zeros(2), False))
    assert found.obstacles == (Word.ASLEEP,)
    assert [change(cure) for cure in cures(recipe, found)] == ["model.norm=bn"]


def test_neurons_of_ones_own_are_given_a_longer_memory():
    kinds = [
        LIF(2.0),
        kernels.PLIF(2.0),
        kernels.ALIF(2.0),
        kernels.CuBaLIF(3.0, detach_reset=False),
        kernels.IF(),
    ]
    found = own_cures(kinds, verdict(Word.FORGETS))
    assert [cure.why for cure in found] == [Why.TAU, Why.DETACHED]
    net = nn.Sequential(*map(adopt, kinds))
    x = torch.randn(20, 3, 4)
    for cure in found:
        change_neurons(net, cure, x)
    assert net[0].tau == 20
    assert torch.sigmoid(net[1].w).item() == pytest.approx(1 / 20)
    assert net[2].decay == net[3].decay == pytest.approx(0.95)
    assert net[3].detach_reset


def test_neurons_of_ones_own_whose_gradient_explodes_are_tried_with_less_of_it():
    neuron = LIF(50.0, detach_reset=False)
    found = own_cures([neuron], verdict(Word.BURSTS))
    assert found == [CLIPPING, DETACHED, HEIGHT]
    before = neuron.surrogate.height
    change_neurons(nn.Sequential(adopt(neuron)), HEIGHT, torch.randn(4, 2, 3))
    assert neuron.surrogate.height == before / 2


def test_a_net_that_forgets_a_pulse_is_told_and_shown_what_helps():
    """A class for four steps, then noise, read at the last of 24 steps."""
    torch.manual_seed(0)
    y = torch.arange(48) % 4
    x = 0.5 * torch.randn(24, 48, 16)
    x[:4] += 2 * torch.randn(4, 16)[y]

    class Net(nn.Module):
        def __init__(self, tau: float) -> None:
            super().__init__()
            torch.manual_seed(1)
            hidden = [part for size in (16, 64) for part in (nn.Linear(size, 64), LIF(tau, False))]
            self.net = nn.Sequential(*hidden, nn.Linear(64, 4))
            for k in (0, 2):
                self.net[k].weight.data.mul_(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)[-1]

    found = spiketriton.diagnose(Net(2.0), (x, y), tries=50)
    assert found.verdict.word == "vanishing through time"
    assert found.verdict.credit == found.measured.credit[:, 0].min() < 1e-4
    # shown again and again, images are learnt by heart: the losses are those of others
    assert (found.trials.images, found.trials.others) == (21, 11)
    assert "the loss of 11 others is" in str(found)
    assert [cure for cure, _ in found.trials.helped] == [
        Cure("", "tau = 24, the length of the window, of every neuron", Why.TAU, 24)
    ]
    lasting = spiketriton.diagnose(Net(200.0), (x, y), tries=0)
    assert lasting.verdict.word == "no obstacle found"
    assert lasting.verdict.credit > 0.1
