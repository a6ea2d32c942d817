"""Recurrent against the plain loop: spikes, gradients, streaming, the probe, compilers; what it refuses."""

import copy

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch import nn as torch_nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spiketriton_kernels import PROBE_FIELDS, Surrogate, nn, use_backend
from spiketriton_kernels.nn import Recurrent, SpikingNeuron
from spiketriton_kernels.window import recurrent
from tests.covering import each
from tests.kernels.steps.neurons import Adaptive, Gated
from tests.kernels.support import assert_rounded, dyadic, normal

T, B, N = 21, 11, 19
ATAN = Surrogate("atan", height=0.8, width=0.4)


class Unseen(SpikingNeuron):
    """A neuron that nothing else has: two states, a learnt constant for each neuron, graded outputs."""

    states = ("v", "trace")

    def __init__(self, channels: int) -> None:
        super().__init__(surrogate=Surrogate("triangle", height=0.9, width=0.8))
        self.leak = torch_nn.Parameter(torch.linspace(0.25, 0.75, channels))

    def step(self, x: Tensor, v: Tensor, trace: Tensor) -> tuple[Tensor, ...]:
        h = self.leak * v + x - 0.25 * trace
        s = self.fire(h - 1.0) + 0.5 * self.fire(h - 2.0)
        return s, torch.where(s > 0, 0.125, h), 0.5 * trace + s


class Smooth(SpikingNeuron):
    """Outputs that have a derivative, for numerical ones."""

    states = ("v",)

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.5 * v + torch.tanh(x)
        return v * v, v


KINDS = {
    "IF": lambda: nn.IF(surrogate=ATAN),
    "LIF": lambda: nn.LIF(2.0, surrogate=ATAN),
    "soft LIF": lambda: nn.LIF(2.0, v_reset=None, detach_reset=False, surrogate=ATAN),
    "PLIF": lambda: nn.PLIF(per_channel=N),
    "delayed": lambda: nn.Leaky(0.75, reset_delay=True),
    "ILIF": lambda: nn.ILIF(levels=4),
    "CLIF": nn.CLIF,
    "ALIF": nn.ALIF,
    "CuBaLIF": nn.CuBaLIF,
    "Adaptive": lambda: Adaptive(N),
    "Gated": lambda: Gated(N),
    "Unseen": lambda: Unseen(N),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
few = pytest.mark.parametrize("kind", ["LIF", "ILIF", "Unseen"])


def made(kind, features=N, bias=True, scale=2.0):
    torch.manual_seed(0)
    one = Recurrent(KINDS[kind](), features, bias=bias)
    one.weight.data.mul_(scale)
    return one


def learnt(call, module, x, upstream=None):
    """Spikes, and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    spikes = call(x)
    upstream = normal(x.shape, x.dtype, seed=1) if upstream is None else upstream
    return spikes.detach(), *torch.autograd.grad(spikes, [x, *module.parameters()], upstream)


def by_hand(one: Recurrent, x: Tensor) -> Tensor:
    """The loop, over the neuron's own steps."""
    neuron, s, spikes = copy.deepcopy(one.neuron), torch.zeros_like(x[0]), []
    neuron.stateful = True
    for x_t in x:
        current = x_t + one.bias + F.linear(s, one.weight)
        s = neuron.define_from(current[None], neuron.held)
        s, neuron.held = s[0][0], s[1]
        spikes.append(s)
    return torch.stack(spikes)


@every_kind
def test_in_float64_it_is_the_loop(kind, backend):
    one, x = made(kind).double(), normal((T, B, N), torch.float64, std=1.5)
    found, expected = learnt(one, one, x), learnt(one.define, one, x)
    assert 0.02 < expected[0].ne(0).double().mean() < 0.98
    assert torch.equal(found[0], expected[0])
    alone = copy.deepcopy(one)
    alone.weight.data.zero_()
    assert not torch.equal(alone(x), found[0])  # what comes back matters
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@few
def test_the_definition_is_a_loop_over_steps(kind):
    one, x = made(kind).double(), normal((T, B, N), torch.float64, std=1.5)
    assert torch.equal(one.define(x), by_hand(one, x))


SIZES = [
    (1, 1, 1),
    (2, 1, 3),
    (1, 5, 7),
    (3, 9, 16),
    (5, 4, 33),
    (4, 17, 64),
    (3, 8, 130),
    (2, 3, 200),
]


@pytest.mark.parametrize(
    ("size", "dtype", "kind"),
    each(SIZES, [torch.float32, torch.bfloat16, torch.float64, torch.float16], ["LIF", "ILIF"]),
    ids=str,
)
def test_sums_that_are_exact_give_the_definitions_spikes(size, dtype, kind, backend):
    """Currents are multiples of 1/4, weights of 1/64: no order of summing rounds."""
    one = Recurrent(KINDS[kind](), size[2]).to(dtype)
    one.weight.data = dyadic((size[2], size[2]), dtype, seed=3, low=-8, high=8) / 16
    x = dyadic(size, dtype, seed=4)
    found, expected = learnt(one, one, x), learnt(one.define, one, x)
    assert found[0].dtype == dtype
    assert torch.equal(found[0], expected[0])
    exact = copy.deepcopy(one).double()
    true = learnt(exact.define, exact, x.double(), normal(x.shape, dtype, seed=1).double())
    for name, ours, theirs in zip(("x", "weight"), found[1:], true[1:], strict=True):
        assert_rounded(name, ours, theirs, ulps=256)


def test_in_float32_only_a_tie_parts_it_from_the_loop(backend):
    """Where a spike differs first, the potential is within a rounding of the threshold."""
    one = Recurrent(nn.IF(v_reset=None), 64)
    torch.manual_seed(2)
    one.weight.data.normal_(std=0.3)
    x = normal((40, 512, 64), mean=0.1, std=0.5)
    found, expected = one(x), one.define(x)
    apart = (found != expected).any(2)
    assert apart.any(0).double().mean() < 0.1
    assert not apart[0].any()
    exact = copy.deepcopy(one).double()
    exact.neuron.store_v_seq = True
    exact(x.double())
    for b in apart.any(0).nonzero().flatten().tolist():
        first = int(apart[:, b].nonzero()[0])
        neurons = (found != expected)[first, b]
        h = exact.neuron.v_seq[first, b, neurons].detach()
        nearest = torch.minimum(
            (h - 1).abs(), h.abs()
        )  # what is left of a potential of 1 that fired is 0
        assert nearest.max() < 1e-5


@few
@pytest.mark.parametrize("parts", [(1,) * T, (5, 1, T - 6)], ids=["steps", "chunks"])
def test_chunks_give_what_the_window_gives(kind, parts, backend):
    """Gradients go from chunk to chunk, through spikes and states."""
    one, x = made(kind).double(), normal((T, B, N), torch.float64, std=1.5)
    expected = learnt(one, one, x)
    one.neuron.stateful = True

    def in_chunks(x):
        one.reset()
        return torch.cat([one(part) for part in x.split(parts)])

    for ours, theirs in zip(learnt(in_chunks, one, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert len(one.neuron.held) == len(one.neuron.states) + 1
    torch.testing.assert_close(one.neuron.held[-1], expected[0][-1])
    one.detach()
    assert not one.neuron.held.requires_grad


def test_one_step_a_call():
    one, x = made("ALIF"), normal((T, B, N), std=1.5)
    expected = one(x)
    one.neuron.step_mode = "s"
    assert torch.equal(torch.stack([one(x_t) for x_t in x]), expected)
    one.reset()
    assert torch.equal(one(x[0]), expected[0])


def test_a_state_set_by_hand_begins_without_spikes():
    one, x = made("LIF"), normal((T, B, N), std=1.5)
    one.neuron.stateful = True
    one.neuron.v = torch.full((B, N), 0.5)
    states = torch.stack([torch.full((B, N), 0.5), torch.zeros(B, N)])
    assert torch.equal(one(x), one.define_from(x, states)[0])
    assert one.neuron.m is None


@few
@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_the_probe_and_membranes_are_those_of_a_loop(kind, backend):
    """With which ``test_kernels_in_float32_find_what_eager_pytorch_finds`` compares the others."""
    one, x = made(kind).double(), normal((T, B, N), torch.float64, std=1.5)
    upstream = normal(x.shape, x.dtype, seed=1)
    one.neuron.store_v_seq = True
    one.neuron.probe = probe = torch.zeros(T, len(PROBE_FIELDS), requires_grad=True)
    one(x).backward(upstream)
    whole, trace = probe.grad, one.neuron.v_seq
    given = (x + one.bias).detach().requires_grad_()
    spikes, states = [], None
    for x_t in given:
        s = 0.0 if states is None else F.linear(states[-1], one.weight)
        out, states = _stepped(one, x_t + s, states)
        spikes.append(out)
        out.retain_grad()
    torch.autograd.backward(spikes, [*upstream])
    fields = {name: whole[:, i].double() for i, name in enumerate(PROBE_FIELDS)}
    by_spikes = torch.stack([s.grad for s in spikes])
    sums = {
        "grad_spike_sq": by_spikes.square().sum((1, 2)),
        "grad_input_sq": given.grad.square().sum((1, 2)),
        "grad_input_max": given.grad.abs().amax((1, 2)),
        "spikes": torch.stack(spikes).sum((1, 2)).detach(),
        "nonfinite": torch.zeros(T),
    }
    for name, value in sums.items():
        torch.testing.assert_close(fields[name], value.double(), rtol=1e-5, atol=1e-6)
    assert fields["grad_carry_sq"][0] > 0
    assert fields["grad_carry_sq"][-1] == 0
    torch.testing.assert_close(trace, torch.stack(_traces(one, x)))


def _stepped(one, current, states):
    """A step of the neuron, spikes behind the states."""
    before = None if states is None else states[:-1]
    spikes, after = one.neuron.define_from(current[None], before)
    out = spikes[0]
    return out, torch.cat([after, out[None]])


def _traces(one, x):
    states, traces = None, []
    for x_t in x + one.bias:
        s = 0.0 if states is None else F.linear(states[-1], one.weight)
        _, states = _stepped(one, x_t + s, states)
        traces.append(states[0])
    return traces


@pytest.mark.parametrize("backend", ["native", "triton"], indirect=True)
@pytest.mark.parametrize("features", [N, 140])
def test_kernels_in_float32_find_what_eager_pytorch_finds(features, backend, device):
    """With states before and after, membranes, a probe and constants that learn; tiles of neurons, one and several."""
    found = []
    for served in (backend, "torch"):
        torch.manual_seed(0)
        one = Recurrent(Unseen(features), features, bias=True).to(device)
        one.neuron.stateful = one.neuron.store_v_seq = True
        one.neuron.probe = torch.zeros(5, len(PROBE_FIELDS), device=device, requires_grad=True)
        x = normal((5, 19, features), device=device, std=1.5).requires_grad_()
        states = normal((3, 19, features), device=device, seed=5).requires_grad_()
        one.neuron.held = states
        with use_backend(served):
            spikes = one(x)
            outs = spikes, one.neuron.held, one.neuron.v_seq
            given = (x, states, *one.parameters(), one.neuron.probe)
            up = [normal(out.shape, device=device, seed=i) for i, out in enumerate(outs)]
            found.append([*outs, *torch.autograd.grad(outs, given, up)])
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_through_states_and_membranes(backend):
    """Of losses of the last states and of every membrane, not of spikes alone."""
    one, x = made("ALIF").double(), normal((T, B, N), torch.float64, std=1.5)

    def losses(run):
        given = x.clone().requires_grad_()
        states, trace = run(given)
        loss = (states * normal(states.shape, seed=7)).sum() + (
            trace * normal(trace.shape, seed=8)
        ).sum()
        return torch.autograd.grad(loss, [given, *one.parameters()])

    def kernels(given):
        one.neuron.stateful = one.neuron.store_v_seq = True
        one.reset()
        one(given)
        return one.neuron.held, one.neuron.v_seq

    def loop(given):
        traces = torch.stack(_traces(one, given))
        return one.define_from(given, None)[1], traces

    for ours, theirs in zip(losses(kernels), losses(loop), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_numerical_gradients(backend):
    one = Recurrent(Smooth(), 5, bias=True).double()
    x = normal((4, 3, 5), torch.float64).requires_grad_()

    def call(x, weight, bias):
        return torch.func.functional_call(one, {"weight": weight, "bias": bias}, (x,))

    torch.autograd.gradcheck(call, (x, one.weight, one.bias))


def test_any_number_of_threads_gives_the_same_bits():
    one, x = made("Adaptive"), normal((60, 67, N), std=1.5)
    one.neuron.probe = torch.zeros(60, len(PROBE_FIELDS), requires_grad=True)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        one.neuron.probe.grad = None
        found.append([*learnt(one, one, x), *torch.autograd.grad(one(x).sum(), one.neuron.probe)])
    torch.set_num_threads(1)
    for ours, theirs in zip(*found, strict=True):
        if ours.shape != (N, N):  # of the matrix by PyTorch's product
            assert torch.equal(ours, theirs)


# ---- PyTorch around it


def test_opcheck(backend):
    """With everything that a call may have, and with nothing."""
    x = normal((3, 2, N)).requires_grad_()
    for kind, more in (("Adaptive", True), ("LIF", False)):
        neuron = KINDS[kind]()
        record, weight = neuron.record(x), made(kind).weight
        call = recurrent.Call(save=True, return_states=more, return_trace=more)
        states = normal((len(neuron.states) + 1, 2, N)).requires_grad_() if more else None
        probe = torch.zeros(3, len(PROBE_FIELDS), requires_grad=True) if more else None
        constants = recurrent.stack(record).get("constants")
        constants = None if constants is None else constants.detach().requires_grad_()
        args = (x, weight, states, constants, probe, record.words(call), record.floats())
        torch.library.opcheck(torch.ops.spiketriton.recurrent_forward.default, args)


@pytest.mark.parametrize("way", ["eager", "aot_eager"])
def test_compiled_whole(way):
    torch._dynamo.reset()
    one, x = made("ALIF"), normal((5, 3, N), std=1.5)
    one.neuron.stateful = True
    compiled = torch.compile(one, backend=way, fullgraph=True)
    found = learnt(compiled, one, x)
    one.reset()
    for ours, theirs in zip(found, learnt(one, one, x), strict=True):
        torch.testing.assert_close(ours, theirs)
    longer = normal((5, 7, N), std=1.5)
    one.reset()
    assert torch.equal(compiled(longer), one.define(longer))


def test_autocast_takes_currents_as_they_come():
    """The matrix is rounded as a linear layer's; sums and membranes are float32."""
    one, x = made("LIF", bias=False), normal((T, B, N), std=1.5)
    half = copy.deepcopy(one)
    half.weight.data = one.weight.data.bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = learnt(one, one, x.bfloat16())
        defined = one.define(x.bfloat16())
    assert found[0].dtype == torch.bfloat16
    assert found[2].dtype == torch.float32
    assert torch.equal(found[0], half.define(x.bfloat16().float()).bfloat16())
    assert torch.equal(found[0], defined)


def test_a_checkpoint_repeats_a_stateful_call():
    one, x = made("LIF"), normal((T, B, N), std=1.5)
    one.neuron.stateful = True
    expected = learnt(one, one, x)
    one.reset()
    found = learnt(lambda x: checkpoint(one, x, use_reentrant=False), one, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_call_without_gradient_keeps_nothing(monkeypatch):
    one, x, kept = made("LIF"), normal((T, B, N)), []
    windows = recurrent._window
    monkeypatch.setattr(recurrent, "_window", lambda *a: kept.append(windows(*a)) or kept[-1])
    with torch.no_grad():
        one(x)
    one(x)
    assert [window.kept is None for window in kept] == [True, False]


def test_eager_steps_and_empty_batches():
    class Random(SpikingNeuron):
        states = ("v",)

        def step(self, x, v):
            return self.fire(v + x - 1.0), torch.roll(v + x, 1, -1)

    one, x = Recurrent(Random(backend="eager"), N), normal((T, B, N), std=1.5)
    assert torch.equal(one(x), one.define(x))
    some = made("LIF")
    x = torch.zeros(T, 0, N, requires_grad=True)
    some(x).sum().backward()
    assert x.grad.shape == x.shape
    assert not some.weight.grad.any()


def test_it_hides_no_norm_from_swap():
    """torch.fx goes around it, and finds the norm in front of another neuron."""

    class Net(torch_nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.node = torch_nn.BatchNorm1d(4), neuron.LIFNode(step_mode="m")
            self.back = Recurrent(nn.LIF(), 4)

        def forward(self, x):
            return self.back(self.node(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])))

    net, x = Net(), normal((5, 3, 4), std=3.0)
    expected = net(x)
    report = nn.swap(net, fuse=True)
    assert "not fused" not in str(report)
    torch.testing.assert_close(net(x), expected)


# ---- modules without states


def test_a_relu_is_a_plain_recurrent_network():
    torch.manual_seed(0)
    one = Recurrent(torch_nn.ReLU(), 6, bias=True)
    twin = torch_nn.RNN(6, 6, nonlinearity="relu")
    twin.weight_ih_l0.data, twin.bias_ih_l0.data = torch.eye(6), torch.zeros(6)
    twin.weight_hh_l0.data, twin.bias_hh_l0.data = one.weight.data, one.bias.data
    x = normal((T, B, 6))
    torch.testing.assert_close(one(x), twin(x)[0])
    one.stateful = True
    torch.testing.assert_close(torch.cat([one(x[:4]), one(x[4:])]), twin(x)[0])
    one.reset()
    one.stateful, one.cut_time = False, True
    given = x.clone().requires_grad_()
    one(given)[-1].sum().backward()
    assert given.grad[-1].any()
    assert not given.grad[:-1].any()


# ---- what is refused


def test_what_makes_no_sense_is_refused():
    for wrong in (
        nn.PSN(4),
        nn.SlidingPSN(2),
        nn.BatchNormLIF(4),
        torch_nn.Linear(4, 4),
        torch.relu,
    ):
        with pytest.raises(
            TypeError, match="accepted: a neuron that takes one step after the other"
        ):
            Recurrent(wrong, 4)

    class Forward(nn.LIF):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match="Forward, which has a forward of its own; accepted"):
        Recurrent(Forward(), 4)
    for wrong in (0, 2.0, True):
        with pytest.raises(ValueError, match=r"features .*: accepted: an integer of at least 1"):
            Recurrent(nn.LIF(), wrong)
    one = Recurrent(nn.LIF(), 4)
    for shape in ((3, 2, 5), (3, 4), (3, 2, 4, 1)):
        with pytest.raises(ValueError, match=r"accepted: \[T, B, 4\], time first, and \(4, 4\)"):
            one(torch.zeros(shape))
    with pytest.raises(ValueError, match="no time steps"):
        one(torch.zeros(0, 2, 4))
    one.neuron.stateful = True
    one(torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match="does not continue the membrane"):
        one(torch.zeros(3, 3, 4))


def test_second_derivatives_and_tangents_are_refused():
    one, x = Recurrent(nn.LIF(), 4), normal((3, 2, 4)).requires_grad_()
    (grad,) = torch.autograd.grad(one(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no double backward; use Recurrent\.define"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(one, (x.detach(),), (x.detach(),))
