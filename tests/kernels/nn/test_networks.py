"""Networks that people train, swapped: SpikingJelly's own ResNets, and transformers as their papers define them.

Every neuron's spikes are compared, not only the output: bit for bit in float32 where the arithmetic is the same, which
it is for IF, and for LIF without ``decay_input`` at tau = 2, where no product is rounded.
"""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import nn

from spiketriton_kernels.nn import swap
from tests.kernels.support import normal

T, B = 4, 2
COMMON = dict(surrogate_function=surrogate.ATan(), detach_reset=True)


def lif(v_threshold=1.0):
    """The neuron of Spikformer, QKFormer and the Spike-driven Transformer, without the rounding of decay_input."""
    return neuron.LIFNode(
        tau=2.0, decay_input=False, v_threshold=v_threshold, step_mode="m", **COMMON
    )


class Spikes(nn.Module):
    """LIF(BN(conv1d(x))) of tokens [T, B, C, N]."""

    def __init__(self, channels, out, bias=False):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(channels, out, 1, bias=bias), nn.BatchNorm1d(out)
        self.lif = lif()

    def forward(self, x):
        T, B, _, N = x.shape
        y = self.bn(self.conv(x.flatten(0, 1)))
        return self.lif(y.reshape(T, B, -1, N).contiguous())


class SpikingSelfAttention(nn.Module):
    """SSA of Spikformer (Zhou et al. 2023, arXiv 2209.15425, eq. 7-9): no softmax, spikes only."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (Spikes(channels, channels) for _ in range(3))
        self.attention = lif(0.5)
        self.proj = Spikes(channels, channels, bias=True)

    def forward(self, x):
        q, k, v = (
            s.unflatten(2, (self.heads, -1)).transpose(-1, -2)
            for s in (self.q(x), self.k(x), self.v(x))
        )
        x = (q @ k.transpose(-1, -2)) @ v * 0.125
        return self.proj(self.attention(x.transpose(-1, -2).flatten(2, 3).contiguous()))


class Block(nn.Module):
    """x + attention(x), then x + MLP(x)."""

    def __init__(self, attention, channels, heads=4, ratio=2):
        super().__init__()
        self.attention = attention(channels, heads)
        self.mlp = nn.Sequential(
            Spikes(channels, ratio * channels, True), Spikes(ratio * channels, channels, True)
        )

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Patch splitting (conv, norm, LIF, max pool), blocks of one kind, mean over tokens, classes."""

    def __init__(self, attention, channels=32, depth=2):
        super().__init__()
        stages = [
            (
                layer.Conv2d(a, b, 3, padding=1, bias=False),
                layer.BatchNorm2d(b),
                lif(),
                layer.MaxPool2d(2),
            )
            for a, b in ((3, channels // 2), (channels // 2, channels))
        ]
        self.patches = nn.Sequential(*(module for stage in stages for module in stage))
        functional.set_step_mode(self.patches, "m")
        self.blocks = nn.Sequential(*(Block(attention, channels) for _ in range(depth)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.patches(x).flatten(3)
        return self.head(self.blocks(x).mean(-1))


def resnet(make, node, **options):
    net = make(num_classes=10, spiking_neuron=node, **COMMON, **options)
    functional.set_step_mode(net, "m")
    return net


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
    "Spikformer": (lambda: Transformer(SpikingSelfAttention), 16, 14),
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
        if not fuse and "decay_input" not in name:
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
