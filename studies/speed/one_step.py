"""Time of one step at batch 1, as a stream shows it, beside SpikingJelly and snnTorch.

    pip install -e ".[peers]"
    python studies/speed/one_step.py

A layer of 128 LIF neurons alone, and 40-128-128-10 with two of them, in inference mode on one thread of a CPU. The
neurons keep their membranes, and answers are equal. Contenders take turns in one run; the numbers are medians of
microseconds of processor time, so that other programs do not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import snntorch
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from spiketriton_kernels.nn import LIF, Leaky

ROUNDS, CALLS = 101, 40


class SnnTorch(nn.Module):
    """Its neurons are handed their membranes."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net, self.membranes = net, {}

    def forward(self, x: Tensor) -> Tensor:
        for place, module in enumerate(self.net):
            if isinstance(module, snntorch.Leaky):
                before = self.membranes.get(place, torch.zeros_like(x))
                x, self.membranes[place] = module(x, before)
            else:
                x = module(x)
        return x


def contenders(layers: list[nn.Module]) -> dict[str, nn.Module]:
    """The same layers with each library's neurons in place of Identity."""

    def net(make: Callable[[], nn.Module]) -> nn.Sequential:
        return nn.Sequential(*[make() if isinstance(m, nn.Identity) else m for m in layers]).eval()

    leaky = dict(beta=0.5, reset_mechanism="subtract")
    return {
        "spiketriton": net(lambda: LIF(step_mode="s")),
        "SpikingJelly": net(neuron.LIFNode),
        "spiketriton, snnTorch's equation": net(
            lambda: Leaky(0.5, reset_delay=True, step_mode="s")
        ),
        "snnTorch": SnnTorch(net(lambda: snntorch.Leaky(**leaky))),
    }


def timed(nets: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(ROUNDS):
        for name, net in nets.items():
            began = time.thread_time()
            for _ in range(CALLS):
                net(x)
            found[name].append((time.thread_time() - began) / CALLS * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = {
        "128 neurons": ([nn.Identity()], 128),
        "40-128-128-10": (
            [nn.Linear(40, 128), nn.Identity(), nn.Linear(128, 128), nn.Identity(), nn.Linear(128, 10)],
            40,
        ),
    }  # fmt: skip
    for case, (layers, inputs) in cases.items():
        nets, frames = contenders(layers), 2 * torch.randn(20, 1, inputs)
        with torch.inference_mode():
            ours, theirs, leaky, snn = ([net(x) for x in frames] for net in nets.values())
            assert all(map(torch.equal, ours, theirs))
            assert all(map(torch.equal, leaky, snn))
            for name, us in timed(nets, frames[0]).items():
                print(f"{case:16}{name:34}{us:8.1f} us")


if __name__ == "__main__":
    main()
