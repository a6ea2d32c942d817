"""Networks that people train, swapped: SpikingJelly's own.

Every neuron's spikes are compared, not only the output: bit for bit in float32 where the arithmetic is the same, which
it is for IF, and for LIF without ``decay_input`` at tau = 2, where no product is rounded.
"""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spikformer, spiking_resnet
from torch import nn

from spiketriton_kernels.nn import swap
from tests.kernels.support import normal

T, B = 4, 2
COMMON = dict(surrogate_function=surrogate.ATan(), detach_reset=True)


def resnet(make, node, **options):
    net = make(num_classes=10, spiking_neuron=node, **COMMON, **options)
    functional.set_step_mode(net, "m")
    return net


def spikformer_of_two_blocks():
    sizes = dict(
        T=T, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=32, num_heads=4
    )
    node = dict(spiking_neuron=neuron.LIFNode, tau=2.0, decay_input=False, step_mode="m", **COMMON)
    return spikformer.Spikformer(**sizes, mlp_ratio=2.0, depths=2, **node)


NETWORKS = {
    "spiking_resnet18, IF": (
        lambda: resnet(spiking_resnet.spiking_resnet18, neuron.IFNode),
        17,
        17,
    ),
    "sew_resnet18, LIF": (
        lambda: resnet(
            sew_resnet.sew_resnet18, neuron.LIFNode, cnf="ADD", tau=2.0, decay_input=False
        ),
        20,
        20,
    ),
    "Spikformer, LIF": (spikformer_of_two_blocks, 15, 4),
}


def run(net, x):
    """Spikes of every neuron in the order of the calls, the output, and the gradients of all parameters."""
    spikes = []
    neurons = [m for m in net.modules() if hasattr(m, "v_threshold")]
    handles = [m.register_forward_hook(lambda m, i, s: spikes.append(s.detach())) for m in neurons]
    out = net(x)
    nn.functional.cross_entropy(out.mean(0), torch.arange(B)).backward()
    for handle in handles:
        handle.remove()
    return spikes, out.detach(), {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_swapped_network_has_the_same_spikes_and_gradients(name):
    make, neurons, fusable = NETWORKS[name]
    torch.manual_seed(0)
    before = make()
    x = normal((T, B, 3, 32, 32), std=2.0)
    nets = {}
    for fuse in (False, True):
        after = copy.deepcopy(before)
        report = swap(after, fuse=fuse)
        assert (len(report.swapped), report.left) == (neurons, {})
        assert len(report.fused) == (fusable if fuse else 0)
        nets[fuse] = after
    expected, out, gradients = run(before, x)
    assert all(0.005 < float(s.mean()) < 0.9 for s in expected)
    for fuse, after in nets.items():
        spikes, found, grads = run(after, x)
        differing = sum(int((a != b).sum()) for a, b in zip(spikes, expected, strict=True))
        if not fuse:
            assert differing == 0
            assert torch.equal(found, out)
        assert differing <= 1e-5 * sum(s.numel() for s in expected)
        torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)
        largest = max(float(g.norm()) for g in gradients.values())
        for key, gradient in gradients.items():
            error = float((grads[key] - gradient).norm())
            assert error < 1e-4 * float(gradient.norm()) + 1e-6 * largest, key
        for key, buffer in before.named_buffers():
            torch.testing.assert_close(after.get_buffer(key), buffer, rtol=1e-4, atol=1e-6)
