"""Norms behind 1x1 convolutions by algebra: where networks take that way, and that it is the same network."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from spiketriton.models import algebra
from spiketriton.models.algebra import by_algebra
from spiketriton.models.blocks import BlockNetwork, MSBlock
from spiketriton.neurons import Norm, one_by_one
from spiketriton_kernels import pointwise
from tests.models.support import lively, parts_of

T, B, SIDE = 3, 2, 7


class Chain(BlockNetwork):
    """Three MS blocks and the last neuron; the first and the third change the shape, by strides of 1 and 2."""

    def __init__(self, bottleneck: bool = True, **model) -> None:
        parts = parts_of(name="resnet50", block="ms", time_steps=T, **model)
        super().__init__(parts, 8)
        plan = (
            [(8, 4, 1), (16, 4, 1), (16, 8, 2)]
            if bottleneck
            else [(4, 8, 1), (8, 8, 1), (8, 16, 2)]
        )
        self.layers = nn.ModuleList(MSBlock(parts, *one, bottleneck) for one in plan)
        self.neuron1, self.first = None, plan[0][0]
        self.neuron_last = parts.neuron(self.layers[-1].channels_out)

    def currents(self, dtype: torch.dtype) -> Tensor:
        draws = torch.Generator().manual_seed(3)
        x = torch.randn(T * B, self.first, SIDE, SIDE, generator=draws, dtype=dtype) + 0.5
        return x.to(memory_format=torch.channels_last).unflatten(0, (T, B)).requires_grad_()


def chain(*given, **model) -> Chain:
    torch.manual_seed(0)
    return lively(Chain(*given, **model)).double().to(memory_format=torch.channels_last)


@pytest.fixture
def taken(monkeypatch) -> list[str]:
    """Which of both ways a network takes, in order."""
    calls = []

    def noting(name: str, way):
        def noted(*given, **options):
            calls.append(name)
            return way(*given, **options)

        return noted

    for name in ("before_neuron", "as_residual"):
        monkeypatch.setattr(pointwise, name, noting(name, getattr(pointwise, name)))
    return calls


def results(net: Chain) -> dict[str, Tensor]:
    x = net.currents(torch.float64)
    out = net.through(net.layers, x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    found = {"out": out, "x": x.grad} | {
        name: p.grad for name, p in net.named_parameters() if p.grad is not None
    }
    return found | dict(net.named_buffers())


BOTH = ["as_residual", "before_neuron"]


@pytest.mark.parametrize(
    ("given", "ways"),
    [
        ({}, [*BOTH, "before_neuron", *BOTH]),
        ({"memory": "packed"}, [*BOTH, "before_neuron", *BOTH]),
        ({"norm": "tdbn"}, [*BOTH, "before_neuron", *BOTH]),
        ({"bottleneck": False}, ["as_residual"] * 2),
    ],
)
def test_it_is_the_same_network(taken, given, ways):
    usual, other = chain(**given), chain(**given)
    expected = results(usual)
    assert taken == []
    with by_algebra():
        found = results(other)
    assert taken == ways
    assert found.keys() == expected.keys()
    assert 0.02 < expected["out"].mean() < 0.98
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-11, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_recomputed_block_takes_it_again_and_moves_no_statistics(taken):
    usual, other = chain(), chain(checkpoint_blocks=True)
    expected = results(usual)
    with by_algebra():
        found = results(other)
    assert taken.count("before_neuron") == 6
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-12)


def grouped(net: Chain) -> None:
    """Those of two groups each."""
    for block in net.layers:
        for parent, name in ((block, "conv3"), (block.downsample, "0")):
            if parent is not None:
                conv = parent.get_submodule(name)
                new = nn.Conv2d(
                    conv.in_channels, conv.out_channels, 1, conv.stride, groups=2, bias=False
                )
                setattr(parent, name, new.double().to(memory_format=torch.channels_last))


def shared(net: Chain) -> None:
    for norm in net.modules():
        if isinstance(norm, Norm):
            norm.synchronised = SimpleNamespace()


@pytest.mark.parametrize(
    ("change", "model"),
    [
        (grouped, {}),
        (Chain.eval, {}),
        (lambda net: None, {"norm": "tebn"}),
        (lambda net: None, {"norm": "step_bn"}),
    ],
    ids=["groups", "eval", "tebn", "step_bn"],
)
def test_elsewhere_norms_take_their_passes(taken, change, model):
    usual = chain(**model)
    change(usual)
    other = copy.deepcopy(usual)
    expected = results(usual)
    with by_algebra():
        found = results(other)
    assert taken == []
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_norms_that_ranks_share_or_that_are_called_one_by_one_take_their_passes(taken):
    net = chain()
    conv, norm = net.layers[0].downsample
    x = net.currents(torch.float64)
    with by_algebra():
        assert algebra._serves(conv, norm, x)
        assert not algebra._serves(conv, norm, x.contiguous())
        assert not algebra._serves(conv, norm, x.half())
        with one_by_one(net):
            results(net)
        assert taken == []
        shared(net)
        assert not algebra._serves(conv, norm, x)


def test_it_is_off_where_it_has_not_been_proved_faster():
    """Neither a CPU's measurement nor a GPU's is there (profiling/LOG.md)."""
    assert algebra.FASTER_BY_ALGEBRA == {"cpu": False, "cuda": False}
    with by_algebra():
        assert algebra.FASTER_BY_ALGEBRA == {"cpu": True, "cuda": True}
    assert not any(algebra.FASTER_BY_ALGEBRA.values())


def test_in_half_precision_the_products_are_of_what_autocast_gives_a_convolution(taken):
    net = chain().float()
    x = net.currents(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), by_algebra():
        out = net.through(net.layers, x)
    assert out.dtype == torch.bfloat16
    assert len(taken) == 5
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in net.layers.parameters() if p.grad is not None)
