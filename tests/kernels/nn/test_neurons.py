"""The modules of spiketriton_kernels.nn call the kernels with the constants that they state, and keep their states."""

import copy
import io
import math
import subprocess
import sys

import pytest
import torch
from torch import nn as torch_nn
from torch.utils.checkpoint import checkpoint

from spiketriton_kernels import (
    Surrogate,
    multistep_alif_reference,
    multistep_clif_reference,
    multistep_cuba_reference,
    multistep_ilif_reference,
    multistep_lif_reference,
    nn,
    use_backend,
)
from tests.child import environment
from tests.covering import each
from tests.kernels.support import normal

T, B, C = 5, 3, 4


def channels(first=0.6, last=1.4):
    return torch_nn.Parameter(torch.linspace(first, last, C))


def of_w(gains):
    """A PLIF's constants: 1/tau = sigmoid(w)."""
    return lambda neuron: dict(
        decay=1 - torch.sigmoid(neuron.w), gain=torch.sigmoid(neuron.w) if gains else 1.0
    )


third = dict(decay=1 - 1 / 3, gain=1.0)
NEURONS = {
    "if": (lambda **o: nn.IF(**o), multistep_lif_reference, dict(decay=1.0)),
    "lif": (lambda **o: nn.LIF(tau=3.0, decay_input=False, **o), multistep_lif_reference, third),
    "lif, decay_input": (
        lambda **o: nn.LIF(tau=3.0, v_reset=None, detach_reset=False, **o),
        multistep_lif_reference,
        third | dict(gain=1 / 3, reset="soft", detach_reset=False),
    ),
    "lif, threshold": (
        lambda **o: nn.LIF(v_threshold=channels(), surrogate=Surrogate.atan(), **o),
        multistep_lif_reference,
        lambda neuron: dict(gain=0.5, threshold=neuron.v_threshold, surrogate=Surrogate.atan()),
    ),
    "plif": (lambda **o: nn.PLIF(3.0, False, **o), multistep_lif_reference, of_w(False)),
    "plif, decay_input": (lambda **o: nn.PLIF(3.0, **o), multistep_lif_reference, of_w(True)),
    "plif, channels": (lambda **o: nn.PLIF(3.0, per_channel=C, **o), multistep_lif_reference, of_w(True)),
    "ilif": (lambda **o: nn.ILIF(tau=2.0, levels=3, **o), multistep_ilif_reference, dict(decay=0.5, levels=3)),
    "clif": (lambda **o: nn.CLIF(tau=4.0, **o), multistep_clif_reference, dict(decay=0.75)),
    "alif": (
        lambda **o: nn.ALIF(tau=4.0, tau_adaptation=5.0, beta=0.5, **o),
        multistep_alif_reference,
        dict(decay=0.75, rho=0.8, beta=0.5),
    ),
    "alif, hard": (
        lambda **o: nn.ALIF(v_reset=0.0, v_threshold=0.75, **o),
        multistep_alif_reference,
        dict(decay=0.5, rho=0.9, threshold=0.75, reset="hard"),
    ),
    "alif, channels": (
        lambda **o: nn.ALIF(
            v_threshold=channels(0.5, 1.0), decay=channels(0.4, 0.6), rho=channels(0.5, 0.9),
            beta=channels(0.3, 1.0), **o,
        ),
        multistep_alif_reference,
        lambda neuron: dict(decay=neuron.decay, rho=neuron.rho, beta=neuron.beta, threshold=neuron.v_threshold),
    ),
    "cuba": (
        lambda **o: nn.CuBaLIF(tau=4.0, tau_synapse=5.0, decay_input=True, **o),
        multistep_cuba_reference,
        dict(decay=0.75, gain=0.25, rho=0.8),
    ),
}  # fmt: skip
every_neuron = pytest.mark.parametrize("kind", NEURONS)


def made(kind, **options):
    return NEURONS[kind][0](**options)


@pytest.mark.parametrize(
    ("kind", "shape"), each([*NEURONS], [(T, B, C), (T, B, C, 7), (T, B, C, 3, 2)]), ids=str
)
def test_a_module_is_the_function_with_its_constants(kind, shape):
    make, reference, constants = NEURONS[kind]
    neuron, runs = make(), []
    for call in (
        neuron,
        lambda x: reference(x, **(constants(neuron) if callable(constants) else constants)),
    ):
        neuron.zero_grad()
        x = normal(shape, mean=0.7, std=2.0).requires_grad_()
        spikes = call(x)
        (spikes * normal(shape, seed=1)).sum().backward()
        runs.append([spikes, x.grad, *(p.grad for p in neuron.parameters())])
    (spikes, *grads), (expected, *expected_grads) = runs
    assert 0.1 < (expected > 0).float().mean() < 0.9
    assert torch.equal(spikes, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert expected_grad.abs().max() > 1e-3
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)


@every_neuron
def test_steps_chunks_copies_and_resets(kind):
    x = normal((T, B, C, 2), mean=0.7, std=2.0)
    window, chunks, steps = (
        made(kind, **o) for o in ({}, dict(stateful=True), dict(step_mode="s"))
    )
    whole = window(x)
    assert window.v is None
    assert torch.equal(torch.cat([chunks(x[:2]), chunks(x[2:])]), whole)
    assert torch.equal(torch.stack([steps(step) for step in x]), whole)
    assert "step_mode=s" in repr(steps)
    file = io.BytesIO()
    torch.save(chunks, file)
    file.seek(0)
    twins = copy.deepcopy(chunks), torch.load(file, weights_only=False)  # in the middle of a window
    continued = chunks(x)
    for twin in twins:
        assert torch.equal(twin(x), continued)
        assert twin.m is chunks.m is None or torch.equal(twin.m, chunks.m)
    with pytest.raises(ValueError, match=r"\(5, 1, 4, 2\).*reset\(\)"):
        chunks(x[:, :1])
    chunks(x.clone().requires_grad_())
    has_m = kind.startswith(("clif", "alif", "cuba"))
    assert chunks.v.requires_grad
    assert not has_m or chunks.m.requires_grad
    chunks.detach()
    assert not chunks.v.requires_grad
    assert not (has_m and chunks.m.requires_grad)
    chunks.reset()
    assert (chunks.v, chunks.m) == (None, None)
    assert torch.equal(chunks(x), whole)


@every_neuron
def test_weights_are_kept_and_rounded_once_in_half_precision(kind):
    """A leak's parameter is rounded where it is stored; everything after is float32."""
    other, neuron = made(kind), made(kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    neuron.load_state_dict(other.state_dict())
    x = normal((T, B, C, 3), torch.bfloat16, mean=0.7, std=2.0)
    half = copy.deepcopy(other).bfloat16()
    whole = copy.deepcopy(half).float()
    with use_backend("torch"):  # C++ is compiled for few kinds in bfloat16
        assert torch.equal(neuron(x), other(x))
        spikes = half(x)
        assert spikes.dtype == torch.bfloat16
        assert torch.equal(spikes.float(), whole(x.float()))


def test_step_mode_may_change_between_calls():
    """As functional.set_step_mode of SpikingJelly does, which sets the attribute."""
    neuron, x = nn.LIF(stateful=True), normal((T, B, C))
    whole = neuron(x)
    neuron.reset()
    neuron.step_mode = "s"
    assert torch.equal(torch.stack([neuron(step) for step in x]), whole)


def test_a_step_allocates_its_spikes_and_its_states_and_nothing_else():
    """On a small tensor a call's time is that of its operators and checks, not of its arithmetic."""
    neuron, x = nn.LIF(stateful=True), normal((1, B, C))
    with torch.inference_mode():
        neuron(x)
        with torch.profiler.profile() as profile:
            neuron(x)
    call = next(e for e in profile.events() if e.name == "spiketriton::neuron_forward")
    assert [e.name for e in call.cpu_children if "empty" in e.name] == ["aten::empty_like"] * 2
    assert not any("copy" in e.name for e in profile.events())


def test_constants_of_channels_are_parameters_or_travel_with_the_module():
    neuron = made("alif, channels")
    assert {n for n, _ in neuron.named_parameters()} == {"decay", "v_threshold", "rho", "beta"}
    assert "4 values from 0.5 to 1" in repr(neuron)
    with pytest.raises(ValueError, match=r"4 values of .*channels are dim 2"):
        neuron(torch.zeros(T, B, 6, C))
    fixed = nn.IF(v_threshold=torch.tensor([0.5, 1.0, 2.0, 4.0]), v_reset=-1.0)
    assert not list(fixed.parameters())
    twin = nn.IF(v_threshold=torch.ones(C), v_reset=-1.0)
    twin.load_state_dict(fixed.state_dict())
    x = normal((T, B, C), mean=1.0)
    assert torch.equal(twin(x), fixed(x))
    assert nn.LIF()(torch.zeros(T, 0, C)).shape == (T, 0, C)


class Feedback(nn.SpikingNeuron):
    """Its spikes come back by a matrix of its own, which no kernel has."""

    states = ("v", "s")

    def __init__(self):
        super().__init__(backend="eager")
        self.matrix = torch_nn.Parameter(torch.linspace(-0.5, 0.5, C * C).view(C, C))

    def step(self, x, v, s):
        h = 0.5 * v + x + s @ self.matrix.T
        s = self.fire(h - 1)
        return s, h - s, s


def test_a_step_in_pytorch_may_hold_a_matrix():
    neuron, x = Feedback(), normal((T, B, C), mean=1.0)
    v = s = torch.zeros(B, C)
    expected = []
    for x_t in x:
        s, v, _ = neuron.step(x_t, v, s)
        expected.append(s)
    spikes = neuron(x)
    assert torch.equal(spikes, torch.stack(expected))
    assert 0 < spikes.mean() < 1
    spikes.sum().backward()
    assert neuron.matrix.grad.abs().sum() > 0


def test_a_record_is_kept_until_a_constant_changes():
    neuron, x = nn.ALIF(), normal((T, B, C), mean=1.0)
    assert neuron.record(x) is neuron.record(x)
    for name, value in (
        ("beta", 5.0),
        ("surrogate", Surrogate("sigmoid")),
        ("detach_reset", False),
    ):
        before = neuron.record(x)
        setattr(neuron, name, value)
        assert neuron.record(x) is not before
    assert torch.equal(neuron(x), nn.ALIF(beta=5.0)(x))
    assert nn.CLIF(decay=channels(0.4, 0.6)).record(x).constants[0].requires_grad


def test_a_checkpoint_repeats_the_last_call_and_no_earlier_one():
    """What a stateful neuron keeps is moved on once, and its window computed again begins where it began."""
    layers = [
        torch_nn.Linear(6, 6),
        nn.LIF(stateful=True),
        torch_nn.Linear(6, 6),
        nn.CLIF(stateful=True),
    ]
    net = torch_nn.Sequential(*layers).double()
    windows = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        layers[2].bias += 2  # so that the last layer fires

    def gradients(again: bool, reentrant: bool) -> list[torch.Tensor]:
        for neuron in (layers[1], layers[3]):
            neuron.reset()
        net.zero_grad()
        for x in windows:
            x = x.requires_grad_()
            out = checkpoint(net, 4 * x, use_reentrant=reentrant) if again else net(4 * x)
            (out * x.detach()).sum().backward()
            for neuron in (layers[1], layers[3]):
                neuron.detach()
        return [p.grad.clone() for p in net.parameters()] + [layers[1].v, layers[3].m]

    with use_backend("torch"):  # C++ would be compiled for CLIF in float64
        expected = gradients(False, False)
        assert all(value.abs().sum() > 0 for value in expected)
        for reentrant in (False, True):
            for found, value in zip(gradients(True, reentrant), expected, strict=True):
                assert torch.equal(found, value)
    step = nn.LIF(step_mode="s")
    x = torch.ones(1, 3, requires_grad=True)
    outs = [checkpoint(step, x, use_reentrant=False) for _ in range(2)]
    with pytest.raises(ValueError, match="LIF keeps its membrane, and a checkpoint repeats a call"):
        sum(outs).sum().backward()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.IF(v_threshold=0.0), ["v_threshold 0.0", "above 0"]),
        (lambda: nn.IF(v_threshold=math.nan), ["v_threshold nan"]),
        (lambda: nn.IF(v_threshold=math.inf), ["v_threshold inf"]),
        (lambda: nn.IF(v_reset=-math.inf), ["v_reset -inf", "finite"]),
        (lambda: nn.IF(v_threshold=torch.ones(2, 2)), ["(2, 2)", "[] or [C]"]),
        (lambda: nn.IF(v_threshold=torch.ones(2).int()), ["int32", "floating point"]),
        (lambda: nn.IF(v_reset=1.0), ["v_reset 1.0", "below v_threshold = 1.0"]),
        (lambda: nn.IF(reset="firm"), ["reset 'firm'", "hard, soft, none"]),
        (lambda: nn.IF(step_mode="x"), ["step_mode 'x'", "'m'", "'s'"]),
        (lambda: nn.IF(surrogate="atan"), ["surrogate 'atan'", "Surrogate"]),
        (lambda: nn.LIF(tau=0.5), ["tau 0.5", "at least 1"]),
        (lambda: nn.LIF(tau=math.inf), ["tau inf"]),
        (lambda: nn.LIF(tau="2"), ["tau '2'", "a number"]),
        (lambda: nn.IF(v_threshold="1"), ["v_threshold '1'", "a number"]),
        (
            lambda: nn.LIF(beta=0.9),
            [
                "LIF has no argument 'beta', here tau",
                "Leaky(beta)",
                "accepted: tau, decay_input, v_t",
                "reset",
            ],
        ),
        (lambda: nn.CLIF(threshold=1.0), ["CLIF", "'threshold', here v_threshold; accepted: tau"]),
        (
            lambda: nn.IF(tau=2.0),
            ["IF has no argument 'tau'; accepted: v_threshold, v_reset, reset"],
        ),
        (lambda: nn.PLIF(init_tau=math.inf), ["init_tau inf"]),
        (lambda: nn.PLIF(init_tau=1.0), ["init_tau 1.0", "above 1"]),
        (lambda: nn.PLIF(per_channel=0), ["per_channel 0"]),
        (lambda: nn.IF()(torch.zeros(3)), ["IF", "(3,)", "[T, B, ...]"]),
        (lambda: nn.IF(step_mode="s")(torch.tensor(1.0)), ["IF", "()", "[B, ...]"]),
        (
            lambda: nn.PLIF(per_channel=3)(torch.zeros(2, 1, 4, 3)),
            ["(2, 1, 4, 3)", "3 values of w", "[T, B, 3, ...]", "channels are dim 2"],
        ),
        (lambda: nn.ILIF(levels=0), ["levels 0", "1 to 255"]),
        (lambda: nn.CLIF(tau=0.5), ["tau 0.5", "at least 1"]),
        (lambda: nn.ALIF(tau_adaptation=0.5), ["tau_adaptation 0.5"]),
        (lambda: nn.ALIF(v_reset=-1.0), ["v_reset -1.0", "0.0, None"]),
        (lambda: nn.ILIF(surrogate=Surrogate("atan")), ["surrogate", "ILIF", "accepted: None"]),
        (lambda: nn.CLIF(reset="hard"), ["reset 'hard' of CLIF", "accepted: soft"]),
    ],
)
def test_mistakes_are_refused_in_one_line(make, names):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


def test_importing_the_modules_and_calling_them_on_a_cpu_costs_no_more_than_torch():
    """torch._dynamo, most of the time of such an import, comes when something is compiled, Triton with a GPU."""
    code = """
import sys, torch, spiketriton_kernels.nn as nn
x = torch.ones(2, 1, 8, 4, requires_grad=True)
torch.nn.Sequential(nn.BatchNormLIF(8), nn.PLIF())(x).sum().backward()
assert not {"torch._dynamo", "triton", "sympy"} & {*sys.modules}
"""
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


@pytest.mark.parametrize("name", ["decay", "v_threshold", "w"])
def test_what_a_call_keeps_of_a_neuron_that_learns_follows_its_values_and_attributes(name):
    x, learnt = normal((4, 2, 3, 5), mean=0.5), torch.nn.Parameter(torch.tensor(0.7))
    neuron = nn.PLIF() if name == "w" else nn.ALIF(**{name: learnt})

    def holds():
        given = x.to(getattr(neuron, name).dtype)
        assert torch.equal(neuron(given), neuron.define(given))

    holds()
    with torch.no_grad():
        getattr(neuron, name).add_(1.5)
    holds()
    neuron.rho, neuron.decay_input = 0.2, False
    holds()
    neuron.reset_mode = "none"
    holds()
    setattr(neuron, name, torch.nn.Parameter(torch.tensor([0.2, 0.5, 0.9])))
    holds()
    neuron.double()
    # C++ would be compiled for ALIF in float64
    with use_backend("auto" if name == "w" else "torch"):
        holds()
