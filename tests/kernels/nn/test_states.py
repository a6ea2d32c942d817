"""ILIF, CLIF, ALIF and CuBaLIF as modules call their functions with the constants that they state."""

import copy

import pytest
import torch
from torch import nn as torch_nn

from spiketriton_kernels import (
    Surrogate,
    multistep_alif_reference,
    multistep_clif_reference,
    multistep_cuba_reference,
    multistep_ilif_reference,
    nn,
)
from tests.kernels.support import normal

T, B, C = 5, 3, 4


def channels(first, last):
    return torch_nn.Parameter(torch.linspace(first, last, C))


NEURONS = {
    "ilif": (lambda **o: nn.ILIF(tau=2.0, levels=3, **o), multistep_ilif_reference, dict(decay=0.5, levels=3)),
    "clif": (lambda **o: nn.CLIF(tau=4.0, **o), multistep_clif_reference, dict(decay=0.75)),
    "alif": (
        lambda **o: nn.ALIF(tau=4.0, tau_adaptation=5.0, beta=0.5, **o),
        multistep_alif_reference,
        dict(decay=0.75, rho=0.8, beta=0.5),
    ),
    "alif hard": (
        lambda **o: nn.ALIF(v_reset=0.0, v_threshold=0.75, **o),
        multistep_alif_reference,
        dict(decay=0.5, rho=0.9, threshold=0.75, reset="hard"),
    ),
    "cuba": (
        lambda **o: nn.CuBaLIF(tau=4.0, tau_synapse=5.0, decay_input=True, **o),
        multistep_cuba_reference,
        dict(decay=0.75, gain=0.25, rho=0.8),
    ),
}  # fmt: skip
every_neuron = pytest.mark.parametrize("kind", NEURONS)


@every_neuron
def test_a_module_is_its_definition(kind):
    make, reference, constants = NEURONS[kind]
    runs = []
    for call in (make(), lambda x: reference(x, **constants)):
        x = normal((T, B, C, 6), mean=0.7, std=1.5).requires_grad_()
        spikes = call(x)
        (spikes * normal(x.shape, seed=1)).sum().backward()
        runs.append((spikes, x.grad))
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-4, atol=1e-5)


@every_neuron
def test_steps_chunks_copies_and_resets(kind):
    make = NEURONS[kind][0]
    x = normal((T, B, C, 2), torch.float64, mean=0.7, std=2.0)
    window, chunks, steps = make(), make(stateful=True), make(step_mode="s")
    whole = window(x)
    assert window.v is None
    assert torch.equal(torch.cat([chunks(x[:2]), chunks(x[2:])]), whole)
    assert torch.equal(torch.stack([steps(step) for step in x]), whole)
    twin = copy.deepcopy(chunks)
    assert torch.equal(twin(x), chunks(x))
    has_m = kind != "ilif"
    assert torch.equal(twin.m, chunks.m) if has_m else twin.m is None
    with pytest.raises(ValueError, match=r"reset\(\)"):
        chunks(x[:, :1])
    chunks(x.clone().requires_grad_())
    assert chunks.v.requires_grad
    chunks.detach()
    assert not chunks.v.requires_grad
    assert not (has_m and chunks.m.requires_grad)
    chunks.reset()
    assert (chunks.v, chunks.m) == (None, None)
    assert torch.equal(chunks(x), whole)


def test_constants_learn_per_channel():
    def make():
        shares = dict(decay=channels(0.4, 0.6), rho=channels(0.5, 0.9), beta=channels(0.3, 1.0))
        return nn.ALIF(v_threshold=channels(0.5, 1.0), **shares)

    neuron = make()
    names = {name for name, _ in neuron.named_parameters()}
    assert names == {"decay", "v_threshold", "rho", "beta"}
    assert {name for name, _ in neuron.named_parameters()} == names
    neuron(normal((T, B, C, 6), mean=0.7, std=1.5)).square().sum().backward()
    assert all(p.grad.abs().min() > 0 for p in neuron.parameters())
    other = make()
    other.load_state_dict(neuron.state_dict())
    half = copy.deepcopy(neuron).bfloat16()
    assert half(normal((T, B, C), torch.bfloat16)).dtype == torch.bfloat16
    assert "4 values from" in repr(neuron)
    with pytest.raises(ValueError, match=r"4 values of .*channels are dim 2"):
        neuron(torch.zeros(T, B, 6, C))


def test_a_record_is_kept_until_a_constant_changes():
    neuron, x = nn.ALIF(), normal((T, B, C), mean=1.0)
    assert neuron.record() is neuron.record()
    for name, value in (
        ("beta", 5.0),
        ("surrogate", Surrogate("sigmoid")),
        ("detach_reset", False),
    ):
        before = neuron.record()
        setattr(neuron, name, value)
        assert neuron.record() is not before
    assert torch.equal(neuron(x), nn.ALIF(beta=5.0)(x))
    assert nn.CLIF(decay=channels(0.4, 0.6)).record().decay.requires_grad


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.ILIF(levels=0), ["levels 0", "1 to 255"]),
        (lambda: nn.CLIF(tau=0.5), ["tau 0.5", "at least 1"]),
        (lambda: nn.ALIF(tau_adaptation=0.5), ["tau_adaptation 0.5"]),
        (lambda: nn.ALIF(v_reset=-1.0), ["v_reset -1.0", "0.0, None"]),
        (lambda: nn.ALIF()(torch.zeros(3)), ["ALIF", "(3,)", "[T, B, ...]"]),
        (lambda: nn.ILIF(surrogate=Surrogate("atan")), ["surrogate", "ILIF", "accepted: None"]),
        (lambda: nn.CLIF(reset="hard"), ["reset 'hard' of CLIF", "accepted: soft"]),
    ],
)
def test_mistakes_are_refused_in_one_line(make, names):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    for name in names:
        assert name in str(error.value)
