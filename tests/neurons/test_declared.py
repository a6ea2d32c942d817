"""Every neuron that a recipe may name is what its file declares, and what its step defines."""

import importlib

import pytest
import torch

from spiketriton.config import NeuronConfig
from spiketriton.config.kinds import kinds
from spiketriton.neurons import build_neuron
from spiketriton_kernels import use_backend
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


@pytest.mark.parametrize("name", [name for name, kind in kinds().items() if kind.own])
def test_a_key_of_its_own_has_an_effect_for_it_alone(name):
    kind = kinds()[name]
    neuron = build_neuron(NeuronConfig(kind=name), T)
    for key, (default, _, doc) in kind.own.items():
        value = type(default)(default + 1)
        other = build_neuron(NeuronConfig(kind=name, **{key: value}), T)
        assert doc
        assert repr(other) != repr(neuron)
