"""The converted neuron against its closed form, and its state from call to call."""

import pytest
import torch

from spiketriton.config import replace
from spiketriton.convert.conversion import levels
from spiketriton.models import build_model
from spiketriton.models.converted import ConvertedIF, with_converted_neurons
from spiketriton.models.layers import EachStep
from tests.small_runs import small_recipe


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_neuron_rounds_its_current_to_levels(steps):
    """The closed form of converted.py, over both ends of the range."""
    neuron = ConvertedIF(3)
    neuron.threshold.copy_(torch.tensor([0.5, 1.0, 3.0]))
    current = torch.linspace(-2, 7, 1000).view(1, 1000, 1).expand(steps, 1000, 3).contiguous()
    expected = levels(current[0], neuron.threshold, steps)
    assert torch.allclose(neuron(current).mean(0), expected, atol=1e-5)
    assert [len(column.unique()) for column in expected.T] == [steps + 1] * 3


def test_a_neuron_starts_half_way_and_keeps_its_membrane_when_stateful():
    """Threshold 1: 0.5 + 0.25 a step reaches it at the 2nd and, after a soft reset, the 6th."""
    neuron = ConvertedIF(1)
    current = torch.full((6, 1, 1), 0.25)
    assert neuron(current).flatten().tolist() == [0, 1, 0, 0, 0, 1]
    assert neuron(current[:3]).flatten().tolist() == [0, 1, 0]  # from the start again
    neuron.stateful = True
    assert torch.cat([neuron(current[:3]), neuron(current[3:])]).flatten().tolist() == [
        0, 1, 0, 0, 0, 1,
    ]  # fmt: skip
    neuron.stateful, neuron.v = False, None
    neuron.shift.fill_(0.25)
    neuron.threshold.fill_(2.0)
    assert neuron(current).flatten().tolist() == [0, 2, 0, 0, 0, 2]  # twice the current


def test_the_pool_of_the_stem_moves_before_its_neuron():
    recipe = small_recipe(
        "model.name=resnet18", "model.stem=imagenet", "neuron.kind=if", "neuron.reset=soft",
        "model.norm=none",
    )  # fmt: skip
    net = with_converted_neurons(build_model(recipe, classes=10, channels=1, image_size=32))
    assert isinstance(net.bn1, EachStep)
    assert net.maxpool is None
    assert all(isinstance(neuron, ConvertedIF) for _, neuron in net.spiking_layers())
    currents = torch.randn(3, 2, 4, 16, 16)
    pooled = net.bn1(currents)
    expected = torch.stack([torch.nn.functional.max_pool2d(x, 3, 2, 1) for x in currents])
    assert torch.equal(pooled, expected)
    assert net(torch.randn(2, 1, 32, 32), 2).shape == (2, 2, 10)
    ms = build_model(replace(recipe, "model.block=ms"), classes=10, channels=1, image_size=32)
    net = with_converted_neurons(ms)  # has no neuron before its pool
    assert isinstance(net.maxpool, torch.nn.MaxPool2d)
    assert not isinstance(net.bn1, EachStep)
