"""Credit through time against autograd on loops written by hand, with and without the carried state detached."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton.config import replace
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.through_time import neurons_of, through_time
from spiketriton.models import build_model
from spiketriton.neurons import adopt
from spiketriton.plugins.tasks import build_loss
from spiketriton_kernels import Surrogate
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.backends import choice
from tests.covering import each
from tests.small_runs import small_recipe

B, N, K = 4, 12, 3
SURROGATE = Surrogate("atan", height=0.7, width=0.5)


class Net(nn.Module):
    """Two layers of LIF, read at the last step or by the mean."""

    def __init__(
        self,
        tau: float,
        read: str = "last",
        norm: bool = False,
        recurrent: bool = False,
        **options: object,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.tau = read, tau
        self.first, self.second, self.out = nn.Linear(5, N), nn.Linear(N, N), nn.Linear(N, K)
        self.first.weight.data.mul_(4)
        self.second.weight.data.mul_(4)
        self.norm = nn.BatchNorm1d(N) if norm else nn.Identity()
        known = {"surrogate": SURROGATE, "detach_reset": False, **options}
        self.neurons = nn.ModuleList(
            adopt(kernels.LIF(tau, decay_input=False, **known)) for _ in range(2)
        )
        self.recurrent = recurrent
        if recurrent:
            self.neurons = nn.ModuleList(kernels.Recurrent(one, N) for one in self.neurons)

    def forward(self, x: Tensor) -> Tensor:
        first = self.neurons[0](self.norm(self.first(x).flatten(0, 1)).view(*x.shape[:2], N))
        out = self.out(self.neurons[1](self.second(first)))
        return out[-1] if self.read == "last" else out.mean(0)


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * SURROGATE.height / (1 + (u / SURROGATE.width) ** 2)


def by_hand(
    net: Net,
    x: Tensor,
    y: Tensor,
    cut: bool = False,
    detached: bool = False,
) -> list[Tensor]:
    """dL/dx [T, B, N] of both layers in float64, by a loop over the steps.

    detached: neither through resets nor through spikes that come back.
    """
    found, given = [], x.double()
    norms = net.norm, nn.Identity()
    for linear, norm, neuron in zip((net.first, net.second), norms, net.neurons, strict=True):
        matrix = neuron.weight.double() if net.recurrent else torch.zeros(N, N).double()
        current = F.linear(given, linear.weight.double(), linear.bias.double())
        if isinstance(norm, nn.BatchNorm1d):  # the statistics are constants
            var, mean = torch.var_mean(current.detach(), (0, 1), correction=0)
            current = (current - mean) / (var + norm.eps).sqrt()
        current = current.clone()
        current.retain_grad()
        found.append(current)
        v, spikes = torch.zeros_like(current[0]), []
        s = v
        for step in current:
            v, s = v.detach() if cut else v, s.detach() if cut else s
            h = (1 - 1 / net.tau) * v + step + F.linear(s.detach() if detached else s, matrix)
            s = Step.apply(h - 1.0)
            v = (1 - (s.detach() if detached else s)) * h
            spikes.append(s)
        given = torch.stack(spikes)
    out = F.linear(given, net.out.weight.double(), net.out.bias.double())
    F.cross_entropy(out[-1] if net.read == "last" else out.mean(0), y).backward()
    return [current.grad for current in found]


def drawn(steps: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    return torch.randn(steps, B, 5, generator=random), torch.arange(B) % K


def expected(net: Net, x: Tensor, y: Tensor) -> tuple[np.ndarray, ...]:
    def rms(each: Tensor) -> np.ndarray:
        return each.square().mean((1, 2)).sqrt().numpy()

    passes = (
        by_hand(net, x, y),
        by_hand(net, x, y, cut=True),
        by_hand(net, x, y, detached=True),
    )
    shares = [
        (
            rms(whole - alone) / rms(whole)[-1],
            rms(alone) / rms(whole)[-1],
            rms(held) / rms(held)[-1],
        )
        for whole, alone, held in zip(*passes, strict=True)
    ]
    return tuple(map(np.stack, zip(*shares, strict=True)))


@pytest.mark.parametrize("read", ["last", "mean"])
@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
@pytest.mark.parametrize(("tau", "steps"), [(2.0, 6), (30.0, 20), (1.5, 90)])
def test_shares_are_those_of_loops_written_by_hand(tau, steps, norm, read):
    """1.5 and 90: 3^-90, whose square no float32 holds; float32's gradient is 0 there, too."""
    net, (x, y) = Net(tau, read, norm), drawn(steps)
    found = through_time(net, neurons_of(net), steps, lambda: F.cross_entropy(net(x), y))
    credit, direct, remembered = expected(net, x, y)
    assert np.allclose(found.remembered, remembered, rtol=1e-3, atol=0)
    assert not np.allclose(remembered, credit + direct, rtol=0.1)
    assert all(not neuron.detach_reset for neuron in net.neurons)
    assert np.allclose(found.credit, credit, rtol=1e-3, atol=0 if read == "last" else 1e-6)
    assert np.allclose(found.direct, direct, rtol=1e-4, atol=0)
    if read == "last":
        assert not found.direct[:, :-1].any()  # no norm leaks
    assert credit[:, 0].min() < 1e-40 if (tau, read) == (1.5, "last") else credit[:, 0].min() > 1e-4


@pytest.mark.parametrize("read", ["last", "mean"])
@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
def test_spikes_that_come_back_are_a_way_through_time(norm, read):
    net, (x, y) = Net(1.25, read, norm, recurrent=True), drawn(9)
    alone = Net(1.25, read, norm)
    found, without = (
        through_time(one, neurons_of(one), 9, lambda one=one: F.cross_entropy(one(x), y))
        for one in (net, alone)
    )
    credit, direct, remembered = expected(net, x, y)
    assert np.allclose(found.credit, credit, rtol=1e-3, atol=0 if read == "last" else 1e-6)
    assert np.allclose(found.direct, direct, rtol=1e-4, atol=0)
    assert np.allclose(found.remembered, remembered, rtol=1e-3, atol=0)
    longer = [(drawn(8)[0], y)]
    kinds = [Prober(one, longer, F.cross_entropy, images=1).memory() for one in (net, alone)]
    assert kinds == ["feedback", "states"]
    delayed = Net(1.25)
    delayed.second = kernels.Delays(N, N, 3)
    assert Prober(delayed, longer, F.cross_entropy, images=1).memory() == "other"
    assert Prober(alone, [(x[:7], y)], F.cross_entropy, images=1).memory() == "other"  # short
    still = [(x[:1].expand(9, -1, -1), y)]
    assert Prober(alone, still, F.cross_entropy, images=1).memory() == ""
    if read == "last":
        assert (found.credit[:, 0] > 2 * without.credit[:, 0]).all()
        assert not found.direct[:, :-1].any()


def test_a_layer_that_no_gradient_reaches_has_no_credit():
    net, (x, y) = Net(2.0), drawn(5)
    net.out.weight.data.zero_()
    found = through_time(net, neurons_of(net), 5, lambda: F.cross_entropy(net(x), y))
    assert found.credit.shape == (2, 5)
    assert not found.credit.any()
    assert not found.direct.any()


def test_what_is_not_finite_is_infinite():
    net, (x, y) = Net(2.0), drawn(5)
    net.second.weight.data[0, 0] = math.inf
    found = through_time(net, neurons_of(net), 5, lambda: F.cross_entropy(net(x), y))
    assert np.isinf(found.credit[0]).any()


def test_a_measurement_of_time_leaves_no_trace():
    net, (x, y) = Net(4.0, norm=True), drawn(7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    net.eval()
    through_time(net, neurons_of(net), 7, lambda: F.cross_entropy(net(x), y))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training
    assert all("forward" not in vars(neuron) and neuron.v is None for neuron in net.neurons)
    assert all(p.grad is None for p in net.parameters())


def test_no_kernel_is_compiled_for_it(monkeypatch):
    """Where Triton serves a net, its neurons are called in eager PyTorch here."""
    net, (x, y), served = Net(2.0), drawn(5), []

    def loss() -> Tensor:
        served.append(choice.backend_for(x))
        return F.cross_entropy(net(x), y)

    monkeypatch.setattr("spiketriton.gradients.through_time.backend_for", lambda x: "triton")
    found = through_time(net, neurons_of(net), 5, loss)
    assert served == ["torch"] * 3
    assert np.allclose(found.credit, expected(net, x, y)[0], rtol=1e-3)


def test_a_module_called_step_by_step_has_the_same_credit():
    class Steps(Net):
        def forward(self, x: Tensor) -> Tensor:
            for neuron in self.neurons:
                neuron.reset()
            out = [
                self.out(self.neurons[1](self.second(self.neurons[0](self.first(t))))) for t in x
            ]
            return out[-1]

    whole, single, (x, y) = Net(3.0), Steps(3.0, step_mode="s"), drawn(8)
    for neuron in single.neurons:
        neuron.window = 8
    found = [
        through_time(net, neurons_of(net), 8, lambda net=net: F.cross_entropy(net(x), y))
        for net in (whole, single)
    ]
    assert np.allclose(found[0].credit, found[1].credit, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "norm"), each(["lif", "alif", "psn", "cuba", "psn"], ["bn", "tebn", "none"])
)
def test_nets_of_ours_have_credit_of_every_layer(kind, norm):
    """Read at the last step nothing arrives at others on another way than time."""
    recipe = small_recipe(
        *("model.name=mlp", "model.depth=3", f"neuron.kind={kind}", f"model.norm={norm}"),
        *("time_steps=5", "loss.read=last"),
    )
    x, y = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    found = {}
    for read in ("last", "mean"):
        torch.manual_seed(0)
        model = build_model(recipe, classes=10, channels=1, image_size=8)
        loss = build_loss(replace(recipe, f"loss.read={read}").loss)
        found[read] = Prober(model, [(x, y)], loss).through_time()
    assert found["last"].credit.shape == (3, 5)
    assert not found["last"].direct[:, :-1].any()
    if kind != "psn":  # which reads later steps, too
        assert np.allclose(found["last"].direct[:, -1], 1, rtol=1e-4)
    assert (found["last"].credit[:, :-1] > 0).all()
    assert (found["mean"].direct > (1e-5 if kind == "psn" else 0.01)).all()
