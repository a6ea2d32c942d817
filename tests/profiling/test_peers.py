"""The other libraries' neurons compute what ours do, or say why they cannot."""

from dataclasses import replace

import pytest
import torch

from profiling.harness.contenders import Status, Unavailable
from profiling.harness.peers import ATAN, variants
from spiketriton_kernels import nn as kernels

CPU, FLOAT = torch.device("cpu"), torch.float32


IF, LIF, PLIF, ILIF, PSN = (getattr(kernels, kind) for kind in ("IF", "LIF", "PLIF", "ILIF", "PSN"))


@pytest.mark.parametrize(
    ("peer", "contender"),
    [
        ("spikingjelly", "spikingjelly default"),
        # it compiles for ten seconds
        pytest.param("spikingjelly", "spikingjelly compiled", marks=pytest.mark.slow),
        ("snntorch", "snntorch"),
        ("norse", "norse"),
    ],
)
def test_a_peer_computes_the_same(peer, contender, measured, lif):
    pytest.importorskip(peer)
    case = replace(lif, T=2) if "compiled" in contender else lif
    row = measured(case, contender, peers=(peer,))[contender]
    assert row["status"] == Status.OK, row
    assert row["spikes_differ"] == 0
    assert row["package"].startswith(f"{peer} ")
    assert ("has no ATan" in row.get("note", "")) == (peer == "norse")


@pytest.mark.parametrize(
    ("peer", "changes", "why"),
    [
        ("snntorch", dict(detach_reset=True), "its reset always carries a gradient"),
        ("norse", dict(dtype="bf16", T=10, shape=(4, 8, 16, 16)), "it keeps the membrane in"),
    ],
)
def test_a_peer_that_cannot_be_equal_says_why_and_is_timed(peer, changes, why, measured, lif):
    pytest.importorskip(peer)
    row = measured(replace(lif, **changes), peer, peers=(peer,))[peer]
    assert row["status"] == Status.UNEQUAL
    assert why in row["why"]
    assert row["median_ms"] > 0


@pytest.mark.parametrize(
    ("peer", "neuron", "why"),
    [
        ("spikingjelly", LIF(reset="none"), "no neuron without reset"),
        ("spikingjelly", PLIF(), "PLIF is not mapped"),
        ("snntorch", LIF(decay_input=True), "no input gain"),
        ("snntorch", LIF(decay_input=False, v_reset=-1.0), "no v_reset"),
        ("norse", IF(), "has no IF"),
        ("norse", LIF(reset="none"), "always resets"),
        ("norse", PLIF(), "no PLIF"),
        *((peer, ILIF(), "ILIF is not mapped") for peer in ("spikingjelly", "snntorch", "norse")),
        ("snntorch", PSN(4), "PSN is not mapped"),
    ],
)
def test_what_a_peer_cannot_be_told_is_unavailable(peer, neuron, why):
    pytest.importorskip(peer)
    with pytest.raises(Unavailable, match=why):
        variants(peer, neuron, CPU, FLOAT)[0].make(neuron)


@pytest.mark.parametrize(
    "neuron",
    [
        IF(surrogate=ATAN),
        LIF(tau=3.0, v_reset=-0.5, surrogate=ATAN),
        LIF(v_threshold=0.7, v_reset=None, detach_reset=False, surrogate=ATAN),
    ],
    ids=["if", "hard", "soft"],
)
def test_constants_are_mapped(neuron):
    pytest.importorskip("spikingjelly")
    x = torch.randn(5, 2, 50, generator=torch.Generator().manual_seed(1)) + 0.5
    for variant in variants("spikingjelly", neuron, CPU, FLOAT):
        results = []
        for module in (neuron, variant.make(neuron)):
            leaf = x.clone().requires_grad_()
            spikes = module(leaf)
            spikes.pow(2).sum().backward()
            results.append((spikes.detach(), leaf.grad))
        (ours, by_ours), (theirs, by_theirs) = results
        assert torch.equal(ours, theirs), variant.name
        torch.testing.assert_close(by_ours, by_theirs, rtol=1e-4, atol=1e-5)
