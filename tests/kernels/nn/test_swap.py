"""swap() puts ours in place of SpikingJelly's neurons: equal where it swaps, named with a reason where it does not."""

import copy
import io

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn as torch_nn

from spiketriton_kernels import nn
from spiketriton_kernels.nn import peers, swap
from spiketriton_kernels.nn.fuse import NormHandedOn
from tests.covering import pairwise
from tests.kernels.support import dyadic, normal

T, B, C = 5, 3, 4

NODES = {
    "if": neuron.IFNode,
    "lif": lambda **options: neuron.LIFNode(tau=2.0, decay_input=False, **options),
    "lif, decay_input": lambda **options: neuron.LIFNode(tau=2.0, **options),
    "plif": lambda **options: neuron.ParametricLIFNode(decay_input=False, **options),
    "plif, decay_input": neuron.ParametricLIFNode,
    "simple if": neuron.SimpleIFNode,
    "simple lif": lambda **options: neuron.SimpleLIFNode(2.0, True, **options),
    "ilif": lambda surrogate_function=None, v_reset=None, **options: neuron.ILIFNode(**options),
    "clif": lambda detach_reset=None, v_reset=None, **options: neuron.ComplementaryLIFNode(**options),
}  # fmt: skip
SURROGATES = [
    surrogate.ATan(),
    surrogate.Sigmoid(alpha=10.0),
    surrogate.PiecewiseQuadratic(alpha=1.5),
    surrogate.SoftSign(),
    surrogate.SuperSpike(),
    surrogate.Erf(),
    surrogate.Rect(alpha=0.7),
]


class Net(torch_nn.Module):
    """conv, norm, neuron, conv, norm, neuron, pool, linear: what SpikingJelly's tutorials build."""

    def __init__(self, node=NODES["lif"], mode="m", **options):
        super().__init__()
        self.conv1, self.bn1 = layer.Conv2d(2, C, 3, padding=1), layer.BatchNorm2d(C)
        self.sn1 = node(**options)
        self.conv2, self.bn2 = layer.Conv2d(C, C, 3, padding=1, bias=False), layer.BatchNorm2d(C)
        self.sn2 = node(**options)
        self.pool = layer.AvgPool2d(2)
        self.fc = layer.Linear(C * 4, 3)
        functional.set_step_mode(self, mode)

    def forward(self, x):
        x = self.sn1(self.bn1(self.conv1(x)))
        x = self.sn2(self.bn2(self.conv2(x)))
        return self.fc(self.pool(x).flatten(-3))


def image(seed=0, dtype=torch.float32):
    return normal((T, B, 2, 4, 4), dtype, seed=seed, std=2.0)


def gradients(net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    out = net(x)
    (out * normal(out.shape, out.dtype, seed=7)).sum().backward()
    return [out.detach(), x.grad, *(p.grad.clone() for p in net.parameters())]


# ---- what is swapped is equal


@pytest.mark.parametrize(
    ("kind", "v_reset", "slope"),
    [
        *pairwise(["if", "lif", "lif, decay_input", "plif", "plif, decay_input"], [0.0, -0.5, None], SURROGATES),
        ("simple if", None, SURROGATES[0]),
        ("simple if", 0.0, SURROGATES[0]),
        ("simple lif", 0.0, SURROGATES[0]),
        ("ilif", None, None),
        ("clif", None, SURROGATES[0]),
    ],
    ids=str,
)  # fmt: skip
def test_a_swapped_node_is_equal(kind, v_reset, slope):
    """Spikes bit for bit: on dyadic currents every potential is exact in both (of CLIF nearly)."""
    options = dict(v_reset=v_reset, surrogate_function=slope, detach_reset=v_reset == 0.0)
    before = torch_nn.Sequential(NODES[kind](step_mode="m", **options)).double()
    after = copy.deepcopy(before)
    report = swap(after)
    assert list(report.swapped) == ["0"]
    assert not report.left
    assert type(before[0]).__name__ in report.swapped["0"]
    x = dyadic((T, B, C, 3), torch.float64, low=-1, high=4)
    (spikes, *grads), (expected, *expected_grads) = gradients(after, x), gradients(before, x)
    assert 0.05 < (expected > 0).float().mean() < 0.95
    assert torch.equal(spikes, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kind", "fuse"), [("lif", False), *((kind, True) for kind in NODES)])
def test_a_swapped_network_is_equal(kind, fuse):
    before = Net(NODES[kind], surrogate_function=surrogate.ATan()).double()
    after = copy.deepcopy(before)
    report = swap(after, fuse=fuse)
    assert report.fused == ({"sn1": "bn1", "sn2": "bn2"} if fuse else {})
    for training in (True, True, False):  # running statistics go on
        for net in (before, after):
            net.train(training)
            functional.reset_net(net)
        x = image(dtype=torch.float64)
        if kind == "clif" and not training:  # SpikingJelly's has no gradient then
            torch.testing.assert_close(after(x), before(x), rtol=1e-8, atol=1e-10)
            continue
        for found, expected in zip(gradients(after, x), gradients(before, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    for name, buffer in before.named_buffers():
        torch.testing.assert_close(after.get_buffer(name), buffer)


def test_single_steps_become_stateful_and_are_equal():
    """step_mode "s" is SpikingJelly's default: the first dimension is the batch, not time."""
    before = Net(mode="s").double().eval()
    after = copy.deepcopy(before)
    report = swap(after, fuse=True)
    assert list(report.swapped) == ["sn1", "sn2"]
    assert set(report.unfused.values()) == {"a single step has other statistics than a window"}
    for _ in range(2):
        for x in image(dtype=torch.float64):
            assert torch.equal(after(x), before(x))
        functional.reset_net(before)
        functional.reset_net(after)
    functional.set_step_mode(after, "m")
    functional.set_step_mode(before, "m")
    assert torch.equal(after(image(dtype=torch.float64)), before(image(dtype=torch.float64)))


def test_state_is_kept_until_reset_net_as_before():
    """reset_net remembers a network's modules; swapped ones are found none the less."""
    before = Net(surrogate_function=surrogate.ATan()).double().eval()
    x = image(dtype=torch.float64)
    after = copy.deepcopy(before)
    nodes = [after.sn1, after.sn2]  # which stay alive after the swap
    for net in (before, after):
        net(x[:2])
        functional.reset_net(net)
        net(x[:2])
    with pytest.raises(ValueError, match=r"reset_net\(net\)"):
        swap(after, check=x)
    swap(after)  # in the middle of a window
    assert torch.equal(after(x[2:]), before(x[2:]))
    assert after.sn1 is not nodes[0]
    functional.reset_net(after)
    functional.reset_net(before)
    assert torch.equal(after(x), before(x))
    functional.detach_net(after)
    assert not after.sn1.v.requires_grad


@pytest.mark.parametrize("kind", ["if", "plif"])
def test_the_membranes_of_every_step_are_stored_as_before(kind):
    """store_v_seq: the same v_seq, and the same gradients of a loss on it."""
    options = dict(surrogate_function=surrogate.ATan(), store_v_seq=True)
    before = torch_nn.Sequential(layer.Linear(6, C), NODES[kind](step_mode="m", **options)).double()
    after = copy.deepcopy(before)
    assert swap(after, fuse=True).left == {}
    runs = []
    for net in (before, after):
        x = normal((T, B, 6), torch.float64, std=2.0).requires_grad_()
        spikes, v_seq = net(x), net[1].v_seq
        (spikes.sum() + (v_seq * normal(v_seq.shape, torch.float64, seed=1)).sum()).backward()
        runs.append([spikes, v_seq, x.grad, *(p.grad for p in net.parameters())])
    for found, expected in zip(*reversed(runs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    functional.reset_net(after)
    assert after[1].v_seq is None
    assert copy.deepcopy(after)[1].store_v_seq


# ---- what survives


def test_weights_keys_and_optimizers_go_on():
    net = Net(NODES["plif, decay_input"])
    names = [name for name, _ in net.named_parameters()]
    keys = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    swap(net, fuse=True)
    assert {name for name, _ in net.named_parameters()} == set(names)
    assert net.state_dict().keys() == keys.keys()
    assert all(torch.equal(value, keys[name]) for name, value in net.state_dict().items())
    net(image()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.sn1.w, keys["sn1.w"])
    assert not torch.equal(net.bn1.weight, keys["bn1.weight"])
    untouched = Net(NODES["plif, decay_input"])
    untouched.load_state_dict(net.state_dict())
    net.load_state_dict(untouched.state_dict())
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    stored = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(net), stored):
        for each in (net, twin):
            functional.reset_net(each)
        assert torch.equal(twin.eval()(image()), net.eval()(image()))
    twin.double()
    assert twin.sn1.w.dtype == torch.float64


def test_hooks_survive_and_their_handles_remove_them():
    net, seen = Net(), []
    handles = [
        net.sn1.register_forward_hook(lambda m, x, y: seen.append(("forward", type(m)))),
        net.sn1.register_forward_pre_hook(lambda m, x: seen.append(("pre", type(m)))),
        net.sn1.register_full_backward_hook(lambda m, g, h: seen.append(("backward", type(m)))),
        net.sn1.register_forward_hook(lambda m, x, k, y: seen.append("kwargs"), with_kwargs=True),
    ]
    net.sn2.eval()
    report = swap(net, fuse=True)
    assert report.fused == {"sn2": "bn2"}
    assert report.unfused == {"sn1": "hooks on it read the current"}
    assert not net.sn2.training
    net(image().requires_grad_()).sum().backward()
    assert seen == [("pre", nn.LIF), ("forward", nn.LIF), "kwargs", ("backward", nn.LIF)]
    for handle in handles:
        handle.remove()
    functional.reset_net(net)
    net(image())
    assert len(seen) == 4


def test_a_shared_node_stays_one():
    node = neuron.IFNode(step_mode="m")
    net = torch_nn.ModuleDict(
        {"a": node, "b": torch_nn.Sequential(layer.Linear(C, C, step_mode="m"), node)}
    )
    report = swap(net, fuse=True)
    assert list(report.swapped) == ["a", "b.1"]
    assert net["a"] is net["b"][1]
    assert isinstance(net["a"], nn.IF)


def test_swapping_twice_does_nothing_the_second_time():
    net = Net()
    swap(net)
    again = swap(net)
    assert (again.swapped, again.left) == ({}, {})


def test_a_swapped_network_compiles_in_one_graph():
    net = Net().eval()
    swap(net, fuse=True)
    expected = net(image())
    functional.reset_net(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image()), expected)


@pytest.mark.parametrize(
    ("dtype", "fuse"), [(torch.float16, False), (torch.bfloat16, True)], ids=str
)
def test_a_half_precision_network_is_swapped(dtype, fuse):
    """Spikes as float32 has them from the same currents: the membrane is not rounded to 16 bits any more."""
    net = Net(NODES["plif, decay_input"]).to(dtype)
    report = swap(net, fuse=fuse)
    assert len(report.swapped) == 2
    out = net(image(dtype=dtype))
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in net.parameters())
    assert net.sn1.v.dtype == torch.float32


# ---- what is left is named


class Mine(neuron.LIFNode):
    def single_step_functional_forward(self, inputs, states, **options):
        return super().single_step_functional_forward((2 * inputs[0],), states, **options)


class Renamed(neuron.LIFNode):
    """Nothing but another constructor."""

    def __init__(self):
        super().__init__(tau=4.0, detach_reset=True, step_mode="m")


def with_own(name, value):
    node = neuron.IFNode()
    setattr(node, name, value)
    return node


LEARNT = torch_nn.Parameter(torch.ones(()))
LEFT = [
    (neuron.KLIFNode, ["KLIFNode", "no kernel has its equation", "LIFNode"]),
    (Mine, ["Mine is a LIFNode that overrides single_step_functional_forward"]),
    (lambda: with_own("forward", lambda x: x), ["IFNode that overrides forward"]),
    (lambda: with_own("scale", LEARNT), ["IFNode with parameters of its own: scale"]),
    (lambda: neuron.IFNode(surrogate_function=surrogate.ATan(LEARNT)), ["alpha of surrogate ATan"]),
    (lambda: neuron.IFNode(surrogate_function=surrogate.PiecewiseExp()), ["PiecewiseExp", "ATan"]),
    (lambda: neuron.IFNode(surrogate_function=surrogate.ATan(spiking=False)), ["spiking=False"]),
    (lambda: neuron.SimpleIFNode(v_reset=-1.0), ["SimpleIFNode with v_reset -1.0 starts at 0"]),
    (lambda: neuron.ILIFNode(store_v_seq=True), ["store_v_seq"]),
    (lambda: neuron.ComplementaryLIFNode(store_state_seqs=True), ["store_state_seqs=True"]),
    (
        lambda: neuron.ILIFNode(surrogate_function=surrogate.MultiLevelSpikeCount(4, grad_window=(-1, 5))),
        ["gradient window of (-1, 5)", "(0.0, 4.0)"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "names"), LEFT)
def test_what_is_left_is_named_with_its_reason(make, names):
    node = make()
    net = torch_nn.Sequential(neuron.IFNode(), node)
    report = swap(net)
    assert (list(report.swapped), list(report.left)) == (["0"], ["1"])
    assert net[1] is node
    for name in names:
        assert name in report.left["1"]
        assert name in str(report)


def test_a_subclass_with_another_constructor_is_swapped():
    net = torch_nn.Sequential(Renamed())
    assert swap(net).swapped == {"0": "Renamed -> LIF"}
    assert net[0].tau == 4.0


def compiled_in_place():
    net = Net()
    net.sn1.compile(backend="aot_eager")
    return net


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: "net", TypeError, "net is a str"),
        (neuron.LIFNode, TypeError, r"neuron itself \(LIFNode\)"),
        (lambda: torch_nn.Sequential(torch.compile(Net())), ValueError, "0 is compiled by torch.compile"),
        (compiled_in_place, ValueError, "sn1 is compiled"),
        (lambda: torch.jit.script(torch_nn.Sequential(torch_nn.Linear(2, 2))), ValueError, "net is scripted"),
    ],
)  # fmt: skip
def test_what_cannot_be_swapped_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        swap(make())


# ---- fuse


class Between(torch_nn.Module):
    """One norm and one neuron, and what the test puts between and around them."""

    def __init__(self, forward, norm=None, node=None):
        super().__init__()
        self.norm = layer.BatchNorm1d(C, step_mode="m") if norm is None else norm
        self.pool = layer.MaxPool1d(1, step_mode="m")
        self.node = node or neuron.LIFNode(step_mode="m")
        self._forward = forward
        self.register_buffer("mean", torch.zeros(()))
        self.calls = []

    def forward(self, x):
        return self._forward(self, x)


def plain(m, x):
    return m.node(m.norm(x))


def folding(*shape):
    return lambda m, x: m.node(m.norm(x.flatten(0, 1)).reshape(*shape).contiguous())


def adding(m, x):
    """As SpikingJelly's residual blocks: in place, what was added first."""
    out = m.norm(x)
    identity = m.pool(x)
    out += identity
    return m.node(out)


def keeping(m, x):
    """What it keeps of a call is not what the tracer called it with."""
    m.mean = 0.5 * m.mean + x.detach().mean()
    m.calls.append(x.detach().mean())
    return m.node(m.norm(x - m.mean - m.calls[0]))


folded = torch_nn.BatchNorm1d
container, windows = layer.SeqToANNContainer, dict(step_mode="m")
FUSED = [
    (plain, None),
    (lambda m, x: m.node(x + m.norm(x)), None),
    (lambda m, x: m.node(torch.add(m.norm(x), x)), None),
    (lambda m, x: m.node(m.norm(x).add_(x)), None),
    (lambda m, x: m.node(x.add(m.norm(x))), None),
    (lambda m, x: m.node(m.norm(x) + x[:, :, :, :1]), None),
    (keeping, None),
    (adding, None, None, neuron.ParametricLIFNode),
    (lambda m, x: m.node((x.flatten(0, 1) + m.norm(x.flatten(0, 1))).view(T, B, C, 6)), None, folded(C)),
    (lambda m, x: m.node(m.norm(x.flatten(0, 1)).unflatten(0, (T, B)).contiguous() + x), None, folded(C)),
    (folding(T, B, C, 6), None, folded(C)),
    (plain, None, container(torch_nn.Conv1d(C, C, 1), folded(C))),
    (plain, None, torch_nn.Sequential(layer.BatchNorm1d(C, **windows))),
    (plain, None, layer.BatchNorm1d(C, track_running_stats=False, **windows)),
    (lambda m, x: m.node(m.pool(m.norm(x))), "pool (MaxPool1d) is in front"),
    (lambda m, x: m.node(m.norm(x) + 0.25), "adds more than a tensor"),
    (lambda m, x: m.node(torch.add(m.norm(x), x, alpha=0.5)), "adds more than a tensor"),
    (lambda m, x: m.node(m.norm(x) + x + x), "of add_1 in front of it: add"),
    (lambda m, x: m.node(y := m.norm(x) + x) + y, "add in front of it is read elsewhere"),
    (lambda m, x: m.node((y := m.norm(x)) + x) + y, "norm in front of it is read elsewhere"),
    (lambda m, x: m.node(x), "is in front of it, no batch norm"),
    (lambda m, x: (m.node(y := m.norm(x)), y)[0] + y, "norm in front of it is read"),
    (lambda m, x: m.node(m.norm(m.norm(x))), "called several times"),
    (lambda m, x: plain(m, plain(m, x)), "called 2 times"),
    (lambda m, x: plain(m, x) if x.sum() > 0 else plain(m, 2 * x), "torch.fx cannot trace Between.forward"),
    (plain, "norm in front of it has step_mode 's'", layer.BatchNorm2d(B, step_mode="s")),
    (plain, "normalises what is not folded", torch_nn.BatchNorm2d(B)),
    (plain, "InstanceNorm2d", torch_nn.InstanceNorm2d(T)),
    (plain, "SeqToANNContainer", container(torch_nn.Conv1d(C, C, 1))),
]  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_norms_are_fused_where_nothing_else_reads_between(case):
    forward, reason, norm, node = (*case, None, None)[:4]
    net = torch_nn.Sequential(Between(forward, copy.deepcopy(norm), node and node(step_mode="m")))
    x = normal((T, B, C, 6), mean=0.5)
    before = copy.deepcopy(net)
    report = swap(net, fuse=True, check=x)
    if reason is None:
        assert list(report.fused) == ["0.node"]
        assert isinstance(net.get_submodule(report.fused["0.node"]), NormHandedOn)
    else:
        assert reason in report.unfused["0.node"]
        assert not any(isinstance(m, NormHandedOn) for m in net.modules())
    assert report.check["gradients"] < 1e-9
    assert net.state_dict().keys() == before.state_dict().keys()
    for training in (True, False):
        found, expected = (each.train(training)(x).detach() for each in (net, before))
        assert (found != expected).float().mean() <= 0.01  # statistics round otherwise
        functional.reset_net(net)
        functional.reset_net(before)
    for name, buffer in before.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer)


class Whole(torch_nn.Module):
    """Parts in a forward that torch.fx traces, or cannot."""

    def __init__(self, forward, *parts):
        super().__init__()
        self.parts, self._forward = torch_nn.ModuleList(parts), forward

    def forward(self, x):
        return self._forward(self, x)


def test_a_norm_that_parts_share_is_not_fused():
    shared = layer.BatchNorm1d(C, step_mode="m")
    parts = Between(plain, shared), Between(plain, shared)
    report = swap(torch_nn.Sequential(*parts), fuse=True)
    assert report.fused == {}
    assert "norm in front of it is called several times" in report.unfused["1.node"]
    parts = Between(plain, shared), Between(plain, shared)
    report = swap(Whole(lambda m, x: m.parts[int(x.sum() > 0)](x), *parts), fuse=True)
    assert report.fused == {}
    assert set(report.unfused.values()) == {"norm in front of it is shared between several places"}


def test_hooks_on_a_norm_keep_it():
    net = Between(plain)
    net.norm.register_forward_hook(lambda *_: None)
    assert "hooks on norm read what it gives" in swap(net, fuse=True).unfused["node"]


def test_parts_that_trace_are_fused_where_the_whole_does_not():
    net = Whole(lambda m, x: m.parts[0](x) if x.shape[0] > 1 else x, Between(plain))
    assert swap(net, fuse=True).fused == {"parts.0.node": "parts.0.norm"}
    assert net(normal((T, B, C, 6))).shape == (T, B, C, 6)


def test_what_the_graph_did_not_show_cannot_read_a_norm_that_hands_on():
    """A forward that looks at something else than its input is not what was traced."""
    net = Between(lambda m, x: m.node(m.norm(x) + x) if m.training else m.norm(x) * 2)
    assert swap(net, fuse=True).fused == {"node": "norm"}
    with pytest.raises(TypeError, match="unsupported operand"):
        net.eval()(normal((T, B, C, 6)))
    net = Between(lambda m, x: m.node(m.norm(x) + x) if m.training else torch.relu(m.norm(x)))
    swap(net, fuse=True)
    with pytest.raises(TypeError, match="whose neuron normalises for it; accepted: one addition"):
        net.eval()(normal((T, B, C, 6)))


def test_a_residual_of_another_dtype_or_a_larger_shape_is_refused_in_the_call():
    other = normal((T, B, C, 6), dtype=torch.float64)
    net = Between(lambda m, x: m.node(m.norm(x) + other))
    assert swap(net, fuse=True).fused == {"node": "norm"}
    with pytest.raises(TypeError, match=r"float64 is added to a batch norm's torch.float32 in fr"):
        net(normal((T, B, C, 6)))
    with pytest.raises(RuntimeError, match="expanded size"):
        net.double()(normal((T, B, C, 1), dtype=torch.float64))


def test_a_fused_residual_block_compiles_in_one_graph():
    net = Between(adding).bfloat16()
    swap(net, fuse=True)
    x = normal((T, B, C, 6), torch.bfloat16)
    expected = net(x)
    functional.reset_net(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).float().sum().backward()
    assert net.norm.weight.grad.isfinite().all()


def test_an_unfolding_that_is_none_is_refused_in_the_call():
    net = Between(folding(T, B, 6, C), torch_nn.BatchNorm1d(C))
    report = swap(net, fuse=True)
    assert report.fused == {"node": "norm"}
    with pytest.raises(ValueError, match=r"\(5, 3, 6, 4\).*\[T\*B, 4, 6\]"):
        net(normal((T, B, C, 6)))


def test_a_fused_neuron_takes_no_single_steps():
    net = Net()
    swap(net, fuse=True)
    functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match="step_mode 's'"):
        net(image()[0])


# ---- check


def test_check_compares_before_and_after_and_changes_nothing_else():
    net = Net(surrogate_function=surrogate.ATan())
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    report = swap(net, check=image())
    assert report.check["dtype"] == "float64"
    assert 0 <= max(report.check[k] for k in ("outputs", "gradients", "buffers")) < 1e-9
    assert "checked in float64: outputs differ by" in str(report)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.sn1.v is None
    assert next(net.parameters()).dtype == torch.float32


def test_a_difference_is_found_and_nothing_is_swapped(monkeypatch):
    monkeypatch.setitem(
        peers._LIBRARIES["spikingjelly"], "LIFNode", lambda node: nn.LIF(2.1, False)
    )
    net = Net()
    with pytest.raises(
        ValueError, match=r"outputs differ by .*accepted: 1e-06\. Nothing was swapped"
    ):
        swap(net, check=image())
    assert isinstance(net.sn1, neuron.LIFNode)


def test_check_sees_a_gradient_that_differs(monkeypatch):
    monkeypatch.setitem(
        peers._LIBRARIES["spikingjelly"],
        "LIFNode",
        lambda node: nn.LIF(2.0, False, detach_reset=True),
    )
    with pytest.raises(ValueError, match=r"outputs differ by 0\.0e\+00, gradients differ by"):
        swap(Net(), check=(image(),))
