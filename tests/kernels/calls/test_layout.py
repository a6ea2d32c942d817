"""Memory layouts: which are read in place, where the channels lie, how windows are cut."""

import pytest
import torch

from spiketriton_kernels.layout import (
    channel_axis,
    chunk_length,
    dense,
    gapless,
    is_dense,
    like,
    step_like,
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
    ("size", "stride", "expected"),
    [
        ((), (), True),
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 3, 4), (4, 8, 1), True),
        ((1, 3), (99, 1), True),
        ((2, 3), (4, 1), False),
        ((2, 3), (2, 1), False),
        ((2, 3), (0, 1), False),
        ((2, 2), (1, 1), False),
    ],
)
def test_gapless(size, stride, expected):
    assert gapless(size, stride) == expected


def test_a_value_takes_the_memory_order_of_another():
    x = as_layout(normal(SIZE), "channels_last")
    value = normal(SIZE, torch.bfloat16, seed=1)
    moved = like(value, x)
    assert moved.stride() == x.stride()
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved, value)
    assert like(moved, x) is moved
    step = step_like(value[0], x)
    assert step.stride() == x[0].stride()
    assert torch.equal(step, value[0])
    assert like(normal((2, 2)).t(), normal((2, 2))).stride() == (2, 1)
    flat = normal((1, 2, 1, 5))  # the stride of a single element says nothing
    assert like(flat.as_strided(flat.shape, (77, 5, 9, 1)), flat).stride() == (77, 5, 9, 1)


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


@pytest.mark.parametrize(
    ("T", "alone", "behind_norm"),
    [
        (1, 1, 1),
        (16, 16, 16),
        (17, 9, 6),
        (33, 11, 7),
        (64, 16, 8),
    ],
)
def test_windows_are_cut_into_even_chunks(T, alone, behind_norm):
    """Of at most 16 steps; behind a norm of at most 8, once there are several."""
    assert chunk_length(T, False) == alone
    assert chunk_length(T, True) == behind_norm
