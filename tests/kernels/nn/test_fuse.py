"""swap(fuse=True) joins a norm and the neuron behind it where nothing reads between, and says where it does not."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn as torch_nn

from spiketriton_kernels.nn import swap
from spiketriton_kernels.nn.fuse import NormHandedOn
from tests.kernels.support import normal

T, B, C = 5, 3, 4


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
    (plain, None, container(torch_nn.Conv1d(C, C, 1, bias=False), folded(C))),
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


def in_evaluation(forward):
    """What is not traced: a forward that looks at something else than its input."""
    return lambda m, x: m.node(m.norm(x) + x) if m.training else forward(m, x)


X, WIDE = normal((T, B, C, 6)), normal((T, B, C, 6), dtype=torch.float64)


@pytest.mark.parametrize(
    ("forward", "x", "error", "words"),
    [
        (in_evaluation(lambda m, x: m.norm(x) * 2), X, TypeError, "unsupported operand"),
        (in_evaluation(lambda m, x: torch.relu(m.norm(x))), X, TypeError, "normalises for it; accepted: one addition"),
        (lambda m, x: m.node(m.norm(x) + WIDE), X, TypeError, "float64 is added to a batch norm's torch.float32 in fr"),
        (lambda m, x: m.node(m.norm(x) + WIDE), WIDE[..., :1], RuntimeError, "expanded size"),
        (folding(T, B, 6, C), X, ValueError, r"\(5, 3, 6, 4\).*\[T\*B, 4, 6\]"),
    ],
)  # fmt: skip
def test_what_the_graph_did_not_show_is_refused_in_the_call(forward, x, error, words):
    folds = error is ValueError
    net = Between(forward, torch_nn.BatchNorm1d(C) if folds else None)
    assert swap(net, fuse=True).fused == {"node": "norm"}
    with pytest.raises(error, match=words):
        net.to(x.dtype).eval()(x)


def test_a_fused_neuron_takes_no_single_steps():
    net = Between(plain)
    swap(net, fuse=True)
    functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match="step_mode 's'"):
        net(X)
