"""Every operation that a step may have, forward and backward, against the plain loop and its autograd."""

import pytest
import torch
from torch.nn import functional as F

from spiketriton_kernels import Surrogate
from spiketriton_kernels.backends.choice import use_backend
from spiketriton_kernels.nn import SpikingNeuron
from spiketriton_kernels.triton_import import INTERPRETED
from tests.kernels.support import normal

OPERATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softplus of 3": lambda z: F.softplus(z, beta=3, threshold=2),
    "relu": torch.relu,
    "exp": lambda z: torch.exp(-z * z),
    "expm1": lambda z: torch.expm1(z.clamp(max=1)),
    "log": lambda z: torch.log(1 + z * z),
    "log1p": lambda z: torch.log1p(z.abs()),
    "sqrt": lambda z: torch.sqrt(z * z + 0.5),
    "rsqrt": lambda z: torch.rsqrt(z * z + 0.5),
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "abs": torch.abs,
    "neg": lambda z: 1 - z,
    "squared": lambda z: z**2 / 4,
    "cubed": lambda z: z**3 / 8,
    "to the -1": lambda z: (z.abs() + 1) ** -1,
    "to the -2": lambda z: (z.abs() + 1) ** -2,
    "to the 0.5": lambda z: (z.abs() + 1) ** 0.5,
    "clamp": lambda z: z.clamp(-0.5, 0.75),
    "clamp from below": lambda z: z.clamp(min=-0.25),
    "maximum": lambda z: torch.maximum(z, 0.25 - z),
    "minimum": lambda z: torch.minimum(z, 0.75 * z * z),
    "division": lambda z: z / (1 + z * z),
    "a quotient's divisor": lambda z: 2 / (1.5 + z * z),
    "where": lambda z: torch.where((z > -0.5) & (z <= 1.0) | (z == 9), z, 0.5 * z),
    "masked": lambda z: z.masked_fill(z > 1.25, 0.5),
    "sign": lambda z: z * torch.sign(z),
    "rounded": lambda z: (
        0.25 * z + torch.floor(z) - torch.ceil(z) + torch.trunc(z) + torch.round(z)
    ),
}


class Applies(SpikingNeuron):
    """An operation between the states, and of what the spike reads."""

    states = ("v",)

    def __init__(self, name: str) -> None:
        super().__init__(surrogate=Surrogate("sigmoid", height=1.0, width=2.0))
        self.name = name

    def step(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = OPERATIONS[self.name](0.5 * v + x)
        s = self.fire(h + x - 0.5)
        return s, h - 0.25 * s


@pytest.mark.parametrize("backend", ["torch", *(["triton"] if INTERPRETED else [])])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_and_its_gradient(name, backend, request):
    if backend == "triton":
        request.getfixturevalue("triton_backend")
    neuron = Applies(name)
    x = normal((3, 2, 3, 5), std=1.2).requires_grad_()
    weights = normal(x.shape, seed=1)
    with use_backend(backend):
        spikes = neuron(x)
        (found,) = torch.autograd.grad((spikes * weights).sum(), x)
    expected = neuron.define(x)
    (truth,) = torch.autograd.grad((expected * weights).sum(), x)
    assert torch.equal(spikes, expected)
    assert 0 < expected.mean() < 1
    assert truth.abs().max() > 0.01
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


class Twice(SpikingNeuron):
    """Computes the same of a parameter twice, which kernels read once."""

    states = ("v",)

    def __init__(self) -> None:
        super().__init__(surrogate=Surrogate("sigmoid", height=1.0, width=2.0))
        self.w = torch.nn.Parameter(torch.tensor(0.3))

    def step(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.sigmoid(self.w) * v + (1 - torch.sigmoid(self.w)) * x
        return self.fire(h - 0.5), h


def test_a_constant_that_is_computed_twice_has_the_gradient_of_both():
    neuron = Twice()
    x = normal((4, 2, 5), std=2.0)
    with use_backend("torch"):
        (found,) = torch.autograd.grad(neuron(x).sum(), neuron.w)
    (truth,) = torch.autograd.grad(neuron.define(x).sum(), neuron.w)
    assert truth.abs() > 0.01
    torch.testing.assert_close(found, truth)


def test_a_rectangle_ends_before_its_edge():
    """As of the built-in LIF: phi is 0 where the distance is the width."""

    class Fires(SpikingNeuron):
        states = ("v",)

        def step(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.fire(x - 1.0), v + x

    neuron = Fires(surrogate=Surrogate("rectangle", height=0.75, width=0.5))
    x = torch.tensor([[[0.25, 0.5, 0.75, 1.0, 1.25, 1.5]]], requires_grad=True)
    with use_backend("torch"):
        (found,) = torch.autograd.grad(neuron(x).sum(), x)
    assert found.flatten().tolist() == [0.0, 0.0, 0.75, 0.75, 0.75, 0.0]
