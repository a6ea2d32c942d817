"""A training step of recurrent LIF neurons on a CPU: `Recurrent`, loops over our own step, SpikingJelly's container.

    pip install -e ".[peers]"
    python studies/speed/recurrent.py            # 128 neurons, batch 32, T = 250
    python studies/speed/recurrent.py 128 32 64

One thread, contenders in turns, medians of milliseconds of processor time, forward and backward; MB is what a forward
pass keeps for the backward. ``step_mode="s"`` calls the compiled neuron for each step, the definition is plain PyTorch.
The spikes of all are equal but where a potential comes within a rounding of the threshold; their share is printed.
log.md has what a busy Intel Xeon with AVX-512 took.
"""

import statistics
import sys
import time

import torch
from spikingjelly.activation_based import functional, layer, surrogate
from spikingjelly.activation_based import neuron as sj
from torch.nn.functional import linear

from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import LIF, Recurrent
from studies.speed.own_step import kept

ROUNDS = 9


def compare(neurons: int, batch: int, T: int) -> None:
    torch.manual_seed(0)
    atan = Surrogate.atan(2.0)
    ours, single = Recurrent(LIF(surrogate=atan), neurons), LIF(surrogate=atan, step_mode="s")
    jelly = layer.LinearRecurrentContainer(
        sj.LIFNode(detach_reset=True, surrogate_function=surrogate.ATan(2.0)),
        neurons, neurons, bias=False, step_mode="m",
    )  # fmt: skip
    # of the container's product with [x, y] the part of x is the identity here
    with torch.no_grad():
        jelly.rc.weight.copy_(torch.cat([torch.eye(neurons), ours.weight], 1))

    def loop(x):
        single.reset()
        s, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s = single(x_t + linear(s, ours.weight))
            spikes.append(s)
        return torch.stack(spikes)

    def container(x):
        functional.reset_net(jelly)
        return jelly(x)

    contenders = {
        "Recurrent": ours, 'step_mode="s"': loop, "definition": ours.define, "SpikingJelly": container,
    }  # fmt: skip
    x = (0.5 + 2 * torch.randn(T, batch, neurons)).requires_grad_()
    grad = torch.randn(T, batch, neurons)
    expected = ours.define(x).detach()
    times = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, run in contenders.items():
            started = time.thread_time()
            run(x).backward(grad)
            if turn:
                times[name].append(1e3 * (time.thread_time() - started))
    print(f"{neurons} neurons, batch {batch}, T = {T}, {expected.mean():.1%} of them fire a step")
    for name, run in contenders.items():
        other = (run(x) != expected).float().mean()
        median = statistics.median(times[name])
        print(
            f"{name:14} {median:7.1f} ms {kept(run, x):6.1f} MB  {other:.4%} of other spikes",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare(*(int(word) for word in sys.argv[1:] or ("128", "32", "250")))
