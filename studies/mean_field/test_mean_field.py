"""The mean field against a closed form, against what was measured, and against a wide random net."""

import math

import pytest
import torch

from spiketriton.config import NeuronConfig, SurrogateConfig
from spiketriton.gradients.prober import overlap_of
from spiketriton.neurons import Norm, build_neuron
from studies.mean_field.run import MeanField


def neuron(kind="lif", shape="fast_sigmoid", width=1.0, **options):
    surrogate = SurrogateConfig(shape=shape, width=width)
    return build_neuron(NeuronConfig(kind=kind, surrogate=surrogate, **options))


@pytest.mark.parametrize(("width", "gamma"), [(0.5, 1.0), (0.2, 0.7)])
def test_one_time_step_has_a_closed_form(width, gamma):
    """gamma sqrt(P(|h - 1| < width)) / sd of the spikes, for h ~ N(0, gamma)."""

    def below(h: float) -> float:
        return 0.5 * (1 + math.erf(h / gamma / math.sqrt(2)))

    fires = 1 - below(1)
    expected = gamma * math.sqrt((below(1 + width) - below(1 - width)) / (fires * (1 - fires)))
    field = MeanField(neuron("if", "rectangle", width), steps=1, gamma=gamma)
    assert field.gain(6) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "detach", "measured", "within"),
    [
        # measured in 20 layers of 128, T = 10, Fashion-MNIST; IF is further off in batches of 32
        ("lif", True, {10: 3.37, 2: 1.96, 1: 1.37, 0.417: 0.83, 0.1: 0.38}, 0.02),
        ("lif", False, {1: 1.24}, 0.02),
        ("if", True, {10: 4.48, 1: 1.68, 0.417: 1.00, 0.1: 0.43}, 0.11),
        ("if", False, {1: 1.41}, 0.11),
    ],
)
def test_gains_are_those_measured_in_a_net(kind, detach, measured, within):
    for width, gain in measured.items():
        field = MeanField(neuron(kind, width=float(width), detach_reset=detach), steps=10)
        assert field.gain(20) == pytest.approx(gain, rel=within), width


def test_an_image_is_forgotten_as_in_a_wide_random_net():
    torch.manual_seed(0)
    wide, images, cell, norm = 512, 64, neuron(), Norm(512).requires_grad_(False)
    shown = torch.randn(images, wide)
    both = torch.cat([shown, shown + 0.05 * torch.randn(images, wide)])
    currents, kept = norm(both.expand(4, -1, wide)), []
    for _ in range(6):
        spikes = cell(currents)
        kept.append(overlap_of(spikes.mean(0), images))
        currents = norm(spikes @ torch.randn(wide, wide))
    predicted = MeanField(cell, steps=4).overlap(6, similar=1 / math.sqrt(1 + 0.05**2))
    assert kept[0] > 0.9 > 0.5 > kept[-1]
    assert predicted == pytest.approx(kept, abs=0.04)
