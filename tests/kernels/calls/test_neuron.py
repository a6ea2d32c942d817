"""The record of a neuron's constants: taken apart for an operator, put together for a backend."""

import pytest
import torch

from spiketriton_kernels import SHAPES
from spiketriton_kernels.neuron import (
    KINDS,
    RESETS,
    TENSORS,
    Call,
    Emit,
    Neuron,
    as_small,
)
from tests.covering import each

PLAIN = dict(
    decay=0.5,
    gain=0.25,
    threshold=0.9,
    reset="soft",
    v_reset=0.0,
    detach_reset=True,
    shape="atan",
    height=0.7,
    width=0.3,
)


def neuron(**changes) -> Neuron:
    return Neuron(**PLAIN | changes)


@pytest.mark.parametrize(
    ("reset", "shape", "kind", "detach"), each(RESETS, SHAPES, KINDS, [True, False])
)
def test_words_carry_the_call_and_the_neuron(reset, shape, kind, detach):
    given = neuron(reset=reset, shape=shape, detach_reset=detach, kind=kind, levels=3)
    for i in range(6):  # each flag by itself
        call = Call("7" * i, *(i == j for j in range(6)))
        words = given.words(call)
        assert Call.of(words) == call
        back = Neuron.of(torch.zeros(1), [None] * len(TENSORS), words, given.floats())
        assert back == given


def test_floats_and_tensors_keep_their_places():
    values = torch.linspace(0.1, 0.8, len(TENSORS), dtype=torch.float64)
    names = dict(zip(TENSORS, values, strict=True))
    given = neuron(**names, eps=0.01, bn_scale=2.0)
    assert given.floats() == [1.0, 1.0, 1.0, 0.0, 0.7, 1.0, 1.0, 1.0, 0.01, 2.0]
    alif = neuron(eps=0.01, rho=0.8, beta=1.5)
    assert alif.floats() == [0.5, 0.25, 0.9, 0.0, 0.7, 0.3, 0.8, 1.5, 0.01, 1.0]
    x = torch.zeros(1).half()
    back = Neuron.of(x, values, given.words(Call()), given.floats())
    adapted = given.adapted(x, names)
    for name, value in names.items():
        for got in (getattr(back, name), getattr(adapted, name)):
            assert got.dtype == torch.float32
            assert got.shape == (1,)
            assert got.item() == pytest.approx(value.item())
    small = {name: getattr(adapted, name) for name in names}
    assert adapted.adapted(x, small) is adapted
    assert (back.v_reset, back.height) == (0.0, 0.7)
    assert (back.eps, back.bn_scale) == (0.01, 2.0)


def test_the_largest_parameter_says_whether_channels_differ():
    assert neuron().parameter_size == 1
    assert not neuron().per_channel
    assert neuron(decay=torch.ones(())).parameter_size == 1
    for name in ("decay", "threshold", "width"):
        given = neuron(**{name: torch.ones(3)})
        assert given.parameter_size == 3
        assert given.per_channel
        assert not neuron(**{name: torch.ones(1)}).per_channel
        assert neuron(**{name: torch.ones(0)}).parameter_size == 0
    assert neuron(mean=torch.zeros(1)).per_channel


def test_small_tensors_are_copied_only_where_they_must():
    x = torch.zeros(1, dtype=torch.bfloat16)
    good = torch.ones(3)
    assert as_small(good, x) is good
    for other in (good.double(), torch.ones(()), torch.ones(6)[::2], good.half()):
        small = as_small(other.requires_grad_(), x)
        assert small.dtype == torch.float32
        assert small.dim() == 1
        assert small.is_contiguous()
        assert not small.requires_grad
    assert as_small(good, x.double()).dtype == torch.float64


def test_what_a_walk_back_writes_survives_as_text():
    for name in Emit._fields:
        one = Emit(**{name: True})
        assert one.encode() == name
        assert Emit.decode(name) == one
    assert Emit.decode("") == Emit()
    assert Emit(dx=True, probe=True).encode() == "dx probe"
