"""Neurons of recipes: their constants, mistakes, what is watched; equations are held by tests/kernels."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from spiketriton.config import NeuronConfig, SurrogateConfig
from spiketriton.neurons import Norm, SpikingNeuron, build_neuron, of_engine
from spiketriton.system.errors import UserError
from spiketriton_kernels import Surrogate, multistep_lif_reference
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.neuron import Outputs
from spiketriton_kernels.nn import neurons

T, B, C = 5, 3, 4
IF, LIF, PLIF = map(of_engine, (kernels.IF, kernels.LIF, kernels.PLIF))


def currents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Strong enough that about a third of the neurons fire at each step."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.7).to(dtype)


@pytest.mark.parametrize(("kind", "type_"), [("if", IF), ("lif", LIF), ("plif", PLIF)])
def test_build_neuron_hands_every_key_to_the_neuron(kind, type_):
    leak = {} if kind == "if" else {"tau": 3.0, "decay_input": True}
    surrogate = SurrogateConfig(shape="gaussian", height=0.5, width=0.25)
    keys = {"v_threshold": 2.0, "v_reset": -1.0, "detach_reset": False, "surrogate": surrogate}
    neuron = build_neuron(NeuronConfig(kind=kind, **keys, **leak))
    assert type(neuron) is type_
    arguments = neuron.neuron_arguments()
    assert arguments["threshold"] == 2.0
    assert (arguments["reset"], arguments["v_reset"]) == ("hard", -1.0)
    assert arguments["detach_reset"] is False
    assert repr(arguments["surrogate"]) == repr(Surrogate("gaussian", height=0.5, width=0.25))
    constants = [torch.as_tensor(arguments[name]).item() for name in ("decay", "gain")]
    assert constants == pytest.approx([1.0, 1.0] if kind == "if" else [2 / 3, 1 / 3])


def test_build_neuron_of_the_twin_and_of_a_soft_reset():
    assert type(build_neuron(NeuronConfig(kind="relu"))) is nn.ReLU
    neuron = build_neuron(NeuronConfig(reset="soft"))
    assert isinstance(neuron, SpikingNeuron)
    assert (neuron.reset_mode, neuron.v_reset) == ("soft", None)


class Louder(LIF):
    """A subclass, which has a name in its module."""


@pytest.mark.parametrize("kind", [LIF, PLIF, Louder])
def test_copies_and_pickles_are_of_the_same_class(kind):
    neuron = kind(v_threshold=0.5)
    for again in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert type(again) is kind
        assert torch.equal(again(currents(2, B, C)), neuron(currents(2, B, C)))


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
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    assert [name for name in names if name not in str(error.value)] == []
    after_a_chunk(B)


def test_on_fire_is_handed_the_spikes_of_each_call():
    neuron, seen = LIF(), []
    neuron.on_fire = seen.append
    spikes = [neuron(currents(T, B, C)), neuron.fused_norm(currents(T, B, C, 2).float(), Norm(C))]
    assert all(a is b for a, b in zip(spikes, seen, strict=True))


def test_a_synchronised_norm_is_fused_over_the_ranks(monkeypatch):
    given = []
    monkeypatch.setattr(
        neurons,
        "_over_ranks",
        lambda: lambda inputs, *call: given.append(call[2]) or Outputs(inputs.x),
    )
    monkeypatch.setattr(Norm, "process_group", "the ranks")
    norm = Norm(C)
    LIF().fused_norm(currents(T, 1, C).float(), norm)
    assert [one.process_group for one in given] == ["the ranks"]
    assert norm.num_batches_tracked == 1


class Loud(LIF):
    def neuron_arguments(self):
        return super().neuron_arguments() | {"gain": torch.tensor(2.0)}


def test_the_gain_of_a_neuron_of_ones_own_counts_alone_and_behind_a_norm():
    neuron, norm, y = Loud(decay_input=False), Norm(C).double(), currents(T, B, C, 3)
    expected = multistep_lif_reference(norm(y), decay=0.5, gain=2.0)
    assert not torch.equal(expected, multistep_lif_reference(norm(y), decay=0.5))
    assert torch.equal(neuron(norm(y)), expected)
    assert torch.equal(neuron.fused_norm(y, norm), expected)
