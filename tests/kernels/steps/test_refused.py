"""What no kernel can be made of is refused by name, with the line; ``backend="eager"`` runs it all the same."""

import re

import pytest
import torch

from spiketriton_kernels import Surrogate, use_backend
from spiketriton_kernels.neuron import Norm
from spiketriton_kernels.neurons.definition import normalised
from spiketriton_kernels.nn import LIF, SpikingNeuron
from spiketriton_kernels.steps.graph import Graph
from tests.kernels.steps.neurons import Adaptive, Gated, Plain
from tests.kernels.support import normal


class _Of(SpikingNeuron):
    states = ("v",)


class Branches(_Of):
    def step(self, x, v):
        h = v + x
        if h.mean() > 0:  # the branch
            h = 2 * h
        return self.fire(h - 1), h


class Reads(_Of):
    def step(self, x, v):
        h = v + x + float(x.detach().flatten()[0])
        return self.fire(h - 1), h


class Draws(_Of):
    def step(self, x, v):
        h = v + x + torch.randn_like(x)  # the draw
        return self.fire(h - 1), h


class Means(_Of):
    def step(self, x, v):
        h = v + x - x.mean()  # the mean
        return self.fire(h - 1), h


class Reshapes(_Of):
    def step(self, x, v):
        h = (v + x).flatten()  # the shape
        return self.fire(h - 1).view_as(x), h.view_as(x)


class Writes(_Of):
    def step(self, x, v):
        v.mul_(0.5)  # in place
        return self.fire(v + x - 1), v


class Rounds(_Of):
    def step(self, x, v):
        h = (v + x).to(torch.bfloat16).float()  # the dtype
        return self.fire(h - 1), h


class Powers(_Of):
    def step(self, x, v):
        h = (v + x).abs() ** 1.7  # the power
        return self.fire(h - 1), h


class Table(_Of):
    def __init__(self, **options):
        super().__init__(**options)
        self.table = torch.ones(3, 1)

    def step(self, x, v):
        h = v + x * self.table  # the table
        return self.fire(h - 1), h


class Remembers(_Of):
    def step(self, x, v):
        h = v + x
        self.last = h
        return self.fire(h - 1), h


REFUSED = {
    Branches: (r"looks at a value", "# the branch"),
    Reads: (r"", "float(x.detach().flatten()[0])"),
    Draws: (r"draws random numbers \(randn_like\)", "# the draw"),
    Means: (r"calls mean", "# the mean"),
    Reshapes: (r"changes shapes", "# the shape"),
    Writes: (r"writes in place \(mul_\)", "# in place"),
    Rounds: (r"computes in torch.bfloat16", "# the dtype"),
    Powers: (r"calls pow with the exponent 1\.7", "# the power"),
    Table: (r"reads a tensor of shape \(3, 1\) that it was not given", "# the table"),
    Remembers: (r"sets self\.last", ""),
}


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_what_is_refused_and_where(cls):
    what, line = REFUSED[cls]
    for _ in range(2):  # also the second time
        with pytest.raises(
            ValueError, match=rf"^{cls.__name__}\.step .*{what}.*; accepted: "
        ) as caught:
            cls()(normal((3, 2, 3, 4)))
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
        assert 'backend="eager"' in str(caught.value)
    if line:
        assert re.search(r", line \d+ of .*test_refused\.py: ", str(caught.value))


@pytest.mark.parametrize(
    "cls", [c for c in REFUSED if c is not Remembers], ids=lambda cls: cls.__name__
)
def test_eager_runs_it_all_the_same(cls):
    neuron = cls(backend="eager")
    x = normal((3, 2, 3, 4)).requires_grad_()
    torch.manual_seed(0)
    spikes = neuron(x)
    spikes.sum().backward()
    torch.manual_seed(0)
    assert torch.equal(spikes, neuron.define(x))
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert x.grad.abs().sum() > 0


def test_eager_sets_what_a_step_sets():
    neuron = Remembers(backend="eager")
    neuron(normal((3, 2, 3, 4)))
    assert neuron.last.shape == (2, 3, 4)


def test_eager_has_norm_residual_states_and_trace():
    kernels, eager = (
        Adaptive(3, stateful=True, store_v_seq=True),
        Adaptive(3, stateful=True, store_v_seq=True, backend="eager"),
    )
    y, residual = normal((4, 2, 3, 5)), normal((4, 2, 3, 5), seed=1)
    norm = [torch.ones(3), torch.zeros(3), torch.full((3,), 0.1), torch.full((3,), 1.5), False]
    outs = [n.fused_norm(y, Norm(*norm), residual, return_current=True) for n in (kernels, eager)]
    assert torch.equal(outs[0][0], outs[1][0])
    torch.testing.assert_close(outs[0][1], normalised(y, Norm(*norm)) + residual)
    torch.testing.assert_close(outs[1][1], outs[0][1])
    torch.testing.assert_close(kernels.v, eager.v)
    torch.testing.assert_close(kernels.v_seq, eager.v_seq)
    eager.probe = torch.zeros(4, 8, requires_grad=True)
    with pytest.raises(ValueError, match='a probe with Adaptive, whose backend is "eager"'):
        eager(y)


def test_what_a_class_has_to_say():
    class Stateless(SpikingNeuron):
        def step(self, x):
            return self.fire(x)

    with pytest.raises(TypeError, match=r"Stateless\.states = \(\); accepted: the names"):
        Stateless()

    class Starts(_Of):
        start = {"w": 1.0}  # noqa: RUF012

        def step(self, x, v):
            return self.fire(x), v

    with pytest.raises(ValueError, match=r"Starts\.start names w; accepted: v"):
        Starts()(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"backend 'fast' of Plain: accepted: auto, eager"):
        Plain(backend="fast")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda s, v: s, r"returned a Tensor; accepted: spikes, v"),
        (lambda s, v: (s, v, v), r"returned 3 values; accepted: spikes, v"),
        (lambda s, v: (s, 0.0), r"returned a float as v; accepted: tensors spikes, v"),
        (
            lambda s, v: (s[0], v),
            r"returned spikes of shape \(3, 4\); accepted: .*each of the shape of x",
        ),
    ],
)
def test_what_a_step_has_to_return(result, message):
    class Returns(_Of):
        def step(self, x, v):
            return result(self.fire(x - 1), v + x)

    with pytest.raises(TypeError, match=rf"Returns\.step {message}"):
        Returns(backend="eager")(normal((2, 2, 3, 4)))


def test_constants_that_fit_no_input():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 4\); accepted with 3 values of beta"):
        Adaptive(3)(torch.ones(2, 2, 4))


def test_source_is_what_runs():
    neuron = Adaptive(3)
    cpp, triton = neuron.source("cpp"), neuron.source("triton")
    assert "inline Mask forth(const Constants &c, V x, V *states, V *kept)" in cpp
    assert "def back(kept, c, grad, by, own_slope: tl.constexpr, own_area: tl.constexpr):" in triton
    assert "surrogate" not in triton.split("def forth")[1].split("def back")[0]
    assert neuron.traced().name.startswith("Adaptive_")
    assert Adaptive(5).source("cpp") == cpp  # made once for all of them
    with pytest.raises(ValueError, match=r"source\('ptx'\): accepted: triton, cpp"):
        neuron.source("ptx")
    assert "struct Step0" in LIF().source("cpp")


def test_steps_that_wait_for_the_one_before():
    """Where exp and its like lie between the states; not where they are of the current alone."""

    class Feeds(_Of):
        def step(self, x, v):
            h = v + torch.exp(x)
            return self.fire(h - 1), h

    assert [neuron.traced().waits for neuron in (Plain(), Feeds(), Gated(3))] == [
        False,
        False,
        True,
    ]


def test_all_widths_are_one_step():
    names = {Plain(surrogate=Surrogate("atan", width=w)).traced().name for w in (0.3, 0.7, 1.1)}
    assert len(names) == 1


def test_the_definition_of_a_kind_of_ours():
    x = normal((4, 2, 3)).requires_grad_()
    lif = LIF(tau=3.0)
    with use_backend("torch"):
        assert torch.equal(lif.define(x), lif(x))


def test_a_custom_function_keeps_its_gradient():
    """Straight-through rounding, as of I-LIF: autograd's own backward is what is traced."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.round(torch.clamp(x, 0, 4))

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return torch.where((x >= 0) & (x <= 4), grad, 0.0)

    class Levels(_Of):
        def step(self, x, v):
            h = 0.25 * v + x
            s = Round.apply(h)
            return s, h - s

    neuron = Levels()
    x = normal((5, 2, 3), std=3.0).requires_grad_()
    weights = normal(x.shape, seed=1)
    found = [
        (s, *torch.autograd.grad((s * weights).sum(), x)) for s in (neuron(x), neuron.define(x))
    ]
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][0].max() > 1
    assert not neuron.traced().is_binary


def test_the_cut_is_the_smallest_and_latest():
    graph = Graph()
    x, v, w = (graph.add("input", name) for name in "xvw")
    h = graph.add("add", graph.add("mul", v, 0.5), x)
    u = graph.add("sub", h, 1.0)
    fired = graph.add("ge", u, 0.0)
    end = len(graph.nodes)
    assert graph.cut([x, v, w], [fired, u], end) == [u]
    assert graph.cut([x, v, w], [fired], end) == [u]  # nothing that is true or false
    assert graph.cut([x, v, w], [u, w], end) == sorted([w, u])
    assert graph.cut([x, v, w], [v, x, h], end) == sorted([x, v])
    late = graph.add("exp", u)
    assert graph.cut([x, v, w], [late], end) == [u]  # what is numbered from end on is not kept
