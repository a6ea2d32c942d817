"""A neuron by its step: every backend gives the spikes of the loop to the bit, and its gradients."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    use_backend,
)
from spiketriton_kernels.cache import cache_folder
from spiketriton_kernels.neuron import Norm
from spiketriton_kernels.neurons.definition import normalised
from spiketriton_kernels.nn import SpikingNeuron
from tests.conftest import need_native
from tests.kernels.backends.test_native import as_on_a_new_machine
from tests.kernels.steps.neurons import EXACT, NEURONS, Adaptive, Gated, Mixed, Plain, Ternary, made
from tests.kernels.support import as_layout, dyadic, normal

C = 3
BACKENDS = ("triton", "native", "torch")


def grads(neuron, spikes, x, weights):
    wanted = [x, *neuron.parameters()]
    return torch.autograd.grad((spikes.float() * weights).sum(), wanted, allow_unused=True)


def assert_close(found, expected, tolerance=2e-5):
    for a, b in zip(found, expected, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= tolerance * b.abs().max() + 1e-7


class Case(NamedTuple):
    """A neuron, and what it is shown."""

    make: Callable[[], SpikingNeuron]
    size: tuple[int, ...]
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    draw: Callable[..., torch.Tensor] = partial(normal, std=1.5)
    near: float = 2e-5
    backends: Sequence[str] = BACKENDS


def alike():
    """Constants that are one number for all neurons, of which each channel has a gradient of its own."""
    neuron = Adaptive(C)
    neuron.beta.data.fill_(0.25)
    return neuron


PLACES = [
    ((1, 1, C), "contiguous"), ((5, 2, C, 5, 3), "contiguous"), ((4, 3, C, 3, 3), "channels_last"),
    ((21, 2, C, 7), "contiguous"), ((3, 2, C, 2, 2), "time_inside"), ((64, 1, C, 2), "contiguous"),
]  # fmt: skip
LENGTHS = [
    ((1, 3, 70, 3), "contiguous"), ((2, 2, 5, 23, 29), "contiguous"), ((3, 2, 3, 701), "contiguous"),
    ((2, 7, 301), "contiguous"), ((3, 2, 40, 5, 3), "channels_last"),
]  # fmt: skip
"""Channels shorter than a vector, longer than a block of the C++ pass, and ends that fill neither."""
CASES = [
    *(
        Case(partial(made, cls, C), *place, backends=BACKENDS[(i + j) % 2 :])
        for i, cls in enumerate(NEURONS)
        for j, place in enumerate(PLACES)
    ),
    *(Case(partial(Adaptive, place[0][2]), *place) for place in LENGTHS),
    Case(alike, (2, 1, C, 4001)),  # blocks that lie in one channel
    Case(partial(Adaptive, C), (6, 2, C, 5), dtype=torch.bfloat16, near=2e-2),
    Case(partial(Adaptive, C), (6, 2, C, 5), dtype=torch.float16, near=2e-2, backends=["triton", "torch"]),
    Case(Ternary, (6, 2, C, 5), dtype=torch.float64),
    Case(Ternary, (6, 2, C, 5), dtype=torch.bfloat16, near=2e-2, backends=["triton", "torch"]),
    *(Case(partial(made, cls, C), (8, 16, C, 4), draw=partial(dyadic, low=-2.0)) for cls in EXACT),
    *(Case(partial(Gated, C, shape), (4, 3, C, 5), near=5e-5) for shape in ("sigmoid", "rectangle", "gaussian")),
    *(  # in C++ those of Mixed and Adaptive
        Case(partial(Gated, C, shape), (4, 3, C, 5), near=5e-5, backends=["triton", "torch"])
        for shape in ("fast_sigmoid", "atan")
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "case"),
    [(backend, case) for case in CASES for backend in case.backends],
    indirect=["backend"],
)
def test_spikes_are_the_loops_to_the_bit_and_gradients_those_of_autograd(backend, device, case):
    assert_as_the_loop(case, device)


def test_optimised_as_for_users_too(monkeypatch):
    """In C++, of which tests take -Og: a neuron of every operation that can be had exactly."""
    need_native()
    as_on_a_new_machine(monkeypatch, cache_folder())
    with use_backend("native"):
        for place in PLACES[1:4]:
            assert_as_the_loop(Case(partial(Mixed, C), *place), "cpu")


def assert_as_the_loop(case, device):
    neuron = case.make().to(device)
    x = as_layout(case.draw(case.size, case.dtype, device), case.layout).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    spikes, expected = neuron(x), neuron.define(x)
    assert expected.detach().float().std() > 0.1 or x.numel() < 10
    assert spikes.dtype == x.dtype
    assert spikes.stride() == x.stride() or case.layout == "time_inside"
    differing = (spikes != expected).float().mean()
    assert differing == 0 if type(neuron) in EXACT else differing < 1e-3
    if differing == 0:
        found, truth = (grads(neuron, s, x, weights) for s in (spikes, expected))
        assert_close(found, truth, case.near)


@pytest.mark.parametrize("cls", [Adaptive, Gated, Mixed], ids=lambda cls: cls.__name__)
def test_gradients_are_no_farther_from_float64_than_pytorchs(backend, device, cls):
    neuron = made(cls, C).to(device)
    x = normal((7, 4, C, 33), device=device).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    single = grads(neuron, neuron.define(x), x, weights)
    found = grads(neuron, neuron(x), x, weights)
    double = neuron.double()
    wide = x.detach().double().requires_grad_()
    spikes = double.define(wide)
    neuron_spikes = neuron.float()(x)
    if not torch.equal(spikes.float(), neuron_spikes):
        pytest.skip("a spike differs between the dtypes")  # not with this seed
    truth = grads(double.double(), double.define(wide), wide, weights.double())
    for mine, theirs, true in zip(found, single, truth, strict=True):
        if true is None:
            continue
        error, reference = (mine - true).abs().max(), (theirs - true).abs().max()
        assert error <= 2 * reference + 2e-6 * true.abs().max()


class Exponential(SpikingNeuron):
    states = ("v",)

    def step(self, x, v):
        h = 0.5 * v + torch.exp(x)
        s = self.fire(h - 1.0)
        return s, torch.where(s > 0, 0.0, h)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_slope_that_is_infinite_of_zeros_beyond_the_tensor_reaches_no_gradient(
    backend, device, layout
):
    """A norm makes 1,000 of a zero where the mean is -100: its exponential is infinite, and 0 times that no number."""
    neuron = Exponential()
    y = as_layout(normal((3, 3, 5, 3, 3), device=device, mean=-100.0, std=0.1), layout)
    weight, bias = (torch.full((5,), v, device=device).requires_grad_() for v in (1.0, 0.0))
    leaves = [y.requires_grad_(), weight, bias]
    upstream = normal(y.shape, device=device, seed=1)
    spikes = neuron.fused_norm(y, Norm(weight, bias, None, None))
    expected = neuron.define(normalised(y, Norm(weight, bias, None, None)))
    assert torch.equal(spikes, expected)
    found, truth = (torch.autograd.grad((s * upstream).sum(), leaves) for s in (spikes, expected))
    assert_close(found, truth, 1e-3)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_step_that_is_called_by_hand(learnt):
    """It is plain PyTorch, the surrogate too."""
    width = torch.tensor(0.7, requires_grad=True)
    neuron = Adaptive(C, surrogate=Surrogate("atan", width=width if learnt else 0.7))
    x = normal((5, 4, C), std=1.5).requires_grad_()
    weights, wanted = normal(x.shape, seed=1), [x, *neuron.parameters()]
    wanted += [width] if learnt else []
    states, by_hand = [torch.full((4, C), -0.25), torch.zeros(4, C)], []
    for x_t in x:
        s, *states = neuron.step(x_t, *states)
        by_hand.append(s)
    assert torch.equal(neuron(x), torch.stack(by_hand))
    found = torch.autograd.grad((torch.stack(by_hand) * weights).sum(), wanted)
    assert_close(found, torch.autograd.grad((neuron(x) * weights).sum(), wanted))


def test_outside_is_outside_of_all_surrogates_of_a_step(backend, device):
    neuron = Ternary(surrogate=Surrogate("triangle", width=0.5)).to(device)
    x = torch.tensor([1.0, -1.25, 1.75, 0.25, -3.0], device=device).view(1, 1, 5).requires_grad_()
    neuron.probe = torch.zeros(1, len(PROBE_FIELDS), device=device, requires_grad=True)
    neuron(x).sum().backward()
    assert neuron.probe.grad[0, PROBE_FIELDS.index("outside")] == 3


def test_what_a_step_asks_of_its_spikes(backend, device):
    """Comparisons of a 1 or 0 become those of the potential, where they say the same."""

    class Asks(SpikingNeuron):
        states = ("v",)

        def step(self, x, v):
            h = 0.5 * v + x
            s, r = self.fire(h - 1.0), self.fire(x + 0.5)
            v = torch.where(s > 0, 0.25, h) + 0.5 * (s == 0) + 0.125 * (r > -1) * (r < 0.5)
            return s, v + 2.0 * ((r != 1) & (s >= 1)) + torch.where(s.bool(), r, -r)

    neuron = Asks()
    x = normal((4, 3, 50), device=device, std=1.5)
    x[0, 0, 0] = float("nan")
    assert torch.equal(neuron(x), neuron.define(x))
    for language in ("cpp", "triton"):
        assert neuron.source(language).split("back(")[0].count(">=") == 2


def test_it_learns_after_a_call_in_inference_mode(backend, device):
    neuron, x = Plain(), normal((3, 2, C), device=device, std=1.5)
    with torch.inference_mode():
        expected = neuron(x)
    spikes = neuron(x.requires_grad_())
    assert torch.equal(spikes, expected)
    spikes.sum().backward()
    assert x.grad.any()


class Numbers(Plain):
    """Reads a number of its own, which is compiled in."""

    keeps = 0.5

    def step(self, x, v):
        h = self.keeps * v + x
        s = self.fire(h - 1.0)
        return s, torch.where(s.detach() > 0, 0.0, h)


class Unit(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x):
        return self.neuron(x * 1.0)


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (partial(Adaptive, C), "surrogate", [Surrogate("atan", width=w) for w in (0.3, 0.8)]),
        (Numbers, "keeps", [0.5, 0.9]),
    ],
)
def test_traced_as_one_graph_which_follows_its_numbers(make, name, values):
    unit = Unit(make())
    x = normal((3, 2, C, 4), std=1.5).requires_grad_()
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    weights, seen = normal(x.shape, seed=1), []
    with use_backend("torch"):
        for value in values:
            setattr(unit.neuron, name, value)
            spikes, expected = compiled(x), unit.neuron.define(x)
            assert torch.equal(spikes, expected)
            seen.append(grads(unit, spikes, x, weights))
            assert_close(seen[-1], grads(unit, expected, x, weights))
    assert not torch.equal(seen[0][0], seen[1][0])
