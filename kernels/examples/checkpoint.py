"""python kernels/examples/checkpoint.py: gradients under torch.utils.checkpoint, before and after swap.

SpikingJelly's node keeps its membrane, so that the part that is computed again within backward starts where it ended.
"""

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spiketriton_kernels.nn import swap


def gradient(net: nn.Sequential, again: bool) -> Tensor:
    """Of all weights, for one window of 8 steps."""
    functional.reset_net(net)
    net.zero_grad()
    x = 3 * torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(1))
    hidden = checkpoint(net[:-1], x, use_reentrant=False) if again else net[:-1](x)
    nn.functional.cross_entropy(net[-1](hidden).mean(0), torch.arange(5) % 4).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), neuron.LIFNode(step_mode="m"), nn.Linear(32, 4))
    for name in ("SpikingJelly", "swapped"):
        whole, repeated = gradient(net, False), gradient(net, True)
        print(
            f"{name}: off by {(repeated - whole).norm():.3f}, of a gradient of {whole.norm():.3f}"
        )
        functional.reset_net(net)
        swap(net)
