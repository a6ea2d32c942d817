"""Command `host`: what a call costs the processor that makes it, on tensors too small to matter.

Process time, not wall time: what other processes do to the machine is left out, and on a GPU the kernels are.
Without a GPU the compiled C++ is called, and beside it Triton's launcher (harness/launcher.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from profiling.harness import launcher
from profiling.harness.contenders import OURS, Case, Contender, Options, Row, Status
from profiling.harness.timing import Timing
from profiling.sections.kernels import Arena, Fused, KernelCase, Operation
from spiketriton_kernels import multistep_bn_lif, multistep_lif

REFERENCE = "F.batch_norm + relu"
ALONE = f"{OURS} neuron alone"
LAUNCHER = ", by Triton's launcher"
ALLOWED = {OURS: 2.5, ALONE: 2.0, OURS + LAUNCHER: 2.5, ALONE + LAUNCHER: 2.0}
"""Of the reference's time, at most."""

LAUNCHED = 20
"""Calls timed together on a GPU: more would fill its queue, and wait for it."""


def batch_norm_relu(
    y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, **_: object
) -> Tensor:
    normed = F.batch_norm(y.flatten(0, 1), mean, var, weight, bias, training=True)
    return F.relu(normed).view_as(y)


class HostTime(Case):
    """Forward and backward of one layer: ours, and what PyTorch does between two convolutions."""

    def __init__(self) -> None:
        self.unit = KernelCase(op="bn_lif", mode="training", T=4, shape=(2, 8, 2, 2))
        self.spec = self.unit.spec | {"op": "host"}

    def contenders(self, options: Options) -> list[Contender]:
        unit = Arena(self.unit, options.device)
        alone = Arena(replace(self.unit, op="lif"), options.device)
        found = [Contender(REFERENCE, lambda: Unchecked(unit, batch_norm_relu))]
        for kind, by in (Layer, ""), (Launched, LAUNCHER):
            if not by or launcher.available(options.device):
                found += [
                    Contender(OURS + by, partial(kind, unit, multistep_bn_lif)),
                    Contender(ALONE + by, partial(kind, alone, multistep_lif)),
                ]
        return found

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        """`of_reference` and `allowed`, the bar."""
        if REFERENCE not in timings:
            return {}
        return {
            name: {
                "of_reference": timing.ratio_to(timings[REFERENCE]).median,
                "allowed": ALLOWED[name],
            }
            for name, timing in timings.items()
            if name != REFERENCE
        }


class Layer(Operation):
    """A layer's forward and backward, with as little around them as can be."""

    def __init__(self, arena: Arena, function: Callable[..., Tensor]) -> None:
        layer = Fused(arena, function)
        super().__init__(arena, layer)
        (x,), self.grad = arena.inputs[0]
        norm = (n.weight, n.bias, n.running_mean, n.running_var) if (n := layer.norm) else ()
        self.call = partial(function, x, *norm, **layer.options)

    def __call__(self) -> None:
        self.call().backward(self.grad)

    def _seconds(self, calls: int) -> float:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            self.calls = calls = min(calls, LAUNCHED)
            torch.cuda.synchronize(self.device)
        begin = time.process_time()
        for _ in range(calls):
            self()
        return time.process_time() - begin


class Unchecked(Layer):
    """Computes something else than a neuron."""

    def check(self) -> Row:
        return {"status": Status.OK}


class Launched(Layer):
    """On the path that a GPU takes, up to a driver that does nothing: what it computes is checked without it."""

    def _seconds(self, calls: int) -> float:
        with launcher.without_gpu():
            return super()._seconds(calls)
