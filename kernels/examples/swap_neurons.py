"""Swap the neuron in a SpikingJelly-style and in a snnTorch-style network, and compare.

    python kernels/examples/swap_neurons.py

Needs torch and spiketriton_kernels only: the neurons of the two libraries are written out here as
their documentation defines them. ``swap_nodes`` takes a real SpikingJelly network as well.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton_kernels import Surrogate, multistep_lif

T, BATCH, FEATURES = 10, 256, 784


class Spike(torch.autograd.Function):
    """A step forward, the slope of ATan(2) backward: 1 / (1 + (pi u)^2)."""

    @staticmethod
    def forward(ctx, u: Tensor, tie_fires: bool) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0 if tie_fires else u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (u,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * u) ** 2), None


# ---- SpikingJelly's style: modules on [T, B, ...] with step_mode "m"


class ATan:
    alpha = 2.0


class LIFNode(nn.Module):
    """SpikingJelly's LIFNode, multi-step; v_reset None is its soft reset."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        self.tau, self.decay_input, self.v_threshold = tau, decay_input, v_threshold
        self.v_reset, self.detach_reset = v_reset, detach_reset
        self.surrogate_function = ATan()

    def forward(self, x: Tensor) -> Tensor:
        rest = self.v_reset or 0.0
        v = torch.full_like(x[0], rest)
        spikes = []
        for current in x.unbind(0):
            if self.decay_input:
                h = v + (current - (v - rest)) / self.tau
            else:
                h = v - (v - rest) / self.tau + current
            s = Spike.apply(h - self.v_threshold, True)
            kept = s.detach() if self.detach_reset else s
            if self.v_reset is None:
                v = h - kept * self.v_threshold
            else:
                v = (1 - kept) * h + kept * self.v_reset
            spikes.append(s)
        return torch.stack(spikes)


class FusedNode(nn.Module):
    """What replaces an IFNode or LIFNode: the same constants, one fused pass, no state to reset."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        leaky = type(node).__name__ == "LIFNode"
        slopes = {"ATan": Surrogate.atan, "Sigmoid": Surrogate.sigmoid}
        self.options: dict[str, Any] = dict(
            decay=1 - 1 / node.tau if leaky else 1.0,
            gain=1 / node.tau if leaky and node.decay_input else 1.0,
            threshold=node.v_threshold,
            reset="soft" if node.v_reset is None else "hard",
            v_reset=node.v_reset or 0.0,
            detach_reset=node.detach_reset,
            surrogate=slopes[type(node.surrogate_function).__name__](node.surrogate_function.alpha),
        )

    def forward(self, x: Tensor) -> Tensor:
        return multistep_lif(x, **self.options)


def swap_nodes(network: nn.Module) -> nn.Module:
    """A copy of the network with every IFNode and LIFNode replaced; weights are copied along."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("IFNode", "LIFNode"):
                setattr(parent, name, FusedNode(child))
    return network


# ---- snnTorch's style: a loop over time steps, the membrane handed through by the caller


class Leaky(nn.Module):
    """snnTorch's Leaky with reset_mechanism="zero" (and its default, reset_delay=True).

    The reset of a spike is applied when the next step begins, and is detached.
    """

    def __init__(self, beta: float, threshold: float = 1.0) -> None:
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, current: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        fired = (mem > self.threshold).to(mem.dtype)
        mem = self.beta * (1 - fired) * mem + current
        return Spike.apply(mem - self.threshold, False), mem


class StepNetwork(nn.Module):
    """As snnTorch's tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, 100), Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(100, 10), Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = x.new_zeros(x.shape[1], 100), x.new_zeros(x.shape[1], 10)
        spikes = []
        for step in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


class WindowNetwork(StepNetwork):
    """The same network, the loop over time turned inside out: layer by layer, all steps at once."""

    def forward(self, x: Tensor) -> Tensor:
        for linear, lif in ((self.fc1, self.lif1), (self.fc2, self.lif2)):
            x = multistep_lif(
                linear(x),
                decay=lif.beta,
                threshold=lif.threshold,
                reset="hard",
                detach_reset=True,
                surrogate=Surrogate.atan(2.0),
            )
        return x


# ---- side by side


def compare(name: str, before: nn.Module, after: nn.Module, x: Tensor) -> None:
    """Spikes equal, gradients within rounding; then the time of a forward and backward of each."""
    times = []

    def run(network: nn.Module) -> tuple[Tensor, Tensor]:
        given = x.clone().requires_grad_()
        started = time.perf_counter()
        spikes = network(given)
        (gradient,) = torch.autograd.grad(spikes.sum(), given)
        times.append(time.perf_counter() - started)
        return spikes.detach(), gradient

    # The first run of each warms up: it compiles and allocates.
    spikes, gradient = [run(before) for _ in range(2)][-1]
    fused_spikes, fused_gradient = [run(after) for _ in range(2)][-1]
    differing = int((spikes != fused_spikes).sum())
    error = float((gradient - fused_gradient).abs().max() / gradient.abs().max())
    print(f"{name}: {differing} of {spikes.numel()} spikes differ, ", end="")
    print(f"gradient to {error:.1e}, rate {float(spikes.mean()):.2f}, ", end="")
    print(f"{1e3 * times[1]:.1f} ms before, {1e3 * times[3]:.1f} ms after")
    assert differing == 0
    assert error < 1e-4


def main() -> None:
    torch.manual_seed(0)
    x = torch.rand(T, BATCH, FEATURES) * 4
    network = nn.Sequential(
        nn.Linear(FEATURES, 100),
        LIFNode(tau=2.0, decay_input=False, detach_reset=True),
        nn.Linear(100, 10),
        LIFNode(tau=4.0, decay_input=True, v_threshold=0.2, v_reset=None),
    )
    compare("SpikingJelly style", network, swap_nodes(network), x)
    steps = StepNetwork()
    window = WindowNetwork()
    window.load_state_dict(steps.state_dict())
    compare("snnTorch style", steps, window, x)


if __name__ == "__main__":
    main()
