"""Time of a training step before and after ``swap``, on this machine's device.

    pip install -e ".[peers]"
    python studies/speed/swap.py                 # T = 4 and 16
    python studies/speed/swap.py --compile 4 8   # the network by torch.compile, too: minutes

Rows: a LIF layer alone and SpikingJelly's spiking ResNet-18, each as SpikingJelly runs it by default, compiled by
torch.compile, and swapped (the network also with its batch norms fused). Contenders take turns in one run. The numbers
are medians of milliseconds, of processor time on a CPU, so that other programs do not count, with the ratio to
SpikingJelly's default behind them.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet
from torch import Tensor, nn

from spiketriton_kernels.nn import swap

BATCH, SIZE, ROUNDS = 2, 64, 5
NEURON = dict(surrogate_function=surrogate.ATan(), detach_reset=True)


def resnet() -> nn.Module:
    net = spiking_resnet.spiking_resnet18(
        num_classes=10, spiking_neuron=neuron.LIFNode, tau=2.0, **NEURON
    )
    functional.set_step_mode(net, "m")
    return net


def layer() -> nn.Module:
    return nn.Sequential(neuron.LIFNode(tau=2.0, step_mode="m", **NEURON))


def swapped(net: nn.Module, fuse: bool) -> nn.Module:
    net = copy.deepcopy(net)
    report = swap(net, fuse=fuse)
    assert not report.left, report
    return net


def step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward and backward of a given gradient; state is forgotten in between."""
    with torch.no_grad():
        grad = torch.rand_like(net(x))

    def run() -> None:
        functional.reset_net(net)
        net(x).backward(grad)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def compare(title: str, net: nn.Module, x: Tensor, fusable: bool, compiled: bool) -> None:
    contenders = {"default": step(net, x)}
    if compiled:
        contenders["torch.compile"] = step(torch.compile(copy.deepcopy(net)), x)
    contenders["swapped"] = step(swapped(net, fuse=False), x)
    if fusable:
        contenders["swapped, fused"] = step(swapped(net, fuse=True), x)
    clock = time.perf_counter if x.is_cuda else time.process_time
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 2):
        for name, run in contenders.items():
            started = clock()
            run()
            if turn > 1:  # two rounds to compile and to warm up
                times[name].append(1e3 * (clock() - started))
    default = statistics.median(times["default"])
    cells = [
        f"{name} {statistics.median(t):.1f} ms ({default / statistics.median(t):.2f}x)"
        for name, t in times.items()
    ]
    print(f"{title}: {', '.join(cells)}", flush=True)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    words = sys.argv[1:]
    compiled = "--compile" in words
    for T in [int(word) for word in words if word != "--compile"] or [4, 16]:
        x = torch.randn(T, 16, 64, 16, 16, device=device, requires_grad=True)
        compare(f"LIF layer, T = {T}", layer().to(device), x, False, True)
        images = torch.randn(T, BATCH, 3, SIZE, SIZE, device=device)
        compare(f"spiking_resnet18, T = {T}", resnet().to(device), images, True, compiled)


if __name__ == "__main__":
    main()
