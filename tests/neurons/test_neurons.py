"""build_neuron: every key of a recipe reaches the neuron."""

import pytest
import torch
from torch import nn

from spiketriton.config import NeuronConfig, SurrogateConfig
from spiketriton.neurons import IF, LIF, PLIF, SpikingNeuron, build_neuron
from spiketriton_kernels import Surrogate
from tests.neurons.support import B, C, T, currents


@pytest.mark.parametrize(("kind", "type_"), [("if", IF), ("lif", LIF), ("plif", PLIF)])
def test_build_neuron_hands_every_key_to_the_neuron(kind, type_):
    leak = {} if kind == "if" else {"tau": 3.0, "decay_input": True}
    surrogate = SurrogateConfig(shape="gaussian", height=0.5, width=0.25)
    neuron = build_neuron(
        NeuronConfig(
            kind=kind,
            v_threshold=2.0,
            v_reset=-1.0,
            detach_reset=False,
            surrogate=surrogate,
            **leak,
        )
    )
    assert type(neuron) is type_
    arguments = neuron.neuron_arguments()
    assert arguments["threshold"] == 2.0
    assert (arguments["reset"], arguments["v_reset"]) == ("hard", -1.0)
    assert arguments["detach_reset"] is False
    built = arguments["surrogate"]
    assert (built.shape, built.height, built.width) == ("gaussian", 0.5, 0.25)
    decay = torch.as_tensor(arguments["decay"]).item()
    assert decay == pytest.approx(1.0 if kind == "if" else 2 / 3)
    gain = torch.as_tensor(arguments["gain"]).item()
    assert gain == pytest.approx(1.0 if kind == "if" else 1 / 3)


def test_build_neuron_of_the_twin_and_of_a_width():
    assert type(build_neuron(NeuronConfig(kind="relu"))) is nn.ReLU
    neuron = build_neuron(NeuronConfig(reset="soft", surrogate=SurrogateConfig(width=1.0)))
    assert isinstance(neuron, SpikingNeuron)
    assert neuron.reset_mode == "soft"
    assert neuron.surrogate.width == 1.0

    x = currents(T, B, C).requires_grad_()
    before = torch.autograd.grad(neuron(x).sum(), x)[0]
    neuron.surrogate = Surrogate("atan", width=4.0)
    assert torch.autograd.grad(neuron(x).sum(), x)[0].norm() > before.norm()
