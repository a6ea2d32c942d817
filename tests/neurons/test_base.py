"""What all neurons share: resets, windows in chunks, refusals, and the norm in the same kernel."""

import pytest
import torch

from spiketriton.errors import UserError
from spiketriton.neurons import IF, LIF, PLIF, Norm
from spiketriton_kernels import PROBE_FIELDS, Surrogate, multistep_lif_reference
from spiketriton_kernels.neuron import Outputs
from spiketriton_kernels.nn import neurons
from tests.covering import each, pairwise
from tests.neurons.support import NEURONS, B, C, T, currents


@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_every_reset_can_be_named(reset):
    neuron = IF(v_threshold=1.5, reset=reset)
    x = currents(T, B, C)
    expected = multistep_lif_reference(x, decay=1.0, threshold=1.5, reset=reset)
    assert torch.equal(neuron(x), expected)
    spikes = {mode: IF(v_threshold=1.5, reset=mode)(x) for mode in ("hard", "soft", "none")}
    assert all(not torch.equal(spikes[reset], s) for mode, s in spikes.items() if mode != reset)


def test_v_reset_none_means_soft_reset():
    assert IF(v_reset=None).reset_mode == "soft"
    assert IF().reset_mode == "hard"
    assert IF(v_reset=0.5, reset="soft").v_reset is None


def test_a_chunk_of_another_shape_is_refused_until_reset():
    neuron = LIF(stateful=True)
    neuron(currents(2, B, C))
    with pytest.raises(UserError, match=r"\(2, 5, 4\).*\(3, 4\).*reset\(\)"):
        neuron(currents(2, 5, C))
    neuron.reset()
    assert neuron(currents(2, 5, C)).shape == (2, 5, C)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: IF(v_reset=None, reset="hard"), ["v_reset None", "hard"]),
        (lambda: LIF(tau=0.999), ["tau 0.999", "at least 1"]),
        (lambda: PLIF(init_tau=1.0), ["init_tau 1.0", "above 1"]),
        (lambda: PLIF(per_channel=3)(torch.zeros(2, 1)), ["(2, 1)", "[T, B, 3, ...]"]),
    ],
)
def test_mistakes_of_the_kernels_neurons_are_mistakes_of_a_user(make, names):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


def test_defaults():
    neuron = IF()
    arguments = neuron.neuron_arguments()
    assert repr(arguments.pop("surrogate")) == repr(Surrogate("atan"))
    assert arguments == {
        "decay": 1.0,
        "gain": 1.0,
        "threshold": 1.0,
        "reset": "hard",
        "v_reset": 0.0,
        "detach_reset": True,
    }
    assert (neuron.stateful, neuron.v, neuron.probe, neuron.on_fire) == (False, None, None, None)
    assert IF(v_reset=0.25, v_threshold=0.5).neuron_arguments()["v_reset"] == 0.25


def test_on_fire_is_handed_the_spikes_of_each_call():
    neuron, seen = LIF(), []
    neuron.on_fire = seen.append
    spikes = [neuron(currents(T, B, C)), neuron.fused_norm(currents(T, B, C, 2).float(), Norm(C))]
    assert all(a is b for a, b in zip(spikes, seen, strict=True))


def test_a_synchronised_norm_is_fused_over_the_ranks(monkeypatch):
    given = []
    monkeypatch.setattr(
        neurons, "_over_ranks", lambda y, neuron, call, norm, **_: given.append(norm) or Outputs(y)
    )
    monkeypatch.setattr(Norm, "process_group", "the ranks")
    norm = Norm(C)
    LIF().fused_norm(currents(T, 1, C).float(), norm)
    assert [one.process_group for one in given] == ["the ranks"]
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("fused", [False, True])
def test_probe_reaches_the_kernel(fused):
    neuron, norm = LIF(tau=2.0), Norm(C)
    x = currents(T, B, C, 2, dtype=torch.float32).requires_grad_()
    neuron.probe = torch.zeros(T, len(PROBE_FIELDS), requires_grad=True)
    spikes = neuron.fused_norm(x, norm) if fused else neuron(x)
    spikes.sum().backward()
    counted = neuron.probe.grad[:, PROBE_FIELDS.index("spikes")]
    assert torch.equal(counted, spikes.detach().sum((1, 2, 3)))
    assert counted.sum() > 0


@pytest.mark.parametrize(
    ("kind", "extra", "training"),
    pairwise(NEURONS, [None, "residual", "spike_add"], [True, False]),
)
def test_the_fused_unit_equals_norm_then_neuron(kind, extra, training):
    runs = []
    for fused in (True, False):
        neuron, norm = NEURONS[kind]().double(), Norm(C, scale=1.3, steps=T).double()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, C))
            norm.bias.fill_(0.4)
            norm.step_gain.copy_(torch.linspace(0.8, 1.2, T))
        norm.train(training)
        y = currents(T, B, C, 2, 2).requires_grad_()
        other = currents(T, B, C, 2, 2, seed=1).requires_grad_()
        if fused:
            out = neuron.fused_norm(y, norm, **({extra: other} if extra else {}))
        else:
            out = neuron(norm(y) + other if extra == "residual" else norm(y))
            out = out + other if extra == "spike_add" else out
        (out * currents(T, B, C, 2, 2, seed=2)).sum().backward()
        parameters = [*neuron.parameters(), *norm.parameters()]
        runs.append([out, y.grad, *(p.grad for p in parameters), *norm.buffers()])
        if extra:
            runs[-1].append(other.grad)
    for fused_value, value in zip(*runs, strict=True):
        torch.testing.assert_close(fused_value, value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("kind", "fused"), each(list(NEURONS), [False, True]))
def test_bf16_currents_give_bf16_spikes_in_channels_last(kind, fused):
    neuron, norm = NEURONS[kind](), Norm(C, steps=T)
    y = currents(T * B, C, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = y.unflatten(0, (T, B)).requires_grad_()
    residual = torch.ones_like(y, memory_format=torch.preserve_format).detach()
    if fused:
        spikes = neuron.fused_norm(y, norm, residual)
    else:
        spikes = neuron(norm(y) + residual)
    spikes.float().sum().backward()
    assert spikes.dtype == torch.bfloat16
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert y.grad.isfinite().all()
    for parameter in (*neuron.parameters(), *norm.parameters()):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


class Loud(LIF):
    def neuron_arguments(self):
        return super().neuron_arguments() | {"gain": torch.tensor(2.0)}


def test_the_gain_of_a_neuron_of_ones_own_counts_alone_and_behind_a_norm():
    neuron, norm, y = Loud(decay_input=False), Norm(C).double(), currents(T, B, C, 3)
    expected = multistep_lif_reference(norm(y), decay=0.5, gain=2.0)
    assert not torch.equal(expected, multistep_lif_reference(norm(y), decay=0.5))
    assert torch.equal(neuron(norm(y)), expected)
    assert torch.equal(neuron.fused_norm(y, norm), expected)
