"""PSN, masked and sliding PSN: their definition, SpikingJelly's, and what they are not."""

import copy

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn as torch_nn

from spiketriton_kernels import PROBE_FIELDS, Surrogate, nn
from spiketriton_kernels.nn import swap
from tests.covering import each
from tests.kernels.support import PHI, as_layout, dyadic, normal

T, B, C = 5, 3, 4

KINDS = {
    "psn": lambda **o: nn.PSN(T, **o),
    "masked": lambda **o: nn.MaskedPSN(2, T, lambda_init=0.75, **o),
    "sliding": lambda **o: nn.SlidingPSN(3, **o),
    "sliding, longer than the window": lambda **o: nn.SlidingPSN(T + 2, exp_init=False, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind, **options):
    torch.manual_seed(0)
    return KINDS[kind](**options)


def weight(made, t, j):
    """W[t][j], written out from the paper."""
    if isinstance(made, nn.SlidingPSN):
        return made.weight[made.k - 1 - (t - j)] if 0 <= t - j < made.k else 0.0
    if isinstance(made, nn.MaskedPSN):
        return made.weight[t, j] * (1.0 if 0 <= t - j < made.k else 1 - float(made.lambda_))
    return made.weight[t, j]


def definition(neuron, x):
    """Potentials and spikes, one step and one weight at a time."""
    potentials = []
    for t in range(len(x)):
        bias = neuron.bias[t] if neuron.bias.ndim else neuron.bias
        potentials.append(sum(weight(neuron, t, j) * x[j] for j in range(len(x))) + bias)
    h = torch.stack(potentials)
    return h, (h >= 0).to(h.dtype) + slope(neuron, h.detach()) * (h - h.detach())


def slope(neuron, h):
    s = neuron.surrogate
    return s.height * PHI[s.shape](h / s.width)


def learnt(call, module, x):
    """Spikes, and the gradients of x, weight and bias."""
    x = x.clone().requires_grad_()
    spikes = call(x)
    grads = torch.autograd.grad(
        spikes, [x, module.weight, module.bias], normal(x.shape, x.dtype, seed=1)
    )
    return spikes.detach(), *grads


@pytest.mark.parametrize(("kind", "shape"), each([*KINDS], ["atan", "triangle"]))
def test_spikes_and_gradients_are_the_definitions(kind, shape):
    one = made(kind, surrogate=Surrogate(shape, height=0.8, width=0.6), store_v_seq=True).double()
    x = normal((T, B, C, 6), torch.float64, mean=1.0, std=4.0)
    expected = learnt(lambda x: definition(one, x)[1], one, x)
    assert 0.05 < expected[0].mean() < 0.95
    for call in (one, one.define):
        found = learnt(call, one, x)
        assert torch.equal(found[0], expected[0])
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.v_seq, definition(one, x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_potential_of_exactly_the_threshold_fires(dtype):
    one = nn.SlidingPSN(2)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([0.5, 1.0]))
    x = dyadic((6, 4, 32), dtype)
    h = x.double() + 0.5 * torch.cat([torch.zeros_like(x[:1]), x[:-1]]).double()
    assert (h == 1).any()
    spikes = one(x)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.double(), (h >= 1).double())


@pytest.mark.parametrize(
    ("kind", "layout"), each([*KINDS], ["channels_last", "permuted", "strided"])
)
def test_layouts(kind, layout):
    one, x = made(kind), normal((T, B, C, 3, 2), mean=0.5, std=2.0)
    other = as_layout(x, layout)
    if layout != "strided":
        assert one(other).stride() == other.stride()
    for ours, theirs in zip(learnt(one, one, other), learnt(one, one, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@every_kind
def test_potentials_are_computed_in_float32_under_autocast_and_in_half_precision(kind):
    one, x = made(kind, store_v_seq=True), normal((T, B, C), mean=0.5, std=2.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        spikes = one(x)
    assert spikes.dtype == torch.bfloat16
    assert one.v_seq.dtype == torch.float32
    torch.testing.assert_close(one.v_seq, definition(one, x.float())[0].detach())


@every_kind
def test_the_probe(kind):
    """Sums of each step, of the input's gradient and not of the potential's; no step hands a gradient on."""
    one, x = made(kind, surrogate=Surrogate("atan", width=0.1)), normal((T, B, C), std=2.0)
    one.probe = probe = torch.zeros(T, len(PROBE_FIELDS), requires_grad=True)
    x.requires_grad_()
    spikes, upstream = one(x), normal(x.shape, seed=1)
    spikes.backward(upstream)
    assert one.probe is probe
    h = definition(one, x)[0].detach()
    expected = {
        "grad_spike_sq": upstream.square(),
        "grad_input_sq": x.grad.square(),
        "grad_carry_sq": torch.zeros_like(h),
        "time_factor": torch.zeros_like(h),
        "outside": (PHI["atan"](h / 0.1) < 0.01).float(),
        "spikes": spikes.detach(),
        "nonfinite": torch.zeros_like(h),
    }
    found = dict(zip(PROBE_FIELDS, probe.grad.T, strict=True))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.flatten(1).sum(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["grad_input_max"], x.grad.abs().flatten(1).amax(1))


@every_kind
def test_without_gradients_from_step_to_step(kind):
    one, x = made(kind).double(), normal((T, B, C), torch.float64, std=2.0)
    whole = learnt(one, one, x)
    one.cut_time = True
    spikes, grad, *_ = learnt(one, one, x)
    assert torch.equal(spikes, whole[0])
    h = definition(one, x)[0].detach()
    own = torch.stack([torch.as_tensor(weight(one, t, t)) for t in range(T)])
    expected = normal(x.shape, x.dtype, seed=1) * slope(one, h) * own.detach().view(-1, 1, 1)
    torch.testing.assert_close(grad, expected)


def test_a_mask_that_is_blended_in():
    one = nn.MaskedPSN(2, T)
    assert torch.equal(one.weight_of(T), one.weight)
    one.lambda_ = 1.0
    outside = [(t, j) for t in range(T) for j in range(T) if not 0 <= t - j < 2]
    assert all(one.weight_of(T)[place] == 0 for place in outside)


def test_a_sliding_psn_takes_windows_of_any_length():
    sliding, x = nn.SlidingPSN(3), normal((2 * T, B, C), std=2.0)
    assert torch.equal(sliding(x)[:T], sliding(x[:T]))


def stateful(one):
    one.stateful = True
    return one


CAUSAL = {
    "masked": lambda: nn.MaskedPSN(3, 2 * T, lambda_init=1.0),
    "masked, itself alone": lambda: nn.MaskedPSN(1, 2 * T, lambda_init=1.0),
    "masked, all": lambda: nn.MaskedPSN(4 * T, 2 * T, lambda_init=1.0),
    "sliding": lambda: nn.SlidingPSN(3, exp_init=False),
    "sliding, longer than the window": lambda: nn.SlidingPSN(3 * T, exp_init=False),
}


@pytest.mark.parametrize("kind", CAUSAL)
def test_chunks_of_those_that_read_no_later_step_give_what_the_window_gives(kind):
    """Spikes and gradients, in chunks of any length; then the next window begins."""
    torch.manual_seed(0)
    one, x = CAUSAL[kind]().double(), normal((2 * T, B, C, 2), torch.float64, mean=1.0, std=4.0)
    whole = learnt(one, one, x)
    one.stateful = True
    for lengths in ([1] * (2 * T), [2, 1, 4, 3], [6, 4]):
        one.reset()
        parts = learnt(lambda x, n=lengths: torch.cat([one(c) for c in x.split(n)]), one, x)
        assert torch.equal(parts[0], whole[0])
        for ours, theirs in zip(parts[1:], whole[1:], strict=True):
            torch.testing.assert_close(ours, theirs)
    one.reset()
    one.cut_time = True
    spikes, cut, *_ = learnt(lambda x: torch.cat([one(c) for c in x.split([3, 7])]), one, x)
    assert torch.equal(spikes, whole[0])
    one.stateful = False
    torch.testing.assert_close(cut, learnt(one, one, x)[1])
    one.stateful, one.cut_time = True, False
    one.reset()
    one(x[:3])
    other = copy.deepcopy(one)
    assert torch.equal(other(x[3:]), whole[0][3:])
    with pytest.raises(ValueError, match=r"reset\(\) starts a new window"):
        one(x[3:, :1])
    one.detach()
    one.reset()
    assert torch.equal(one(x), whole[0])
    if isinstance(one, nn.MaskedPSN):
        with pytest.raises(ValueError, match="was shown 11 time steps; accepted: 10"):
            one(x[:1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.PSN(0), r"T 0: accepted: an integer of at least 1"),
        (lambda: nn.SlidingPSN(2.0), r"k 2\.0: accepted"),
        (lambda: nn.PSN(T, v_threshold=-1.0), r"v_threshold -1\.0: accepted"),
        (lambda: nn.PSN(T)(normal((2 * T, B, C))), r"PSN was shown 10 time steps; accepted: 5"),
        (
            lambda: stateful(nn.PSN(T))(normal((T, B))),
            "PSN has stateful=True; accepted: whole windows",
        ),
        (
            lambda: stateful(nn.MaskedPSN(2, T, lambda_init=0.9))(normal((T, B))),
            "MaskedPSN has stateful=True; accepted: whole windows",
        ),
        (lambda: nn.MaskedPSN(2, T, lambda_init=1.5), r"lambda_ 1\.5: accepted: 0 to 1"),
        (lambda: nn.PSN(T, reset="soft"), "reset"),
    ],
)
def test_what_they_refuse(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


# ---- SpikingJelly's


THEIRS = {
    "psn": lambda **o: neuron.PSN(T, **o),
    "masked": lambda **o: neuron.MaskedPSN(2, T, lambda_init=0.75, step_mode="m", **o),
    "masked wholly": lambda **o: neuron.MaskedPSN(3, T, lambda_init=1.0, step_mode="m", **o),
    "sliding": lambda **o: neuron.SlidingPSN(3, step_mode="m", **o),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_spikingjellys_are_swapped(kind):
    """The same weights, by the same names: the same spikes and gradients, in float64 and in float32."""
    torch.manual_seed(0)
    theirs = THEIRS[kind](surrogate_function=surrogate.Sigmoid(alpha=3.0))
    net = torch_nn.Sequential(theirs)
    keys = list(net.state_dict())
    report = swap(net, check=normal((T, B, C, 6), std=2.0))
    kept = type(theirs).__name__
    assert report.swapped == {"0": f"{kept} -> {kept}"}
    assert report.check["dtype"] == "float64"
    ours = net[0]
    assert list(net.state_dict()) == keys
    assert ours.weight is theirs.weight
    x = normal((T, B, C, 6), seed=2, std=2.0)
    found, expected = learnt(ours, ours, x), learnt(theirs, theirs, x)
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    if kind == "masked":
        ours.lambda_ = 1.0  # as a training loop raises it
        assert theirs.lambda_ == 1.0


def test_spikingjellys_in_single_steps_stay():
    net = torch_nn.Sequential(neuron.SlidingPSN(3))
    assert swap(net).left == {
        "0": "step_mode 's': the module here takes whole windows; accepted: 'm'"
    }


def test_masks_are_no_weights_and_spikingjellys_load_with_them():
    theirs = THEIRS["masked"](surrogate_function=surrogate.Sigmoid())
    ours = nn.MaskedPSN(2, T)
    assert {*theirs.state_dict()} - {*ours.state_dict()} == {"mask0", "mask1"}
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight_of(T), theirs.masked_weight())
