"""Memory layouts: which are read in place, and where the channels lie."""

import pytest
import torch

from spiketriton_kernels.layout import (
    channel_axis,
    dense,
    is_dense,
)
from tests.kernels.support import as_layout, normal

SIZE = (3, 2, 4, 5, 6)


@pytest.mark.parametrize(
    ("layout", "in_place"),
    [
        ("contiguous", True),
        ("channels_last", True),
        ("permuted", True),
        ("strided", False),
        ("time_inside", False),
        ("expanded", False),
    ],
)
def test_dense_copies_only_what_kernels_cannot_read(layout, in_place):
    x = as_layout(normal(SIZE), layout)
    assert is_dense(x) == in_place
    copy = dense(x)
    assert (copy is x) == in_place
    assert is_dense(copy)
    assert torch.equal(copy, x)


@pytest.mark.parametrize("layout", ["channels_last", "permuted"])
def test_gaps_between_steps_count_but_for_a_single_step(layout):
    wide = as_layout(normal((6, *SIZE[1:])), layout)
    assert not is_dense(wide[::2])
    assert is_dense(wide[:1])
    assert is_dense(wide[::6])
    assert is_dense(wide[2:4])


def test_while_compiling_only_the_two_usual_orders_are_read_in_place(monkeypatch):
    """Strides are symbols there; what they say of another order would be a guess."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for layout in ("contiguous", "channels_last", "permuted"):
        assert is_dense(as_layout(normal(SIZE), layout)) == (layout != "permuted")
    assert not is_dense(as_layout(normal((6, *SIZE[1:])), "channels_last")[::2])


@pytest.mark.parametrize(
    ("size", "layout", "expected"),
    [
        ((3, 7), "contiguous", (1, 7)),
        ((3, 0), "contiguous", (1, 1)),
        ((3, 2, 4), "contiguous", (4, 1)),
        ((3, 2, 4, 5, 6), "contiguous", (4, 30)),
        ((3, 2, 4, 5, 6), "channels_last", (4, 1)),
        ((3, 2, 1, 5, 6), "contiguous", (1, 60)),
        ((3, 0, 1, 5), "contiguous", (1, 1)),
    ],
)
def test_where_the_channels_lie(size, layout, expected):
    """And the formula with which the kernels find an element's channel from its offset."""
    x = as_layout(torch.zeros(size), layout)
    assert channel_axis(x) == expected
    if x.dim() > 2 and x.numel():
        x += torch.arange(size[2]).view(-1, *[1] * (len(size) - 3))
        channels, inner = expected
        step = x[0].as_strided((x[0].numel(),), (1,))
        assert torch.equal(step, (torch.arange(len(step)) // inner % channels).to(x.dtype))
