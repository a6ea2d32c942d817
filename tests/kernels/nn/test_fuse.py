"""swap(fuse=True) joins a norm and the neuron behind it where nothing reads between, and says where it does not."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn as torch_nn

from spiketriton_kernels.adopt.draws import drawn
from spiketriton_kernels.neurons.handed import Handed, NormHandedOn
from spiketriton_kernels.nn import swap
from tests.kernels.support import normal

T, B, C = 5, 3, 4


class Between(torch_nn.Module):
    """One norm and one neuron, and what the test puts between and around them."""

    def __init__(self, forward, norm=None, node=None):
        super().__init__()
        self.norm = layer.BatchNorm1d(C, step_mode="m") if norm is None else norm
        self.again = layer.BatchNorm1d(C, step_mode="m")
        self.relu = torch_nn.ReLU(inplace=True)
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
    (lambda m, x: m.node(m.norm(x).clamp(max=0.5) if m.training else m.norm(x)), "in training mode clamp is in front"),
    (lambda m, x: m.node(m.norm(x) if m.training else m.norm(x).round()), "in eval mode round_1 is in front"),
    (lambda m, x: m.node(m.norm(x) if m.training else m.again(x)), "it is behind another batch norm in training mode"),
    (lambda m, x: m.node(m.norm(x)) if m.training else m.pool(x), "in eval mode it is called 0 times"),
    (lambda m, x: m.node(x.clone().add_(m.norm(x))), "add_ in front of it changes clone in place"),
    (lambda m, x: m.node(m.norm(x) + m.norm.weight[:, None]), "reads a tensor of 0.norm in front"),
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
    norms = {n: m for n, m in net.named_modules() if isinstance(m, torch_nn.BatchNorm1d)}
    assert {*norms} == {n for n, m in before.named_modules() if isinstance(m, torch_nn.BatchNorm1d)}
    for training in (True, False):
        found, expected = (each.train(training)(x).detach() for each in (net, before))
        assert (found != expected).float().mean() <= 0.01  # statistics round otherwise
        functional.reset_net(net)
        functional.reset_net(before)
    for name, buffer in before.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_what_a_draw_leads_to_is_not_fused_and_is_checked_with_the_same_draws(draw):
    net = Between(lambda m, x: m.node(m.norm(x) * (1.0 if m.training and draw() < 0.5 else 0.9)))
    x = normal((T, B, C, 6), mean=0.5)
    for state in range(4):
        random.seed(state), np.random.seed(state), torch.manual_seed(state)  # noqa: NPY002
        before = drawn()
        report = swap(torch_nn.Sequential(copy.deepcopy(net)), fuse=True, check=x)
        assert report.fused == {}
        assert "in training mode it draws random numbers" in report.unfused["0.node"]
        assert drawn() == before


CHANGING = [
    lambda m, x: (y := 2 * x, z := m.norm(y), y.view(-1).mul_(0.1), m.node(z))[-1],
    lambda m, x: (y := 2 * x, z := m.norm(y), y.__imul__(2), m.node(z))[-1],
    lambda m, x: (y := 2 * x, z := m.norm(y), torch_nn.functional.relu(y, inplace=True), m.node(z))[
        -1
    ],
    lambda m, x: (y := 2 * x, z := m.norm(y), m.relu(y), m.node(z))[-1],
]


@pytest.mark.parametrize("forward", CHANGING)
def test_a_norm_whose_input_is_changed_before_the_neuron_is_not_fused(forward):
    """As it works without gradients; the compiled pass has no other way to know of it."""
    net = Between(forward).eval()
    twin = copy.deepcopy(net)
    report = swap(net, fuse=True)
    assert "changes the input of norm in place before it is read" in report.unfused["node"]
    with torch.no_grad():
        assert torch.equal(net(X), twin(X))


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


def later(forward):
    """What is not traced: a forward that looks at something else than its input and its mode."""
    return lambda m, x: forward(m, x) if hasattr(m, "later") else m.node(m.norm(x) + x)


X, WIDE = normal((T, B, C, 6)), normal((T, B, C, 6), dtype=torch.float64)


def changing(m, x):
    y = 2 * x
    return (z := m.norm(y), y.mul_(0.1), m.node(z))[-1]


def without_grad(m, x):
    with torch.no_grad():
        y = m.norm(x)
    return m.node(y)


@pytest.mark.parametrize(
    ("forward", "x", "error", "words"),
    [
        (later(lambda m, x: m.norm(x) * 2), X, TypeError, "mul of the current of a batch norm"),
        (later(lambda m, x: 2 - m.norm(x)), X, TypeError, "rsub of the current of a batch norm"),
        (later(lambda m, x: x * m.norm(x)), X, TypeError, "mul of the current of a batch norm"),
        (later(lambda m, x: m.norm(x) == 0), X, TypeError, "eq of the current of a batch norm"),
        (later(lambda m, x: m.norm(x)[0]), X, TypeError, "getitem of the current of a batch norm"),
        (later(lambda m, x: torch.relu(m.norm(x))), X, TypeError, "relu of the current of a batch norm"),
        (later(lambda m, x: m.norm(x).clamp(max=1)), X, AttributeError, "clamp of the current of a batch norm"),
        (later(lambda m, x: m.node(m.norm(x) + x + x)), X, TypeError, "addition of a second tensor to the current"),
        (later(lambda m, x: m.node(m.norm(x) + 0.5)), X, TypeError, "the addition of a float to the current"),
        (later(lambda m, x: m.norm(x) + m.norm(x)), X, TypeError, "the addition of a Handed to the current"),
        (later(lambda m, x: m.node(x.clone().add_(m.norm(x)))), X, TypeError, "add_ of the current of a batch norm"),
        (later(lambda m, x: m.again(m.norm(x))), X, AttributeError, "of the current of a batch norm that the neuron"),
        (later(lambda m, x: m.node(z := m.norm(x)) + m.node(z)), X, TypeError, "a second call of a neuron with the c"),
        (later(changing), X, TypeError, "a change in place of the tensors of the current of a batch norm"),
        (without_grad, X, TypeError, "another grad mode of the neuron than of the norm with the current"),
        (lambda m, x: m.node(m.norm(x) + WIDE), X, TypeError, "float64 is added to a batch norm's torch.float32 in fr"),
        (lambda m, x: m.node(m.norm(x) + WIDE), WIDE[..., :1], RuntimeError, "expanded size"),
        (folding(T, B, 6, C), X, ValueError, r"\(5, 3, 6, 4\).*\[T\*B, 4, 6\]"),
    ],
)  # fmt: skip
def test_what_the_graph_did_not_show_is_refused_in_the_call(forward, x, error, words):
    folds = error is ValueError
    net = Between(forward, torch_nn.BatchNorm1d(C) if folds else None)
    assert swap(net, fuse=True).fused == {"node": "norm"}
    net.later = True
    with pytest.raises(error, match=words):
        net.to(x.dtype).eval()(x)


def test_a_current_that_is_kept_or_returned_shows_no_number():
    net = Between(plain)
    swap(net, fuse=True)
    kept = net.norm(X)
    assert isinstance(kept, Handed)
    assert (kept.shape, kept.ndim, kept.dtype, kept.device) == (X.shape, X.ndim, X.dtype, X.device)
    assert repr(kept) == "Handed((5, 3, 4, 6), normalised by a neuron)"
    for read in (bool, float, len, list, torch.stack, lambda y: y.cpu(), lambda y: y.detach()):
        with pytest.raises((TypeError, AttributeError), match="of the current of a batch norm"):
            read([kept] if read is torch.stack else kept)


def test_a_neuron_that_another_norm_leads_to_normalises_by_that_one():
    """And what is no norm's is a current as it is."""
    net = Between(lambda m, x: m.node(m.again(x) if hasattr(m, "later") else m.norm(x)))
    net.again.weight.data.fill_(3.0)
    twin = copy.deepcopy(net)
    swap(net, fuse=True)
    swap(twin)
    net.later = twin.later = True
    assert torch.equal(net(X), twin(X))
    functional.reset_net(net)
    functional.reset_net(twin)
    assert torch.equal(net.node(X), twin.node(X))


def test_a_network_that_differs_in_the_other_mode_is_refused_by_check():
    """What torch.fx does not see: a flag of the class, which is another in eval mode."""
    net = Between(lambda m, x: m.node(m.norm(x)) if m.training else without_grad(m, x)).train()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TypeError, match="another grad mode"):
        swap(net, fuse=True, check=X)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert type(net.norm) is layer.BatchNorm1d


# ---- what torch's tools find by the class of a norm


def joined(**options):
    """A fused network, and the same before."""
    torch.manual_seed(0)
    net = torch_nn.Sequential(layer.Linear(C, C, step_mode="m"), Folded(**options))
    twin = copy.deepcopy(net)
    assert swap(net, fuse=True, check=NARROW).fused == {"1.node": "1.norm"}
    swap(twin)
    return net, twin


NARROW = normal((T, B, C), mean=0.5)


class Folded(torch_nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.norm, self.node = torch_nn.BatchNorm1d(C), neuron.LIFNode(step_mode="m", **options)

    def forward(self, x):
        return self.node(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


def test_update_bn_finds_the_statistics_of_a_fused_norm():
    nets = joined()
    for net in nets:
        torch.optim.swa_utils.update_bn([NARROW, 2 * NARROW], Reset(net))
    (_, fused), (_, apart) = nets
    assert fused.norm.running_mean.abs().min() > 0.01
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(fused.norm, name), getattr(apart.norm, name))
    assert fused.norm.momentum == 0.1


class Reset(torch_nn.Sequential):
    """Forgets the membranes before each batch."""

    def forward(self, x):
        functional.reset_net(self)
        return super().forward(x)


@pytest.mark.parametrize("kind", [torch_nn.modules.batchnorm._BatchNorm, torch_nn.BatchNorm1d])
def test_a_fused_norm_is_frozen_as_any_other(kind):
    answers = []
    for net in joined():
        for module in net.train().modules():
            if isinstance(module, kind):
                module.eval()
        answers.append(net(NARROW))
        assert torch.equal(net[1].norm.running_mean, torch.zeros(C))
    assert torch.equal(*answers)


def test_a_norm_that_was_kept_elsewhere_is_the_fused_one():
    net = torch_nn.Sequential(Folded())
    (norm,) = kept = [net[0].norm]
    swap(net, fuse=True)
    assert net[0].norm is norm
    for each in copy.deepcopy((net, kept)), pickled((net, kept)):
        assert each[0][0].norm is each[1][0]
        assert isinstance(each[1][0], NormHandedOn)
        assert torch.equal(each[0](NARROW), net(NARROW))
        functional.reset_net(net)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def test_a_norm_that_takes_the_place_of_a_fused_one_normalises_itself():
    """As convert_sync_batchnorm puts it there, whose norm needs a GPU."""
    net, twin = joined()
    converted = torch_nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert type(converted[1].norm) is torch_nn.SyncBatchNorm
    assert converted[1].norm.weight is net[1].norm.weight
    assert torch.equal(converted.eval()(NARROW), twin.eval()(NARROW))


def test_a_fused_neuron_takes_no_single_steps():
    net = Between(plain)
    swap(net, fuse=True)
    functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match="step_mode 's'"):
        net(X)
