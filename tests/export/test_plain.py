"""A file's currents against the network's: rounding is forgiven, an image whose spikes hang on it is left out."""

import math

import torch
from torch import nn

from spiketriton.export.plain import CLOSE, ROUNDING, Compared, compared


class OfAStep(nn.Module):
    """Currents [1, B, 2]: the pixels of an image [B, 2], and whether the second is above 1."""

    def forward(self, x):
        return torch.stack([10 * x[:, 0], (x[:, 1] >= 1).float()], 1).unsqueeze(0)


PIXELS = torch.tensor([[0.5, 0.0], [0.5, 1.0 - ROUNDING / 4], [1.0, 2.0]])


def test_what_rounding_moves_is_no_difference():
    expected = OfAStep()(PIXELS)
    found = compared(OfAStep(), PIXELS, expected * (1 + 1e-6))
    assert found.agrees
    assert (found.hanging, found.images) == (0, 3)
    assert 0 < found.difference < 2e-6


def test_a_spike_on_rounding_is_left_out_and_another_is_not():
    flipped = OfAStep()(PIXELS)
    flipped[0, 1, 1] = 1.0  # which rounding may do, too
    found = compared(OfAStep(), PIXELS, flipped)
    assert found == Compared(0.0, 1, 3)
    assert found.agrees
    assert "but for 1 of 3 images" in str(found)
    assert not Compared(0.0, 2, 3).agrees
    flipped[0, 0, 1] = 1.0
    found = compared(OfAStep(), PIXELS, flipped)
    assert not found.agrees
    assert found.difference > CLOSE


def test_what_cannot_be_told_does_not_agree():
    expected = OfAStep()(PIXELS)
    expected[0, 0, 0] = math.nan
    wrong = compared(OfAStep(), PIXELS, expected)
    assert not wrong.agrees
    right = Compared(0.0, 0, 2)
    for both in (wrong.and_of(right), right.and_of(wrong)):
        assert not both.agrees
        assert both.images == 5
    flipped = 1 - OfAStep()(PIXELS[1:2])
    flipped[0, 0, 0] = 5.0
    alone = compared(OfAStep(), PIXELS[1:2], flipped)
    assert alone == Compared(math.inf, 1, 1)
    assert not alone.agrees
    assert alone.and_of(right) == right.and_of(alone) == Compared(0.0, 1, 3)
