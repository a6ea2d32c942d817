"""TC-LIF forward and backward on a CPU: the kernels made of its step, the loop over that step, SpikingJelly's FlexSN.

    pip install -e ".[peers]"
    python studies/speed/own_step.py          # T = 4
    python studies/speed/own_step.py 4 16

One thread, contenders in turns, medians of milliseconds of processor time; MB is what a forward pass keeps for the
backward. FlexSN compiles a step for NVIDIA GPUs; on a CPU it runs the step in a loop. On a busy AMD EPYC:

    T =  4   kernels   4.75 ms, 0 MB   loop  19.76 ms, 12 MB   FlexSN  18.40 ms, 12 MB
    T = 16   kernels  18.71 ms, 0 MB   loop 103.66 ms, 48 MB   FlexSN 128.63 ms, 48 MB

    python studies/speed/own_step.py functions    # a step with one function between its states, T = 4

The shortest time of each; log.md has the table.
"""

import statistics
import sys
import time

import torch
from spikingjelly.activation_based.neuron.flexsn import FlexSN
from torch.nn.functional import softplus

from examples.own_parts.tclif import TCLIF
from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import SpikingNeuron

SHAPE, ROUNDS = (16, 64, 16, 16), 11


class Fire(torch.autograd.Function):
    """What ``TCLIF.fire`` is below, for FlexSN, whose step is a function."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + u * u)


def flexsn(neuron: TCLIF) -> FlexSN:
    """The same step with the same parameters, as FlexSN wants it: what learns is an argument."""

    def core(x, soma, dendrite, back, ahead):
        dendrite = dendrite - torch.sigmoid(back) * soma + x
        soma = soma + torch.sigmoid(ahead) * dendrite
        s = Fire.apply(soma - 1.0)
        return s, soma - s, dendrite - 0.5 * s

    return FlexSN(core, num_states=2, static_inputs=(neuron.back, neuron.ahead))


def kept(run, x) -> float:
    """MB that autograd keeps between forward and backward, each memory once."""
    memory = {}

    def note(tensor):
        memory[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        spikes = run(x)
    memory.pop(x.untyped_storage().data_ptr(), None)  # which the layer in front keeps anyway
    del spikes
    return sum(memory.values()) / 2**20


def compare(T: int) -> None:
    torch.manual_seed(0)
    neuron = TCLIF(Surrogate("atan", height=1.0, width=1.0))
    jelly = flexsn(neuron)

    def reset_and_run(x):
        jelly.reset()
        return jelly(x)

    contenders = {"kernels": neuron, "loop": neuron.define, "FlexSN": reset_and_run}
    x, grad = torch.randn(T, *SHAPE, requires_grad=True), torch.randn(T, *SHAPE)
    spikes = [run(x).detach() for run in contenders.values()]
    assert all(torch.equal(s, spikes[0]) for s in spikes)
    times = {name: [] for name in contenders}
    for turn in range(ROUNDS + 2):
        for name, run in contenders.items():
            started = time.thread_time()
            run(x).backward(grad)
            if turn > 1:
                times[name].append(1e3 * (time.thread_time() - started))
    for name, run in contenders.items():
        median = statistics.median(times[name])
        print(f"T = {T:2}  {name:8} {median:7.2f} ms {kept(run, x):8.1f} MB", flush=True)


FUNCTIONS = {
    "none": lambda z: z,
    "tanh": torch.tanh,
    "exp": lambda z: torch.exp(-z * z),
    "log": lambda z: torch.log(1 + z * z),
    "sigmoid": torch.sigmoid,
    "softplus": softplus,
}


class Applies(SpikingNeuron):
    """A function between the states."""

    states = ("v",)

    def __init__(self, name: str) -> None:
        super().__init__(surrogate=Surrogate("atan", height=1.0, width=1.0))
        self.name = name

    def step(self, x, v):
        h = FUNCTIONS[self.name](0.5 * v + x)
        return self.fire(h - 0.4), h - 0.25 * h.abs()


def compare_functions(T: int) -> None:
    for name in FUNCTIONS:
        neuron = Applies(name)
        x, grad = torch.randn(T, *SHAPE, requires_grad=True), torch.randn(T, *SHAPE)
        assert torch.equal(neuron(x), neuron.define(x))
        shortest = []
        for run, rounds in (neuron, 4 * ROUNDS), (neuron.define, ROUNDS):
            forth, back = [], []
            for _ in range(rounds):
                started = time.thread_time()
                spikes = run(x)
                between = time.thread_time()
                spikes.backward(grad)
                forth.append(1e3 * (between - started))
                back.append(1e3 * (time.thread_time() - between))
            shortest.append(f"{min(forth):6.2f} + {min(back):5.2f} ms")
        print(f"T = {T:2}  {name:8}  kernels {shortest[0]}   loop {shortest[1]}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["functions"]:
        sys.exit(compare_functions(4))
    for word in sys.argv[1:] or ["4"]:
        compare(int(word))
