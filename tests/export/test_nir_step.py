"""What a step is in NIR is read from its graph: of neurons of one's own as of ours, and what is none is said."""

import pytest
import torch
from torch import nn

from spiketriton.export.nir_step import NotLinearError, membrane_of
from spiketriton_kernels.nn import ALIF, ILIF, LIF, PSN, CuBaLIF, Leaky, SpikingNeuron
from tests.kernels.steps.neurons import Gated, Plain, Ternary


class Own(SpikingNeuron):
    """What each test makes of it."""

    states = ("v",)
    threshold = 1.0

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(0.25, 0.75, channels))

    def step(self, x, v):
        h = self.decay * v + 0.5 * x + 0.125
        s = self.fire(2 * h - 1.5)
        return s, self.after(h, s)

    def after(self, h, s):
        return h - 0.75 * s


class ByWords(Own):
    def after(self, h, s):
        return h * (1 - s) + 0.25 * s


class BySign(Own):
    def after(self, h, s):
        return -torch.where(s > 0, -0.25, -h)


class Halved(Own):
    def after(self, h, s):
        return h - 0.5 * s * h


class OfState(Own):
    def step(self, x, v):
        s = self.fire(v - 1.0)
        return s, 0.5 * v + x


class Squared(Own):
    def step(self, x, v):
        h = 0.5 * v + x * x
        s = self.fire(h - 1.0)
        return s, h - s


def test_a_linear_step_of_ones_own_is_a_membrane():
    found = membrane_of(Own())
    assert found.keeps.tolist() == [0.25, 0.5, 0.75]
    assert (found.gain, found.rest, found.drop) == (0.5, 0.125, 0.75)
    assert [float(one) for one in found.thresholds] == [0.75]
    assert found.reset is found.synapse is None
    for neuron in (ByWords(), BySign()):
        assert float(membrane_of(neuron).reset) == 0.25


def test_a_step_of_ones_own_is_what_the_same_neuron_of_ours_is():
    own, ours = membrane_of(Plain()), membrane_of(LIF(tau=2.0, decay_input=False))
    assert own == ours


def test_several_spikes_and_a_synapse():
    found = membrane_of(ILIF(levels=3, v_threshold=0.5))
    assert [float(one) for one in found.thresholds] == [0.25, 0.75, 1.25]
    assert (found.keeps, found.drop) == (0.25, 0.5)
    found = membrane_of(CuBaLIF(tau=4.0, tau_synapse=2.0, decay_input=True))
    assert (found.keeps, found.gain, found.synapse) == (0.75, 0.25, (0.5, 1.0))


@pytest.mark.parametrize(
    ("neuron", "words"),
    [
        (Halved(), "sets its membrane to no number"),
        (OfState(), "no factor of its input|something else than its membrane"),
        (Squared(), r"not linear between two spikes \(mul\)"),
        (Ternary(), "not linear|always gives"),
        (Gated(3), "not linear"),
        (ALIF(), "more than a membrane and a synaptic current"),
        (Leaky(0.5, reset_delay=True), "not linear"),
        (PSN(4), "all steps of a window"),
        (Plain(backend="eager"), "not traced"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_none_is_said(neuron, words):
    with pytest.raises(NotLinearError, match=words):
        membrane_of(neuron)
