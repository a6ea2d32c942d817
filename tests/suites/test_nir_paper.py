"""The traces that the NIR paper publishes of one LIF neuron on seven platforms (github.com/neuromorphs/NIR)."""

import numpy as np
import pytest
import torch

from spiketriton.export.nir_network import network
from spiketriton.export.nir_replay import replay
from spiketriton_kernels import multistep_lif
from tests.suites.run import fetched

FOLDER = "NIR/paper/01_lif"
FIRES = [460, 510, 710, 760]  # in steps of 0.1 ms


def trace(platform: str) -> np.ndarray:
    """Input, membrane and spike of each step, [1000, 3]."""
    return np.loadtxt(fetched(f"{FOLDER}/lif_{platform}.csv"), delimiter=",")


@pytest.mark.parametrize("platform", ["norse", "nengo", "snntorch"])
def test_a_published_trace_is_met(platform):
    nir = pytest.importorskip("nir")
    published, dt = trace(platform), 1e-4
    node = nir.read(fetched(f"{FOLDER}/lif_norse.nir")).nodes["1"]
    tau, r, threshold = float(node.tau[0]), float(node.r[0]), float(node.v_threshold[0])
    x = torch.from_numpy(trace("norse")[:, :1]).float()
    spikes, membranes = multistep_lif(
        x, decay=1 - dt / tau, gain=r * dt / tau, threshold=threshold, return_trace=True
    )
    fired = spikes[:, 0].nonzero().flatten()
    assert fired.tolist() == FIRES
    assert np.flatnonzero(published[:, 2]).tolist() == FIRES
    if platform == "norse":  # which wrote the graph
        difference = np.abs(membranes[:, 0].numpy() - published[:, 1]).max()
        print(f"\nNIR's LIF by norse: membranes differ by {difference:.1e}")
        assert difference < 1e-7


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_the_network_of_sinabs_is_imported(reset):
    """Its convolutional net for N-MNIST, on random events: every spike is that of NIR's equations."""
    pytest.importorskip("nir")
    path = fetched("NIR/paper/02_cnn/cnn_sinabs.nir")
    net = network(str(path), 1.0, reset).double()
    x = (torch.rand(20, 3, 2, 34, 34, generator=torch.Generator().manual_seed(0)) < 0.1).double()
    kept = {}
    for module, node in net.names.items():
        keep = lambda module, given, out, node=node: kept.update({node: out.numpy()})  # noqa: E731
        net.get_submodule(module).register_forward_hook(keep)
    with torch.no_grad():
        net(x)
    theirs, _ = replay(net.graph, x.numpy(), 20)
    spikes = sum(int(own.sum()) for own in kept.values())
    different = sum(int((own != theirs[node]).sum()) for node, own in kept.items())
    print(f"\ncnn_sinabs.nir, {reset} reset: {different} of {spikes:,} spikes differ")
    assert spikes > 10_000
    assert different == 0
