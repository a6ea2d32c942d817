"""Command `host`: what a call costs the processor that makes it, on tensors too small to matter.

Process time, not wall time: what other processes do to the machine is left out, and on a GPU the kernels are.
Without a GPU the compiled C++ is called, and beside it Triton's launcher (harness/launcher.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from profiling.harness import launcher
from profiling.harness.contenders import (
    OURS,
    Case,
    Contender,
    Options,
    Status,
    Verdict,
    Work,
    agreement,
)
from profiling.harness.timing import Timing
from spiketriton_kernels import (
    multistep_bn_lif,
    multistep_bn_lif_reference,
    multistep_lif,
    multistep_lif_reference,
)

REFERENCE = "F.batch_norm + relu"
ALONE = f"{OURS} neuron alone"
LAUNCHER = ", by Triton's launcher"
ALLOWED = {OURS: 2.5, ALONE: 2.0, OURS + LAUNCHER: 2.5, ALONE + LAUNCHER: 2.0}
"""Of the reference's time, at most."""

LAUNCHED = 20
"""Calls timed together on a GPU: more would fill its queue, and wait for it."""


class HostTime(Case):
    """Forward and backward of one layer: ours, and what PyTorch does between two convolutions."""

    def __init__(self) -> None:
        self.spec = dict(
            op="host", mode="training", T=4, shape=[2, 8, 2, 2], dtype="fp32", layout="contiguous"
        )

    def contenders(self, options: Options) -> list[Contender]:
        inputs = Inputs(self.spec, options.device)
        found = [
            Contender(REFERENCE, lambda: Layer(inputs, inputs.batch_norm_relu)),
            Contender(OURS, lambda: Layer(inputs, inputs.unit, inputs.unit_by_definition)),
            Contender(ALONE, lambda: Layer(inputs, inputs.neuron, inputs.neuron_by_definition)),
        ]
        if launcher.available(options.device):
            found += [
                Contender(OURS + LAUNCHER, lambda: Launched(inputs, inputs.unit)),
                Contender(ALONE + LAUNCHER, lambda: Launched(inputs, inputs.neuron)),
            ]
        return found

    def numbers(self, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
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


class Inputs:
    """What the layers share: their input, dL/dspikes, the norm's parameters and buffers."""

    def __init__(self, spec: dict[str, Any], device: torch.device) -> None:
        draws = torch.Generator(device).manual_seed(0)
        size, channels = (spec["T"], *spec["shape"]), spec["shape"][1]
        self.x = torch.randn(size, generator=draws, device=device).requires_grad_()
        self.grad = torch.randn(size, generator=draws, device=device)
        self.device = device
        self.weight = torch.ones(channels, device=device, requires_grad=True)
        self.bias = torch.full((channels,), 0.5, device=device, requires_grad=True)
        self.running = torch.zeros(channels, device=device), torch.ones(channels, device=device)

    @property
    def norm(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, *self.running

    def batch_norm_relu(self) -> Tensor:
        normed = F.batch_norm(
            self.x.flatten(0, 1), *self.running, self.weight, self.bias, training=True
        )
        return F.relu(normed).view_as(self.x)

    def unit(self) -> Tensor:
        return multistep_bn_lif(self.x, *self.norm)  # type: ignore[return-value]

    def unit_by_definition(self) -> Tensor:
        return multistep_bn_lif_reference(self.x, *self.norm)  # type: ignore[return-value]

    def neuron(self) -> Tensor:
        return multistep_lif(self.x)  # type: ignore[return-value]

    def neuron_by_definition(self) -> Tensor:
        return multistep_lif_reference(self.x)  # type: ignore[return-value]


class Layer(Work):
    """A layer's forward and backward."""

    def __init__(
        self,
        inputs: Inputs,
        forward: Callable[[], Tensor],
        definition: Callable[[], Tensor] | None = None,
    ) -> None:
        self.inputs, self.forward, self.definition = inputs, forward, definition
        self.device = inputs.device

    def __call__(self) -> None:
        self.forward().backward(self.inputs.grad)

    def check(self) -> Verdict:
        if self.definition is None:
            return Verdict(Status.OK)
        (ours, gradient), (theirs, exact) = map(self._result, (self.forward, self.definition))
        error = float((gradient - exact).norm() / exact.norm())
        return agreement(float((ours != theirs).double().mean()), error, (0.0, 1e-5))

    def _result(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        out = forward()
        (gradient,) = torch.autograd.grad(out, self.inputs.x, self.inputs.grad)
        return out.detach(), gradient

    def _seconds(self, calls: int) -> float:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            self.calls = calls = min(calls, LAUNCHED)
            torch.cuda.synchronize(self.device)
        begin = time.process_time()
        for _ in range(calls):
            self()
        return time.process_time() - begin


class Launched(Layer):
    """On the path that a GPU takes, up to a driver that does nothing: what is computed cannot be checked."""

    def _seconds(self, calls: int) -> float:
        with launcher.without_gpu():
            return super()._seconds(calls)
