"""Every neuron that a recipe may name is what its file declares, and what its step defines."""

import importlib

import pytest
import torch

from spiketriton.config import NeuronConfig, SurrogateConfig
from spiketriton.config.kinds import kinds
from spiketriton.neurons import build_neuron
from spiketriton_kernels import Surrogate, use_backend
from tests.conftest import need_native

T, B, C = 4, 3, 5


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", kinds())
def test_a_declared_neuron_is_its_step(name, backend):
    if backend == "native":
        need_native()
    kind, config = kinds()[name], NeuronConfig(kind=name)
    torch.manual_seed(0)
    neuron = build_neuron(config, T)
    assert type(neuron) is getattr(importlib.import_module(kind.module), kind.made_by)
    assert {*kind.resets} <= {*neuron.resets}
    assert config.resets_by in neuron.resets
    x = 5 * torch.randn(T, B, C, 6, generator=torch.Generator().manual_seed(0)) + 0.7
    x, weights = x.requires_grad_(), torch.linspace(-1, 1, x.numel()).view_as(x)
    runs = []
    for call in (neuron, neuron.define):
        neuron.zero_grad()
        with use_backend(backend):
            spikes = call(x)
        tensors = [x, *neuron.parameters()]
        found = torch.autograd.grad((spikes * weights).sum(), tensors, allow_unused=True)
        runs.append([spikes, *found])
    assert torch.equal(runs[0][0], runs[1][0])
    assert 0.002 < float((runs[0][0] > 0).float().mean()) < 0.98
    for by_kernels, by_definition in zip(*runs, strict=True):
        torch.testing.assert_close(by_kernels, by_definition, rtol=1e-4, atol=1e-4)


def told(name: str, **keys) -> str:
    """A neuron as it says itself, with its weights."""
    torch.manual_seed(0)
    neuron = build_neuron(NeuronConfig(kind=name, **keys), T)
    return f"{neuron} { {key: value.tolist() for key, value in neuron.state_dict().items()} }"


@pytest.mark.parametrize("name", kinds())
def test_every_key_has_an_effect(name):
    kind, config, plain = kinds()[name], NeuronConfig(kind=name), told(name)
    surrogate = SurrogateConfig(shape="gaussian", height=0.5, width=0.25)
    keys = {key: getattr(config, key) for key in kind.arguments.values()}
    keys = {key: value is False or type(value)(value + 1) for key, value in keys.items()}
    keys |= {"v_threshold": 2.0}
    keys |= {} if kind.parallel else {"detach_reset": False}
    keys |= {} if kind.resets else {"v_reset": -1.0}
    for key, value in keys.items():
        assert told(name, **{key: value}) != plain, key
    if "surrogate" in plain and name != "ilif":
        expected = repr(Surrogate("gaussian", height=0.5, width=0.25))
        assert expected in told(name, surrogate=surrogate)
    for reset in set(kind.resets or ("hard", "soft", "none")) - {config.resets_by}:
        assert f"reset={reset}" in told(name, reset=reset)
    assert kind.says
    assert all(doc for _, _, doc in kind.own.values())
