"""IF, LIF and PLIF follow their published equations."""

import math

import pytest
import torch
from torch import Tensor

from spiketriton.neurons import LIF, PLIF
from tests.neurons.support import NEURONS, B, C, T, currents, every_neuron


class Spike(torch.autograd.Function):
    """Step forward, arctangent surrogate of height 1 and width 0.3 backward."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + (u / 0.3) ** 2)


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


def test_plif_starts_at_its_tau_and_each_channel_has_its_own():
    assert torch.sigmoid(PLIF(init_tau=4.0).w).item() == pytest.approx(1 / 4)
    neuron = PLIF(init_tau=2.0, per_channel=C).double()
    with torch.no_grad():
        neuron.w.copy_(torch.tensor([-2.0, -1.0, 0.0, 1.0]))
    x = currents(T, B, C, 2, 2)
    for c, w in enumerate(neuron.w.tolist()):
        one = PLIF(init_tau=1 + math.exp(-w)).double()
        assert torch.equal(neuron(x)[:, :, c], one(x[:, :, c]))


def test_defaults_and_bounds():
    assert repr(LIF()) == repr(LIF(2.0, True, 1.0, 0.0))
    assert LIF().neuron_arguments()["gain"] == 0.5
    assert LIF(tau=1).neuron_arguments()["decay"] == 0.0
    plif = PLIF()
    assert (plif.w.shape, plif.w.item(), plif.decay_input, plif.v_threshold) == ((), 0.0, True, 1.0)
    assert PLIF(init_tau=1.001, per_channel=1).w.shape == (1,)
