"""The converted neuron against its closed form, and its state from call to call."""

import pytest
import torch

from spiketriton.trained.conversion import levels
from spiketriton.trained.converted import ConvertedIF


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_neuron_rounds_its_current_to_levels(steps):
    """The closed form of converted.py, over both ends of the range."""
    neuron = ConvertedIF(3)
    neuron.threshold.copy_(torch.tensor([0.5, 1.0, 3.0]))
    current = torch.linspace(-2, 7, 1000).view(1, 1000, 1).expand(steps, 1000, 3).contiguous()
    expected = levels(current[0], neuron.threshold, steps)
    assert torch.allclose(neuron(current).mean(0), expected, atol=1e-5)
    assert [len(column.unique()) for column in expected.T] == [steps + 1] * 3
