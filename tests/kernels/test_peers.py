"""Spikes and gradients equal SpikingJelly's LIFNode and IFNode (torch backend, multi-step)."""

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from spiketriton_kernels import Surrogate, multistep_lif
from tests.covering import pairwise
from tests.kernels.support import dyadic, normal

SURROGATES = {
    "atan": (surrogate.ATan(alpha=2.0), Surrogate.atan(2.0)),
    "sigmoid": (surrogate.Sigmoid(alpha=4.0), Surrogate.sigmoid(4.0)),
    "steep sigmoid": (surrogate.Sigmoid(alpha=10.0), Surrogate.sigmoid(10.0)),
}


def compare(node: torch.nn.Module, x: torch.Tensor, **options) -> None:
    """Theirs in float64: in float32 their sigmoid * (1 - sigmoid) loses digits away from 0."""
    grad = normal(x.shape, x.dtype, x.device, seed=1)
    theirs, ours = x.double().requires_grad_(), x.clone().requires_grad_()
    expected = node.to(x.device)(theirs)
    expected.backward(grad.double())
    spikes = multistep_lif(ours, **options)
    spikes.backward(grad)
    assert torch.equal(spikes, expected.float())
    assert 0.05 < expected.mean() < 0.95
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "v_reset", "detach_reset", "decay_input"),
    pairwise(SURROGATES, [None, 0.0, -0.5], [True, False], [True, False]),
)
def test_lif(backend, device, shape, detach_reset, v_reset, decay_input):
    """tau 2 and dyadic inputs: every potential is exact in both libraries."""
    theirs, slope = SURROGATES[shape]
    node = neuron.LIFNode(
        tau=2.0,
        decay_input=decay_input,
        v_threshold=1.0,
        v_reset=v_reset,
        surrogate_function=theirs,
        detach_reset=detach_reset,
        step_mode="m",
    )
    x = dyadic((6, 2, 3, 5), device=device, low=-1.0, high=4.0)
    compare(
        node,
        x,
        decay=0.5,
        gain=0.5 if decay_input else 1.0,
        reset="soft" if v_reset is None else "hard",
        v_reset=v_reset or 0.0,
        detach_reset=detach_reset,
        surrogate=slope,
    )


@pytest.mark.parametrize(
    ("shape", "v_reset", "detach_reset"), pairwise(SURROGATES, [None, 0.0, -0.5], [True, False])
)
def test_if(backend, device, shape, detach_reset, v_reset):
    theirs, slope = SURROGATES[shape]
    node = neuron.IFNode(
        v_threshold=1.25,
        v_reset=v_reset,
        surrogate_function=theirs,
        detach_reset=detach_reset,
        step_mode="m",
    )
    compare(
        node,
        dyadic((6, 2, 3, 5), device=device),
        decay=1.0,
        threshold=1.25,
        reset="soft" if v_reset is None else "hard",
        v_reset=v_reset or 0.0,
        detach_reset=detach_reset,
        surrogate=slope,
    )


def test_parametric_lif(backend, device):
    """ParametricLIFNode learns w with 1/tau = sigmoid(w); our decay is a tensor with gradient."""
    x = dyadic((5, 2, 3, 4), device=device)
    node = neuron.ParametricLIFNode(
        init_tau=2.0,
        decay_input=False,
        detach_reset=True,
        surrogate_function=surrogate.ATan(),
        step_mode="m",
    ).to(device)
    node(x).sum().backward()
    w = node.w.detach().clone().requires_grad_()
    spikes = multistep_lif(x, decay=1 - torch.sigmoid(w), surrogate=Surrogate.atan())
    spikes.sum().backward()
    torch.testing.assert_close(w.grad, node.w.grad, rtol=1e-4, atol=1e-5)
    assert w.grad.abs() > 0.01


def test_state_carried_over_two_windows(backend, device):
    """SpikingJelly keeps v between calls until it is reset; v_init and return_v do the same."""
    x = dyadic((8, 2, 3), device=device, high=4.0)
    node = neuron.LIFNode(tau=2.0, step_mode="m").to(device)
    expected = torch.cat([node(x[:3]), node(x[3:])])
    first, v = multistep_lif(x[:3], gain=0.5, return_v=True)
    second, v = multistep_lif(x[3:], gain=0.5, v_init=v, return_v=True)
    assert torch.equal(torch.cat([first, second]), expected)
    assert torch.equal(v, node.v)
