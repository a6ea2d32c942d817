"""A neuron by its step: every backend gives the spikes of the loop to the bit, and its gradients."""

from functools import partial

import pytest
import torch
from torch import nn

from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    multistep_lif,
    pack_spikes,
    unpack_spikes,
    use_backend,
)
from spiketriton_kernels.cache import cache_folder
from spiketriton_kernels.neuron import Norm
from spiketriton_kernels.neurons.definition import normalised
from spiketriton_kernels.nn import BatchNormLIF, SpikingNeuron
from tests.conftest import need_native
from tests.kernels.backends.test_native import as_on_a_new_machine
from tests.kernels.steps.neurons import EXACT, NEURONS, Adaptive, Gated, Mixed, Plain, Ternary, made
from tests.kernels.support import HALF, as_layout, dyadic, normal

C = 3
NAMES = [cls.__name__ for cls in NEURONS]


def grads(neuron, spikes, x, weights):
    wanted = [x, *neuron.parameters()]
    return torch.autograd.grad((spikes.float() * weights).sum(), wanted, allow_unused=True)


def assert_close(found, expected, tolerance=2e-5):
    for a, b in zip(found, expected, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        scale = b.abs().max().clamp(min=1.0)
        assert (a - b).abs().max() <= tolerance * scale


PLACES = [
    ((1, 1, C), "contiguous"), ((5, 2, C, 5, 3), "contiguous"), ((4, 3, C, 3, 3), "channels_last"),
    ((21, 2, C, 7), "contiguous"), ((3, 2, C, 2, 2), "time_inside"), ((64, 1, C, 2), "contiguous"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "cls", "size", "layout"),
    [
        pytest.param(backend, cls, *place, id=f"{backend}-{name}-{place[1]}-{place[0][0]}")
        for i, (cls, name) in enumerate(zip(NEURONS, NAMES, strict=True))
        for j, place in enumerate(PLACES)
        for backend in ("triton", "native", "torch")
        if backend != "triton" or (i + j) % 2 == 0  # interpreted
    ],
    indirect=["backend"],
)
def test_spikes_are_the_loops_to_the_bit_and_gradients_those_of_autograd(
    backend, device, cls, size, layout
):
    assert_as_the_loop(cls, device, size, layout)


def test_optimised_as_for_users_too(monkeypatch):
    """In C++, of which tests take -Og: a neuron of every operation that can be had exactly."""
    need_native()
    as_on_a_new_machine(monkeypatch, cache_folder())
    with use_backend("native"):
        for size, layout in PLACES[1:4]:
            assert_as_the_loop(Mixed, "cpu", size, layout)


def assert_as_the_loop(cls, device, size, layout):
    neuron = made(cls, C).to(device)
    x = as_layout(normal(size, device=device, std=1.5), layout).requires_grad_()
    weights = normal(size, device=device, seed=1)
    spikes, expected = neuron(x), neuron.define(x)
    assert expected.detach().float().std() > 0.1 or x.numel() < 10
    assert spikes.stride() == x.stride() or layout == "time_inside"
    differing = (spikes != expected).float().mean()
    assert differing == 0 if cls in EXACT else differing < 1e-3
    if differing == 0:
        found, truth = (grads(neuron, s, x, weights) for s in (spikes, expected))
        assert_close(found, truth)


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        ((1, 3, 70, 3), "contiguous"), ((2, 2, 5, 23, 29), "contiguous"), ((3, 2, 3, 701), "contiguous"),
        ((2, 7, 301), "contiguous"), ((3, 2, 40, 5, 3), "channels_last"),
    ],
)  # fmt: skip
def test_channels_of_any_length_learn(backend, device, size, layout):
    """Shorter than a vector, longer than a block of the C++ pass, and ends that fill neither."""
    neuron = Adaptive(size[2]).to(device)
    x = as_layout(normal(size, device=device, std=1.5), layout).requires_grad_()
    weights = normal(size, device=device, seed=1)
    spikes, expected = neuron(x), neuron.define(x)
    assert torch.equal(spikes, expected)
    found, truth = (grads(neuron, s, x, weights) for s in (spikes, expected))
    for mine, theirs in zip(found, truth, strict=True):
        assert (mine - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def test_channels_that_begin_alike_learn_apart(backend, device):
    """Constants that are one number for all neurons, blocks that lie in one channel, and a gradient for each."""
    neuron = Adaptive(C).to(device)
    neuron.beta.data.fill_(0.25)
    x = normal((2, 1, C, 4001), device=device, std=1.5).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    found, truth = (grads(neuron, run(x), x, weights) for run in (neuron, neuron.define))
    assert_close(found, truth)


@pytest.mark.parametrize(
    ("backend", "cls", "dtype"),
    [
        (backend, cls, dtype)
        for cls, *dtypes in ((Adaptive, *HALF), (Ternary, torch.float64, torch.bfloat16))
        for dtype in dtypes
        for backend in ("triton", "native", "torch")
        if backend != "native" or dtype == dtypes[0]  # each is compiled
    ],
    indirect=["backend"],
    ids=str,
)
def test_in_other_dtypes(backend, device, cls, dtype):
    neuron = made(cls, C).to(device)
    x = normal((6, 2, C, 5), device=device, std=1.5).to(dtype).requires_grad_()
    weights = normal((6, 2, C, 5), device=device, seed=1)
    spikes, expected = neuron(x), neuron.define(x)
    assert spikes.dtype == dtype
    assert torch.equal(spikes, expected)
    assert_close(
        grads(neuron, spikes, x, weights),
        grads(neuron, expected, x, weights),
        2e-2 if dtype.itemsize == 2 else 2e-5,
    )


@pytest.mark.parametrize("cls", EXACT, ids=lambda cls: cls.__name__)
def test_ties_fall_as_in_the_loop(backend, device, cls):
    neuron = made(cls, C).to(device)
    x = dyadic((8, 16, C, 4), device=device, low=-2.0)
    assert torch.equal(neuron(x), neuron.define(x))


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


def test_a_lif_as_a_step_is_lif(backend, device):
    x = normal((6, 3, C, 9), device=device, std=1.5).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    neuron = Plain()
    spikes, expected = neuron(x), multistep_lif(x, decay=0.5, surrogate=neuron.surrogate)
    assert torch.equal(spikes, expected)
    assert_close(grads(neuron, spikes, x, weights), grads(neuron, expected, x, weights), 2e-6)


@pytest.mark.parametrize("cls", [Adaptive, Gated], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("T", [1, 4, 18])
def test_behind_batch_norm_and_a_residual(backend, device, cls, T):
    """Norm, residual and what is added to the spikes, in one operation and by the definition."""
    neuron = made(cls, C).to(device)
    y, residual, add = (
        normal((T, 4, C, 6), device=device, seed=seed).requires_grad_() for seed in range(3)
    )
    weight, bias = (
        torch.linspace(*ends, C, device=device).requires_grad_()
        for ends in ((0.8, 1.5), (-0.2, 0.6))
    )
    moved, kept = ([torch.zeros(C, device=device), torch.ones(C, device=device)] for _ in "12")
    out = neuron.fused_norm(y, Norm(weight, bias, *moved), residual, add, return_current=True)
    current = normalised(y, Norm(weight, bias, *kept)) + residual
    spikes = neuron.define(current) + add
    torch.testing.assert_close(moved, kept)
    assert (out[0] != spikes).float().mean() < 2e-3
    torch.testing.assert_close(out[1], current, rtol=1e-4, atol=1e-5)
    if torch.equal(out[0], spikes):
        weights = normal(y.shape, device=device, seed=4)
        inputs = [y, residual, add, weight, bias, *neuron.parameters()]
        found, truth = (
            torch.autograd.grad((s * weights + c * 0.1).sum(), inputs, retain_graph=True)
            for s, c in (out, (spikes, current))
        )
        assert_close(found, truth, 5e-5)


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


@pytest.mark.parametrize("T", [1, 3, 17])
def test_chunks_continue_the_window_and_hand_gradients_back(backend, device, T):
    whole, parts = (Adaptive(C, stateful=stateful).to(device) for stateful in (False, True))
    x = normal((2 * T, 2, C, 5), device=device, std=1.5).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    expected = whole(x)
    spikes = torch.cat([parts(x[:T]), parts(x[T:])])
    assert parts.held.shape == (2, 2, C, 5)
    assert torch.equal(spikes, expected)
    assert_close(grads(parts, spikes, x, weights), grads(whole, expected, x, weights))
    with pytest.raises(ValueError, match=r"a chunk of shape \(1, 1, 3, 5\).* does not continue"):
        parts(x[:1, :1])


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


def test_steps_one_by_one_and_their_membranes(backend, device):
    neuron = Adaptive(C, step_mode="s", store_v_seq=True).to(device)
    x = normal((5, 2, C, 4), device=device, std=1.5)
    whole = Adaptive(C, store_v_seq=True).to(device)
    expected = whole(x)
    found = [(neuron(x_t), neuron.v_seq[0]) for x_t in x]
    assert torch.equal(torch.stack([s for s, _ in found]), expected)
    assert torch.equal(torch.stack([v for _, v in found]), whole.v_seq)


@pytest.mark.parametrize("cls", [Adaptive, Plain, Gated, Ternary], ids=lambda cls: cls.__name__)
def test_a_probe_measures_what_autograd_finds(backend, device, cls):
    """Of each step, by hooks on the loop and by derivatives of the step alone."""
    neuron = made(cls, C).to(device)
    x = normal((4, 3, C, 5), device=device, std=1.5).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    neuron.probe = torch.zeros(4, len(PROBE_FIELDS), device=device, requires_grad=True)
    spikes = neuron(x)
    (spikes * weights).sum().backward()
    probe = dict(zip(PROBE_FIELDS, neuron.probe.grad.T.cpu(), strict=True))
    own = x.grad.cpu()
    constants = {
        k: v.view(-1, 1) if isinstance(v, torch.Tensor) and v.dim() else v
        for k, v in neuron._given(x.dtype).items()
    }
    called = partial(neuron._called, neuron.__dict__)
    states = [torch.full_like(x[0], start) for start in neuron._starts()]
    carries, factors, zeros = [], [], []
    for x_t in x.detach():
        before = [s.detach().requires_grad_() for s in states]
        _, after = (lambda out: (out[0], out[1:]))(called(x_t, before, constants)[0])
        (factor,) = torch.autograd.grad(after[0].sum(), before[:1], allow_unused=True)
        factors.append(factor.abs().sum())
        states = [s.detach() for s in after]
    states = [torch.full_like(x[0], start) for start in neuron._starts()]
    loss = 0.0
    for x_t, w in zip(x.detach(), weights, strict=True):
        s, *states = called(x_t, states, constants)[0]
        zeros.append(torch.zeros_like(x_t, requires_grad=True))
        states[0] = states[0] + zeros[-1]
        loss = loss + (s * w).sum()
    carries = torch.autograd.grad(loss, zeros, allow_unused=True)
    carry = torch.stack([torch.zeros(()) if c is None else c.square().sum() for c in carries])
    close = dict(rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(
        probe["grad_spike_sq"], weights.square().flatten(1).sum(1).cpu(), **close
    )
    torch.testing.assert_close(probe["grad_input_sq"], own.square().flatten(1).sum(1), **close)
    torch.testing.assert_close(probe["grad_input_max"], own.abs().flatten(1).amax(1), **close)
    torch.testing.assert_close(probe["grad_carry_sq"], carry.detach().cpu(), **close)
    torch.testing.assert_close(probe["time_factor"], torch.stack(factors).cpu(), **close)
    torch.testing.assert_close(probe["spikes"], spikes.detach().flatten(1).sum(1).cpu(), **close)
    assert not probe["nonfinite"].any()


def test_a_probe_counts_neurons_outside_the_surrogate(backend, device):
    neuron = Plain(surrogate=Surrogate("triangle", width=0.5)).to(device)
    x = torch.tensor([1.0, 1.25, 1.75, 0.25, -3.0], device=device).view(1, 1, 5).requires_grad_()
    neuron.probe = torch.zeros(1, len(PROBE_FIELDS), device=device, requires_grad=True)
    neuron(x).sum().backward()
    assert neuron.probe.grad[0, PROBE_FIELDS.index("outside")] == 3


def test_outside_is_outside_of_all_surrogates_of_a_step(backend, device):
    neuron = Ternary(surrogate=Surrogate("triangle", width=0.5)).to(device)
    x = torch.tensor([1.0, -1.25, 1.75, 0.25, -3.0], device=device).view(1, 1, 5).requires_grad_()
    neuron.probe = torch.zeros(1, len(PROBE_FIELDS), device=device, requires_grad=True)
    neuron(x).sum().backward()
    assert neuron.probe.grad[0, PROBE_FIELDS.index("outside")] == 3


def test_under_vmap(backend, device):
    neuron = Adaptive(C).to(device)
    x = normal((3, 5, 2, C, 4), device=device, std=1.5).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    found = torch.vmap(neuron)(x)
    expected = torch.stack([neuron.define(one) for one in x])
    assert torch.equal(found, expected)
    assert_close(grads(neuron, found, x, weights), grads(neuron, expected, x, weights))


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


@pytest.mark.parametrize(
    ("backend", "shape"),
    [
        (backend, shape)
        for backend in ("triton", "native", "torch")
        for shape in ("sigmoid", "rectangle", "gaussian", "fast_sigmoid", "atan")
        if backend != "native" or shape not in ("fast_sigmoid", "atan")  # Mixed's, Adaptive's
    ],
    indirect=["backend"],
)
def test_every_surrogate_and_its_width(backend, device, shape):
    neuron = Gated(C, shape).to(device)
    x = normal((4, 3, C, 5), device=device, std=1.5).requires_grad_()
    weights = normal(x.shape, device=device, seed=1)
    spikes, expected = neuron(x), neuron.define(x)
    assert torch.equal(spikes, expected)
    assert_close(grads(neuron, spikes, x, weights), grads(neuron, expected, x, weights), 5e-5)


def test_batch_norm_module_packed_spikes_and_copies(backend, device):
    unit = BatchNormLIF(C, Adaptive(C)).to(device)
    y = normal((4, 5, C, 4), device=device)
    spikes = unit(y).detach()
    bits = pack_spikes(spikes)
    assert torch.equal(unpack_spikes(bits, spikes.shape, spikes.stride(), spikes.dtype), spikes)
    again = BatchNormLIF(C, Adaptive(C)).to(device)
    again.load_state_dict(unit.state_dict())
    import copy

    for other in (again, copy.deepcopy(unit)):
        assert torch.equal(other.neuron(y), unit.neuron(y))


def test_it_learns_after_a_call_in_inference_mode(backend, device):
    neuron, x = Plain(), normal((3, 2, C), device=device, std=1.5)
    with torch.inference_mode():
        expected = neuron(x)
    spikes = neuron(x.requires_grad_())
    assert torch.equal(spikes, expected)
    spikes.sum().backward()
    assert x.grad.any()


def test_a_changed_number_counts_at_once(backend, device):
    neuron = Plain(surrogate=Surrogate("triangle", width=0.3)).to(device)
    x = normal((3, 2, 4), device=device).requires_grad_()
    for width in (0.3, 0.8):
        neuron.surrogate = Surrogate("triangle", width=width)
        ones = torch.ones_like(x)
        assert_close(grads(neuron, neuron(x), x, ones), grads(neuron, neuron.define(x), x, ones))


def test_no_neurons_and_constants_alone(backend, device):
    neuron = Adaptive(C).to(device)
    assert neuron(torch.empty(3, 0, C, 2, device=device)).shape == (3, 0, C, 2)
    x = normal((3, 2, C), device=device)
    (only,) = torch.autograd.grad(neuron(x).sum(), [neuron.beta])
    (expected,) = torch.autograd.grad(neuron.define(x).sum(), [neuron.beta])
    assert_close([only], [expected])


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = Adaptive(C)

    def forward(self, x):
        return self.neuron(x * 1.0)


@pytest.mark.slow
def test_compiled_as_one_graph():
    unit = Unit()
    x = normal((3, 2, C, 4)).requires_grad_()
    weights = normal(x.shape, seed=1)
    compiled = torch.compile(unit, fullgraph=True)
    assert_close(
        grads(unit, compiled(x), x, weights), grads(unit, unit.neuron.define(x), x, weights)
    )


def test_traced_as_one_graph_which_follows_its_numbers():
    unit = Unit()
    x = normal((3, 2, C, 4)).requires_grad_()
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    weights = normal(x.shape, seed=1)
    for width in (0.3, 0.8):
        unit.neuron.surrogate = Surrogate("atan", width=width)
        spikes, expected = compiled(x), unit.neuron.define(x)
        assert torch.equal(spikes, expected)
        assert_close(grads(unit, spikes, x, weights), grads(unit, expected, x, weights))
