"""Spikes that a neuron leaves as bits: those of its spikes, for as long as these live and stay as they are."""

import pytest
import torch
from torch import Tensor

from spiketriton_kernels.backends import beside, words
from spiketriton_kernels.convolutions import tiles
from spiketriton_kernels.nn import LIF, PLIF, BatchNormLIF
from tests.covering import pairwise


@pytest.fixture(autouse=True)
def unit():
    if not tiles.available():
        pytest.skip("needs AMX and a compiler")


def drawn(T: int, *size: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(T * size[0], *size[1:]).mul(2).to(dtype)
    return x.contiguous(memory_format=torch.channels_last).unflatten(0, (T, size[0]))


def of(spikes: Tensor) -> Tensor | None:
    return words.of(spikes.flatten(0, 1).detach().permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("size", "neuron", "dtype"),
    pairwise(
        [(3, 16, 5, 7), (2, 48, 9, 4), (2, 1104, 3, 2), (40, 16, 32, 32)],
        [LIF, PLIF],
        [torch.float32, torch.bfloat16],
    ),
)
def test_they_are_the_bits_of_the_spikes(size, neuron, dtype):
    for T in (1, 3, 4):
        layer, x = BatchNormLIF(size[1], neuron()), drawn(T, *size, dtype=dtype)
        for residual in (None, drawn(T, *size, dtype=dtype)):
            spikes = layer(x, residual)
            assert torch.equal(of(spikes), tiles.bits(spikes.flatten(0, 1).permute(0, 2, 3, 1)))
        alone = LIF()(x.requires_grad_())
        assert torch.equal(of(alone), tiles.bits(alone.flatten(0, 1).permute(0, 2, 3, 1)))


def test_as_long_as_spikes_live_and_are_not_changed():
    x = drawn(2, 3, 16, 4, 4, dtype=torch.float32).requires_grad_()
    before = len(beside._kept)
    spikes = LIF()(x)
    assert of(spikes[:1]) is None
    assert of(spikes) is not None
    view = beside.hand_on(spikes, spikes.view_as(spikes))
    del spikes
    assert of(view) is not None
    with torch.no_grad():
        view.mul_(2)
    assert of(view) is None
    del view
    assert len(beside._kept) == before


def test_nobody_asks_for_them():
    """Without a gradient, of sums of spikes, in another layout, of other numbers of channels."""
    x = drawn(2, 3, 16, 4, 4, dtype=torch.float32)
    assert of(LIF()(x)) is None
    x.requires_grad_()
    assert of(BatchNormLIF(16)(x, spike_add=torch.ones_like(x))) is None
    assert of(LIF()(x.detach().contiguous().requires_grad_())) is None
    assert of(LIF()(drawn(2, 3, 24, 4, 4, dtype=torch.float32).requires_grad_())) is None
