"""``return_current``: what the neuron integrates as a second result, its gradient joined on the way back."""

import pytest
import torch

from spiketriton_kernels import (
    PROBE_FIELDS,
    fire,
    multistep_bn_lif,
    multistep_bn_lif_reference,
)
from tests.covering import pairwise
from tests.kernels.support import as_layout, normal

GIVEN = ("y", "residual", "bn_weight", "bn_bias", "step_gain")


def inputs(dtype: torch.dtype, device, layout: str, residual: bool) -> dict[str, torch.Tensor]:
    y = as_layout(normal((5, 2, 3, 3, 2), dtype, device, mean=0.3), layout)
    given = dict(
        y=y, bn_weight=torch.tensor([1.1, 0.7, 1.4]), bn_bias=torch.tensor([0.4, 0.0, 0.2])
    )
    given["step_gain"] = torch.linspace(0.8, 1.2, 5)
    if residual:
        given["residual"] = as_layout(normal(y.shape, dtype, device, seed=1, std=0.4), layout)
    running = dict(running_mean=torch.full((3,), 0.1), running_var=torch.full((3,), 1.2))
    return {name: value.to(device) for name, value in {**given, **running}.items()}


def results(function, tensors, dtype=None, used=("spikes", "v_last", "current"), **options):
    """Results and gradients by name, from upstream gradients by the results in ``used``."""
    given = {name: value.to(dtype or value.dtype).clone() for name, value in tensors.items()}
    leaves = {name: given[name].requires_grad_() for name in GIVEN if name in given}
    outs = function(**given, return_v=True, return_current=True, **options)
    named = dict(zip(("spikes", "v_last", "current"), outs, strict=True))
    ends = [normal(out.shape, seed=i).to(out) for i, out in enumerate(outs)]
    pairs = [
        (out, end) for (name, out), end in zip(named.items(), ends, strict=True) if name in used
    ]
    torch.autograd.backward([out for out, _ in pairs], [end for _, end in pairs])
    return {n: v.detach() for n, v in named.items()} | {n: v.grad for n, v in leaves.items()}


@pytest.mark.parametrize(
    ("layout", "training", "residual", "road"),
    pairwise(
        ["contiguous", "channels_last"], [True, False], [True, False], ["directly", "as operators"]
    ),
)
def test_the_current_and_its_gradient_are_the_definitions(
    backend, device, layout, training, residual, road, monkeypatch
):
    if road == "as operators":
        monkeypatch.setattr(fire, "traced", lambda tensors: True)
    tensors = inputs(torch.float32, device, layout, residual)
    options = dict(training=training, reset="soft", detach_reset=False)
    ours = results(multistep_bn_lif, tensors, **options)
    exact = results(multistep_bn_lif_reference, tensors, torch.float64, **options)
    assert ours["current"].dtype == torch.float32
    assert ours["current"].stride() == tensors["y"].stride()
    assert torch.equal(ours["spikes"].double(), exact["spikes"])
    for name, value in exact.items():
        torch.testing.assert_close(ours[name].double(), value, rtol=1e-4, atol=1e-5, msg=name)


def test_in_half_precision_it_is_rounded_once(backend, device):
    """The neuron integrates the current in float32; what is returned is rounded."""
    tensors = inputs(torch.bfloat16, device, "channels_last", True)
    ours = results(multistep_bn_lif, tensors)
    composed = results(multistep_bn_lif_reference, tensors)
    wide = results(multistep_bn_lif_reference, tensors, torch.float32)
    assert ours["current"].dtype == torch.bfloat16
    torch.testing.assert_close(ours["current"], wide["current"].bfloat16(), rtol=1e-2, atol=1e-2)
    for name in ("y", "residual"):
        error = (ours[name].float() - wide[name]).norm()
        assert error <= 2 * (composed[name].float() - wide[name]).norm() + 1e-3


def test_spikes_and_their_gradients_are_those_without_it(backend, device):
    tensors = inputs(torch.float32, device, "contiguous", True)
    given = {name: value.clone().requires_grad_(name in GIVEN) for name, value in tensors.items()}
    spikes = multistep_bn_lif(**given)
    spikes.backward(normal(spikes.shape, seed=0).to(spikes))
    with_current = results(multistep_bn_lif, tensors, used=("spikes",))
    assert torch.equal(with_current["spikes"], spikes)
    for name in GIVEN:
        assert torch.equal(with_current[name], given[name].grad), name


def test_the_current_alone_is_batch_norm(backend, device):
    """No gradient by the spikes: that of torch's batch norm and sum."""
    tensors = inputs(torch.float32, device, "contiguous", True)
    ours = results(multistep_bn_lif, tensors, used=("current",))
    exact = results(multistep_bn_lif_reference, tensors, torch.float64, used=("current",))
    for name in GIVEN:
        torch.testing.assert_close(ours[name].double(), exact[name], rtol=1e-4, atol=1e-5)


def test_a_probe_measures_what_passes_the_neuron(backend, device):
    """The same whether the current is used or not."""
    tensors = inputs(torch.float32, device, "contiguous", True)
    found = []
    for used in (("spikes",), ("spikes", "current")):
        probe = torch.zeros(5, len(PROBE_FIELDS), device=device, requires_grad=True)
        results(multistep_bn_lif, tensors, used=used, probe=probe)
        found.append(probe.grad)
    assert torch.equal(*found)


def test_results_come_in_order(device):
    tensors = inputs(torch.float32, device, "contiguous", True)
    for function in (multistep_bn_lif, multistep_bn_lif_reference):
        spikes, current = function(**tensors, return_current=True)
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}
        assert not torch.equal(current, spikes)
        three = function(**tensors, return_v=True, return_current=True)
        assert [out.shape for out in three] == [spikes.shape, spikes[0].shape, current.shape]
