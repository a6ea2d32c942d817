"""Neuron modules and the norm before them, against their equations written out."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from spiketriton.config import NeuronConfig, SurrogateConfig
from spiketriton.errors import UserError
from spiketriton.neurons import IF, LIF, PLIF, Norm, SpikingNeuron, build_neuron
from spiketriton_kernels import PROBE_FIELDS, Surrogate, multistep_lif_reference

T, B, C = 5, 3, 4

NEURONS = {
    "if": lambda **options: IF(**options),
    "lif": lambda **options: LIF(tau=3.0, decay_input=False, **options),
    "lif_decay_input": lambda **options: LIF(tau=3.0, **options),
    "plif": lambda **options: PLIF(init_tau=3.0, decay_input=False, **options),
    "plif_decay_input": lambda **options: PLIF(init_tau=3.0, **options),
    "plif_per_channel": lambda **options: PLIF(init_tau=3.0, per_channel=C, **options),
}
every_neuron = pytest.mark.parametrize("kind", NEURONS)


def currents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Strong enough that about a third of the neurons fire at each step."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.7).to(dtype)


class Spike(torch.autograd.Function):
    """Step forward, arctangent surrogate of height 1 and width 1 backward."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + u * u)


def published_neuron(x: Tensor, rate: Tensor | float, gain: Tensor | float, v_reset: float | None):
    """H = V - rate * (V - V_reset) + gain * X, as SpikingJelly writes it; threshold 1, attached."""
    v, spikes = torch.full_like(x[0], v_reset or 0.0), []
    for x_t in x:
        h = v - rate * (v - (v_reset or 0.0)) + gain * x_t
        s = Spike.apply(h - 1.0)
        v = h - s if v_reset is None else (1 - s) * h + s * v_reset
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@every_neuron
def test_neurons_follow_their_published_equations(kind, v_reset):
    neuron = NEURONS[kind](v_reset=v_reset, detach_reset=False).double()
    x = currents(T, B, C, 2).requires_grad_()
    spikes = neuron(x)
    towards = currents(T, B, C, 2, seed=1)
    (spikes * towards).sum().backward()

    x_twin, w = x.detach().clone().requires_grad_(), None
    if kind == "if":
        rate, gain = 0.0, 1.0
    elif kind.startswith("lif"):
        rate, gain = 1 / 3, 1 / 3 if kind == "lif_decay_input" else 1.0
    else:
        w = neuron.w.detach().clone().requires_grad_()
        rate = torch.sigmoid(w).view(-1, 1) if w.ndim else torch.sigmoid(w)
        gain = 1.0 if kind == "plif" else rate
    expected = published_neuron(x_twin, rate, gain, v_reset)
    (expected * towards).sum().backward()

    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(x.grad, x_twin.grad, rtol=1e-9, atol=1e-12)
    if w is not None:
        assert w.grad.abs().min() > 0
        torch.testing.assert_close(neuron.w.grad, w.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_every_reset_can_be_named(reset):
    neuron = IF(v_threshold=1.5, reset=reset)
    x = currents(T, B, C)
    expected = multistep_lif_reference(x, decay=1.0, threshold=1.5, reset=reset)
    assert torch.equal(neuron(x), expected)
    spikes = {mode: IF(v_threshold=1.5, reset=mode)(x) for mode in ("hard", "soft", "none")}
    assert all(not torch.equal(spikes[reset], s) for mode, s in spikes.items() if mode != reset)


def test_v_reset_none_means_soft_reset():
    assert IF(v_reset=None).reset_mode == "soft"
    assert IF().reset_mode == "hard"
    assert IF(v_reset=0.5, reset="soft").v_reset is None


def test_plif_starts_at_its_tau_and_each_channel_has_its_own():
    assert torch.sigmoid(PLIF(init_tau=4.0).w).item() == pytest.approx(1 / 4)
    neuron = PLIF(init_tau=2.0, per_channel=C).double()
    with torch.no_grad():
        neuron.w.copy_(torch.tensor([-2.0, -1.0, 0.0, 1.0]))
    x = currents(T, B, C, 2, 2)
    for c, w in enumerate(neuron.w.tolist()):
        one = PLIF(init_tau=1 + math.exp(-w)).double()
        assert torch.equal(neuron(x)[:, :, c], one(x[:, :, c]))


@every_neuron
def test_chunks_of_any_length_equal_the_whole_window(kind):
    neuron = NEURONS[kind](v_reset=None, detach_reset=False).double()
    x = currents(T, B, C, 2)
    runs = []
    for lengths in ([T], [1, 3, 1]):
        neuron.stateful = lengths != [T]
        neuron.zero_grad()
        leaf = x.clone().requires_grad_()
        spikes = torch.cat([neuron(chunk) for chunk in leaf.split(lengths)])
        (spikes * currents(T, B, C, 2, seed=1)).sum().backward()
        grads = [leaf.grad, *(p.grad.clone() for p in neuron.parameters())]
        runs.append((spikes, grads))
    (whole, whole_grads), (chunks, chunk_grads) = runs
    assert torch.equal(whole, chunks)
    for expected, grad in zip(whole_grads, chunk_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)

    neuron.detach()
    assert not neuron.v.requires_grad
    assert not torch.equal(neuron(x), whole)  # goes on where it ended
    neuron.reset()
    assert torch.equal(neuron(x), whole)


def test_a_copy_within_a_window_goes_on_with_it():
    neuron = PLIF(v_reset=None, stateful=True).double()
    x = currents(T, B, C)
    neuron(x)  # the membrane has a gradient by the leak
    copied = copy.deepcopy(neuron)
    assert torch.equal(copied(x), neuron(x))
    assert neuron.v.requires_grad
    assert copied.v.data_ptr() != neuron.v.data_ptr()


def test_nothing_is_kept_unless_asked_for():
    neuron, x = LIF(), currents(T, B, C)
    assert torch.equal(neuron(x), neuron(x))
    assert neuron.v is None


def test_a_chunk_of_another_shape_is_refused_until_reset():
    neuron = LIF(stateful=True)
    neuron(currents(2, B, C))
    with pytest.raises(UserError, match=r"\(2, 5, 4\).*\(3, 4\).*reset\(\)"):
        neuron(currents(2, 5, C))
    neuron.reset()
    assert neuron(currents(2, 5, C)).shape == (2, 5, C)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: IF(v_threshold=0.0), ["v_threshold 0.0", "above 0"]),
        (lambda: IF(v_threshold=math.nan), ["v_threshold nan"]),
        (lambda: IF(v_reset=1.0), ["v_reset 1.0", "below v_threshold = 1.0"]),
        (lambda: IF(v_reset=None, reset="hard"), ["v_reset None", "hard"]),
        (lambda: IF(reset="firm"), ["reset 'firm'", "hard, soft, none"]),
        (lambda: LIF(tau=0.5), ["tau 0.5", "at least 1"]),
        (lambda: PLIF(init_tau=1.0), ["init_tau 1.0", "above 1"]),
        (lambda: PLIF(per_channel=0), ["per_channel 0"]),
        (lambda: IF()(torch.zeros(3)), ["IF", "(3,)", "[T, B, ...]"]),
        (lambda: PLIF(per_channel=3)(torch.zeros(2, 1, 4)), ["(2, 1, 4)", "[T, B, 3, ...]"]),
    ],
)
def test_mistakes_are_refused_in_one_line(make, names):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


def test_repr_states_every_constant():
    surrogate = Surrogate("triangle", height=0.5, width=0.25)
    options = {"reset": "none", "detach_reset": False, "surrogate": surrogate, "stateful": True}
    text = repr(LIF(3.0, False, 1.5, **options)) + repr(PLIF(4.0, per_channel=7, v_reset=-0.5))
    for constant in (
        "tau=3.0, decay_input=False",
        "v_threshold=1.5, v_reset=None, reset=none, detach_reset=False",
        "shape='triangle', height=0.5, width=0.25",
        "stateful=True",
        "init_tau=4.0, decay_input=True, per_channel=7",
        "v_reset=-0.5, reset=hard, detach_reset=True",
    ):
        assert constant in text
    norm = repr(Norm(6, scale=0.5, steps=3, fused=False))
    assert norm == "Norm(6, eps=1e-05, momentum=0.1, scale=0.5, steps=3, fused=False)"


@pytest.mark.parametrize(("kind", "type_"), [("if", IF), ("lif", LIF), ("plif", PLIF)])
def test_build_neuron_hands_every_key_to_the_neuron(kind, type_):
    leak = {} if kind == "if" else {"tau": 3.0, "decay_input": True}
    surrogate = SurrogateConfig(shape="gaussian", height=0.5, width=0.25)
    neuron = build_neuron(
        NeuronConfig(
            kind=kind,
            v_threshold=2.0,
            v_reset=-1.0,
            detach_reset=False,
            surrogate=surrogate,
            **leak,
        )
    )
    assert type(neuron) is type_
    arguments = neuron.neuron_arguments()
    assert arguments["threshold"] == 2.0
    assert (arguments["reset"], arguments["v_reset"]) == ("hard", -1.0)
    assert arguments["detach_reset"] is False
    built = arguments["surrogate"]
    assert (built.shape, built.height, built.width) == ("gaussian", 0.5, 0.25)
    decay = torch.as_tensor(arguments["decay"]).item()
    assert decay == pytest.approx(1.0 if kind == "if" else 2 / 3)
    if kind == "lif":
        assert arguments["gain"] == pytest.approx(1 / 3)
    if kind == "plif":
        assert neuron.input_gain().item() == pytest.approx(1 / 3)


def test_build_neuron_of_the_twin_and_of_a_width_to_be_calibrated():
    assert type(build_neuron(NeuronConfig(kind="relu"))) is nn.ReLU
    neuron = build_neuron(NeuronConfig(reset="soft", surrogate=SurrogateConfig(width="auto")))
    assert isinstance(neuron, SpikingNeuron)
    assert neuron.reset_mode == "soft"
    assert neuron.surrogate.width == 1.0

    x = currents(T, B, C).requires_grad_()
    before = torch.autograd.grad(neuron(x).sum(), x)[0]
    neuron.surrogate = Surrogate("atan", width=4.0)  # what a calibrator does
    assert torch.autograd.grad(neuron(x).sum(), x)[0].norm() > before.norm()


@pytest.mark.parametrize("fused", [False, True])
def test_probe_reaches_the_kernel(fused):
    neuron, norm = LIF(tau=2.0), Norm(C)
    x = currents(T, B, C, 2, dtype=torch.float32).requires_grad_()
    neuron.probe = torch.zeros(T, len(PROBE_FIELDS), requires_grad=True)
    spikes = neuron.fused_norm(x, norm) if fused else neuron(x)
    spikes.sum().backward()
    counted = neuron.probe.grad[:, PROBE_FIELDS.index("spikes")]
    assert torch.equal(counted, spikes.detach().sum((1, 2, 3)))
    assert counted.sum() > 0


# -- the norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [(), (3, 2)])
def test_norm_is_torchs_batch_norm_on_the_folded_tensor(space):
    norm = Norm(C).double()
    twin = (nn.BatchNorm2d(C) if space else nn.BatchNorm1d(C)).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, C + 1))
        norm.bias.copy_(torch.arange(C))
    twin.load_state_dict(norm.state_dict())
    for training in (True, True, False):
        norm.train(training)
        twin.train(training)
        y = currents(T, B, C, *space)
        assert torch.equal(norm(y).flatten(0, 1), twin(y.flatten(0, 1)))
    for name, value in twin.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value)
    assert norm.num_batches_tracked == 2


def test_tdbn_scales_the_current_and_tebn_each_step():
    y = currents(T, B, C, 6, 6)
    plain, scaled, stepwise = Norm(C), Norm(C, scale=0.5), Norm(C, steps=T)
    gains = torch.arange(1.0, T + 1)
    for norm in (plain.double(), scaled.double(), stepwise.double()):
        with torch.no_grad():
            norm.bias.fill_(3.0)
    assert torch.equal(stepwise(y), plain(y))  # gains are 1 at the start
    with torch.no_grad():
        stepwise.step_gain.copy_(gains)
    torch.testing.assert_close(scaled(y), (plain(y) - 3) / 2 + 3)
    torch.testing.assert_close(stepwise(y), plain(y) * gains.view(-1, 1, 1, 1, 1))
    with pytest.raises(UserError, match=f"gains for {T} time steps, but {T + 1} are needed"):
        stepwise(currents(T + 1, B, C))
    stepwise.eval()
    stepwise.first_step = 2
    assert torch.equal(stepwise.gains(3), stepwise.step_gain[2:])


@pytest.mark.parametrize("steps", [0, T])
def test_a_constant_current_is_normalised_once_as_its_copies_would_be(steps):
    once, copies = Norm(C, steps=steps).double(), Norm(C, steps=steps).double()
    y = currents(B, C, 3, 2)
    current = once.constant(y, T)
    assert current.shape[0] == (T if steps else 1)
    expected = copies(y.expand(T, -1, -1, -1, -1))
    torch.testing.assert_close(current.expand_as(expected), expected)
    torch.testing.assert_close(once.running_mean, copies.running_mean)
    n = B * 6
    biased = (copies.running_var - 0.9) * (T * n - 1) / (T * n)
    torch.testing.assert_close(once.running_var - 0.9, biased * n / (n - 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("extra", [None, "residual", "spike_add"])
@every_neuron
def test_the_fused_unit_equals_norm_then_neuron(kind, extra, training):
    runs = []
    for fused in (True, False):
        neuron, norm = NEURONS[kind]().double(), Norm(C, scale=1.3, steps=T).double()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, C))
            norm.bias.fill_(0.4)
            norm.step_gain.copy_(torch.linspace(0.8, 1.2, T))
        norm.train(training)
        y = currents(T, B, C, 2, 2).requires_grad_()
        other = currents(T, B, C, 2, 2, seed=1).requires_grad_()
        if fused:
            out = neuron.fused_norm(y, norm, **({extra: other} if extra else {}))
        else:
            out = neuron(norm(y) + other if extra == "residual" else norm(y))
            out = out + other if extra == "spike_add" else out
        (out * currents(T, B, C, 2, 2, seed=2)).sum().backward()
        parameters = [*neuron.parameters(), *norm.parameters()]
        runs.append([out, y.grad, *(p.grad for p in parameters), *norm.buffers()])
        if extra:
            runs[-1].append(other.grad)
    for fused_value, value in zip(*runs, strict=True):
        torch.testing.assert_close(fused_value, value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("fused", [False, True])
@every_neuron
def test_bf16_currents_give_bf16_spikes_in_channels_last(kind, fused):
    neuron, norm = NEURONS[kind](), Norm(C, steps=T)
    y = currents(T * B, C, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = y.unflatten(0, (T, B)).requires_grad_()
    residual = torch.ones_like(y, memory_format=torch.preserve_format).detach()
    if fused:
        spikes = neuron.fused_norm(y, norm, residual)
    else:
        spikes = neuron(norm(y) + residual)
    spikes.float().sum().backward()
    assert spikes.dtype == torch.bfloat16
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert y.grad.isfinite().all()
    for parameter in (*neuron.parameters(), *norm.parameters()):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0
