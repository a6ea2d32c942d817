"""Neurons of recipes: their constants, mistakes, what is watched; equations are held by tests/kernels."""

import copy

import pytest
import torch
from torch import Tensor, nn

from spiketriton.config import NeuronConfig
from spiketriton.neurons import Norm, SpikingNeuron, adopt, build_neuron
from spiketriton.system import errors
from spiketriton_kernels import Surrogate, multistep_lif_reference
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.neuron import Outputs
from spiketriton_kernels.neurons import base

T, B, C = 5, 3, 4
IF, LIF, PLIF = kernels.IF, kernels.LIF, kernels.PLIF


def currents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Strong enough that about a third of the neurons fire at each step."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.7).to(dtype)


def test_build_neuron_of_the_twin_and_of_a_soft_reset():
    assert type(build_neuron(NeuronConfig(kind="relu"))) is nn.ReLU
    neuron = build_neuron(NeuronConfig(reset="soft"))
    assert isinstance(neuron, SpikingNeuron)
    assert (neuron.reset_mode, neuron.v_reset) == ("soft", None)


def after_a_chunk(of: int) -> None:
    neuron = LIF(stateful=True)
    neuron(currents(2, B, C))
    if of == B:
        neuron.reset()
    neuron(currents(2, 5, C))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: IF(v_reset=None, reset="hard"), ["v_reset None", "hard"]),
        (lambda: LIF(tau=0.999), ["tau 0.999", "at least 1"]),
        (lambda: PLIF(init_tau=1.0), ["init_tau 1.0", "above 1"]),
        (lambda: PLIF(per_channel=3)(torch.zeros(2, 1)), ["(2, 1)", "[T, B, 3, ...]"]),
        (lambda: after_a_chunk(5), ["(2, 5, 4)", "(3, 4)", "reset()"]),
    ],
)
def test_mistakes_of_the_kernels_neurons_are_mistakes_of_a_user(make, names):
    """Of a recipe in its keys' words (`build_neuron`); of a call where a command ends."""
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    assert errors._mistake_of_others(error.value) == str(error.value)
    assert "\n" not in str(error.value)
    assert [name for name in names if name not in str(error.value)] == []
    after_a_chunk(B)


def test_on_fire_is_handed_the_spikes_of_each_call():
    neuron, seen, y = LIF(), [], currents(T, B, C, 2).float()
    neuron.on_fire = seen.append
    spikes = [neuron(currents(T, B, C)), neuron.fused_norm(y, Norm(C).record(y))]
    assert all(a is b for a, b in zip(spikes, seen, strict=True))


def test_a_synchronised_norm_is_fused_over_the_ranks(monkeypatch):
    given = []
    monkeypatch.setattr(
        base,
        "_over_ranks",
        lambda: lambda inputs, *call: given.append(call[2]) or Outputs(inputs.x),
    )
    monkeypatch.setattr(Norm, "process_group", "the ranks")
    norm = Norm(C)
    y = currents(T, 1, C).float()
    LIF().fused_norm(y, norm.record(y))
    assert [one.process_group for one in given] == ["the ranks"]
    assert norm.num_batches_tracked == 1


class Loud(LIF):
    gain = torch.tensor(2.0)


def test_the_gain_of_a_neuron_of_ones_own_counts_alone_and_behind_a_norm():
    neuron, norm, y = Loud(decay_input=False), Norm(C).double(), currents(T, B, C, 3)
    expected = multistep_lif_reference(norm(y), decay=0.5, gain=2.0)
    assert not torch.equal(expected, multistep_lif_reference(norm(y), decay=0.5))
    assert torch.equal(neuron(norm(y)), expected)
    assert torch.equal(neuron.fused_norm(y, norm.record(y)), expected)


def test_the_width_of_a_surrogate_is_part_of_the_weights_of_a_network():
    """A run may have measured it. Another program's weights have none, and a copy knows what it was told."""
    neuron = adopt(adopt(PLIF(surrogate=Surrogate("atan", width=0.7))))
    state = nn.Sequential(neuron).state_dict()
    assert {*state} == {"0.w", "0._extra_state"}
    assert state["0._extra_state"].item() == 0.7
    other = nn.Sequential(copy.deepcopy(adopt(PLIF())))
    other.load_state_dict(state)
    assert other[0].surrogate.width == 0.7
    nn.Sequential(adopt(PLIF())).load_state_dict({"0.w": state["0.w"]})
    with pytest.raises(ValueError, match="a surrogate's width is one number"):
        other.load_state_dict(state | {"0._extra_state": torch.ones(2)})
    assert {*PLIF().state_dict()} == {"w"}
