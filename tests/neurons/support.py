"""Neurons of every kind, and currents that make them fire."""

import pytest
import torch
from torch import Tensor

from spiketriton.neurons import IF, LIF, PLIF

T, B, C = 5, 3, 4

NEURONS = {
    "if": lambda **options: IF(**options),
    "lif": lambda **options: LIF(tau=3.0, decay_input=False, **options),
    "lif_decay_input": lambda **options: LIF(tau=3.0, **options),
    "plif": lambda **options: PLIF(init_tau=3.0, decay_input=False, **options),
    "plif_decay_input": lambda **options: PLIF(init_tau=3.0, **options),
    "plif_per_channel": lambda **options: PLIF(init_tau=3.0, per_channel=C, **options),
}
every_neuron = pytest.mark.parametrize("kind", NEURONS)


def currents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Strong enough that about a third of the neurons fire at each step."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.7).to(dtype)
