"""swap() puts ours in place of SpikingJelly's neurons: equal where it swaps, named with a reason where it does not."""

import copy
import io

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn as torch_nn

from spiketriton_kernels import nn, use_backend
from spiketriton_kernels.adopt import peers
from spiketriton_kernels.nn import swap
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


@pytest.fixture
def little_compiled(kind):
    """C++ is compiled for few kinds in float64: tests.kernels.cases.COMPILED."""
    with use_backend("torch" if kind == "clif" else "auto"):
        yield


@pytest.mark.usefixtures("little_compiled")
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


@pytest.mark.usefixtures("little_compiled")
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
    # in float16 C++ would be compiled for this alone
    with use_backend("torch" if dtype == torch.float16 else "auto"):
        out = net(image(dtype=dtype))
        assert out.dtype == dtype
        out.float().square().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in net.parameters())
    assert net.sn1.v.dtype == torch.float32


# ---- what is left is named


class Mine(neuron.LIFNode):
    def single_step_functional_forward(self, inputs, states, **options):
        return super().single_step_functional_forward((2 * inputs[0],), states, **options)


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


def test_a_subclass_with_another_constructor_is_swapped():
    class Renamed(neuron.LIFNode):
        def __init__(self):
            super().__init__(tau=4.0, detach_reset=True, step_mode="m")

    net = torch_nn.Sequential(Renamed())
    assert swap(net).swapped == {"0": "Renamed -> LIF"}
    assert net[0].tau == 4.0


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


# ---- check


def test_check_compares_before_and_after_and_changes_nothing_else():
    net = Net(surrogate_function=surrogate.ATan())
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    report = swap(net, check=image())
    assert report.check["dtype"] == "float64"
    assert 0 <= max(report.check[k] for k in ("outputs", "gradients", "buffers")) < 1e-9
    assert "checked in float64, training and eval mode: outputs differ by" in str(report)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.sn1.v is None
    assert next(net.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (lambda node: nn.LIF(2.1, False), r"outputs differ by .*accepted: 1e-06\. Nothing was swapped"),
        (lambda node: nn.LIF(2.0, False, detach_reset=True), r"differ by 0\.0e\+00, gradients differ by"),
    ],
)  # fmt: skip
def test_a_difference_is_found_and_nothing_is_swapped(ours, words, monkeypatch):
    monkeypatch.setitem(peers._LIBRARIES["spikingjelly"], "LIFNode", ours)
    net = Net()
    with pytest.raises(ValueError, match=words):
        swap(net, check=(image(),))
    assert isinstance(net.sn1, neuron.LIFNode)
