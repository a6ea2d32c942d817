"""Command `kernels`: each operation over sizes, T, dtypes and layouts, by all that compute it.

Currents of the plain neuron lie on a grid that is exact in every dtype and never meets the
threshold, so equal arithmetic gives equal spikes, bit for bit, whatever its order.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from profiling.harness import memory, peers
from profiling.harness.contenders import OURS, Case, Contender, Options, Row, Work, agreement, wider
from profiling.harness.peers import ATAN, Variant
from profiling.harness.timing import Timing, buffers_beyond_cache
from spiketriton.neurons import SpikingNeuron
from spiketriton.system import machine
from spiketriton.training.environment import PRECISIONS
from spiketriton.training.gpu.precompile import compiles
from spiketriton_kernels import (
    Surrogate,
    multistep_bn_lif,
    multistep_bn_lif_reference,
    multistep_lif,
    multistep_lif_reference,
)
from spiketriton_kernels.backends.triton_launch import compiling
from spiketriton_kernels.nn import LIF

OPERATIONS = ("lif", "bn_lif", "bn_lif_residual", "bn_lif_current")
MODES = ("training", "inference")  # forward and backward; forward without a graph

Shape = tuple[int, int, int, int]  # [B, C, H, W]

FLOOR = {
    "lif": (5, 2),
    "bn_lif": (8, 2),
    "bn_lif_residual": (11, 3),
    "bn_lif_current": (13, 4),
    "copy": (2, 2),
}
"""Passes over memory in training and inference, in elements of the I/O dtype, of the fused operation
(docs/performance.md). Every contender's GB/s counts these bytes, whatever it really moves."""

ALLOWED = {
    # behind a norm, in half precision
    (False, False): (0.0, 1e-5),
    (False, True): (0.0, 2e-2),
    (True, False): (1e-5, 1e-2),
    (True, True): (1e-2, 0.2),
}
"""Share of differing spikes, relative error of gradients. Batch norm's rounding puts a current on
the other side of the threshold now and then; half-precision currents, more often. Behind a norm in float32
the definition is computed in float64, and where the norm is torch's `wider` allows more."""

BATCH_NORM = "BatchNorm2d + "  # of torch, in front of a contender that is a neuron alone

FIRST = 2 * len(OPERATIONS)
"""Cases that `all` begins with: each operation on the largest input, in both modes."""

LONG: Shape = (16, 512, 1, 1)
"""Neurons behind a linear layer, of batches of 16, as in Open Neuromorphic's benchmark of long windows."""

LARGEST_CHECK = 2**27
"""Elements; a larger case is checked on the first images of its batch."""


@dataclass(frozen=True, kw_only=True)
class KernelCase(Case):
    """One operation on one kind of input: [T, *shape] with shape = [B, C, H, W]."""

    op: str
    mode: str  # one of MODES
    T: int
    shape: Shape
    dtype: str = "fp32"
    layout: str = "contiguous"
    detach_reset: bool = False

    @property
    def spec(self) -> Row:  # type: ignore[override]
        return asdict(self)

    def neuron(self, surrogate: Surrogate = ATAN) -> SpikingNeuron:
        reset = self.detach_reset
        return LIF(tau=2.0, decay_input=False, detach_reset=reset, surrogate=surrogate)

    def contenders(self, options: Options) -> list[Contender]:
        torch._dynamo.reset()  # else old cases count as recompilations of this one
        arena = Arena(self, options.device)
        alone = self.op == "lif"
        ours = multistep_lif if alone else multistep_bn_lif
        definition = multistep_lif_reference if alone else multistep_bn_lif_reference

        def contender(name: str, make: Callable[[], nn.Module]) -> Contender:
            return Contender(name, lambda: Operation(arena, make()))

        def peer(variant: Variant) -> Operation:
            module = variant.make(self.neuron())
            module = BehindNorm(arena, compiled(module) if variant.compiled else module)
            return Operation(arena, module, variant.surrogate, variant.unequal)

        everyone = [
            Contender("copy", lambda: Copy(arena)),
            Contender(OURS, lambda: Operation(arena, Fused(arena, ours), norm_of_torch=False)),
            contender("torch.compile", lambda: compiled(Fused(arena, definition))),
            contender("eager", lambda: Fused(arena, definition)),
        ]
        if not alone:
            apart = lambda: BehindNorm(arena, compiled(Reference(self.neuron())))  # noqa: E731
            everyone.append(contender(f"{BATCH_NORM}torch.compile", apart))
        given, prefix = (self.neuron(), arena.device, arena.dtype), "" if alone else BATCH_NORM
        return everyone + peers.contenders(options.peers, *given, peer, prefix)

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        """GB/s at the floor's bytes, and the copy's of the same race."""
        rows: dict[str, Row] = {}
        for name, timing in timings.items():
            rate = gb_per_s(self.spec, timing.median, name)
            rows[name] = {"N": math.prod(self.shape), "gb_per_s": rate}
            if "copy" in timings:
                roof = gb_per_s(self.spec, timings["copy"].median, "copy")
                rows[name] |= {"copy_gb_per_s": roof, "of_copy": rate / roof}
        return rows


def gb_per_s(spec: Mapping[str, Any], seconds: float, contender: str = "") -> float:
    """GB/s at the floor's bytes of a case or row (or those of its copy)."""
    floor = FLOOR["copy" if contender == "copy" else spec["op"]]
    passes = floor[0] if spec["mode"] == "training" else floor[1]
    elements = spec["T"] * math.prod(spec["shape"])
    return passes * elements * PRECISIONS[spec["dtype"]].itemsize / seconds / 1e9


class Inputs(NamedTuple):
    """Data of one call: currents (or what batch norm makes currents of), residual; dL/ds, dL/dx of the current."""

    leaves: list[Tensor]
    grads: list[Tensor]

    @property
    def tensors(self) -> int:
        return len(self.leaves) + len(self.grads)


class Arena:
    """What the contenders of a case share: the data, the norm's parameters and the truth."""

    def __init__(self, case: KernelCase, device: torch.device) -> None:
        self.case, self.device, self.dtype = case, device, PRECISIONS[case.dtype]
        self.training = case.mode == "training"
        self.elements = case.T * math.prod(case.shape)
        self.draws = torch.Generator(device).manual_seed(0)
        self.norm = None if case.op == "lif" else nn.BatchNorm2d(case.shape[1], device=device)
        if self.norm is not None:  # currents about as wide as the threshold is high
            nn.init.uniform_(self.norm.weight, 0.5, 1.5, generator=self.draws)
            nn.init.uniform_(self.norm.bias, 0.0, 0.5, generator=self.draws)
        self.truth, self.allowed = cache(self._truth), cache(self._allowed)

    @cached_property
    def inputs(self) -> list[Inputs]:
        """Sets of buffers to rotate through."""
        first = self._draw()
        size = first.tensors * self.elements * self.dtype.itemsize
        more = range(1, buffers_beyond_cache(size, self.device))
        return [first, *(self._draw() for _ in more)]

    def _draw(self) -> Inputs:
        case, residual = self.case, []
        if case.op == "bn_lif_residual":
            residual = [(self._normal() > 1.0).to(self.dtype)]  # a shortcut's spikes
        elif self.has_current:
            residual = [self._normal().to(self.dtype)]  # the sum of currents of the block before
        x = self._normal()
        if case.op == "lif":
            # multiples of 1/4, moved by 1/16 off every potential that equals the threshold
            x = ((x + 0.5) * 4).round() / 4 + 1 / 16
        leaves = [one.requires_grad_(self.training) for one in (x.to(self.dtype), *residual)]
        outputs = range(1 + self.has_current)
        return Inputs(leaves, [self._normal().to(self.dtype) for _ in outputs])

    def _normal(self) -> Tensor:
        T, (B, C, H, W), last = self.case.T, self.case.shape, self.case.layout == "channels_last"
        size = (T, B, H, W, C) if last else (T, B, C, H, W)
        x = torch.randn(size, device=self.device, generator=self.draws)
        return x.movedim(-1, 2) if last else x

    @cached_property
    def to_check(self) -> Inputs:
        """The first inputs, of a large case the first images of them."""
        images, first = max(1, self.case.shape[0] * LARGEST_CHECK // self.elements), self.inputs[0]
        leaves, grads = (
            [x.detach()[:, :images].clone() for x in tensors]
            for tensors in (first.leaves, first.grads)
        )
        return Inputs([x.requires_grad_(self.training) for x in leaves], grads)

    @property
    def has_current(self) -> bool:
        """Whether the sum of currents is handed on, beside the spikes, as in MS blocks."""
        return self.case.op == "bn_lif_current"

    @property
    def in_float64(self) -> bool:
        """Whether the definition is computed in float64."""
        return self.case.op != "lif" and self.case.dtype == "fp32"

    def definition(self, surrogate: Surrogate = ATAN) -> Operation:
        return Operation(self, BehindNorm(self, Reference(self.case.neuron(surrogate))), surrogate)

    def _truth(self, surrogate: Surrogate) -> tuple[Tensor, list[Tensor]]:
        """Spikes and gradients of the definition, computed once for each surrogate."""
        definition, inputs = self.definition(surrogate), self.to_check
        if self.in_float64:
            definition.module.double()
            leaves = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs.leaves]
            inputs = Inputs(leaves, [grad.double() for grad in inputs.grads])
        return definition.results(inputs)

    def _allowed(self, surrogate: Surrogate, norm_of_torch: bool) -> tuple[float, float]:
        allowed = ALLOWED[self.case.op != "lif", self.case.dtype != "fp32"]
        wide = norm_of_torch and self.in_float64
        return wider(allowed, self.definition(surrogate).errors()) if wide else allowed


class Reference(nn.Module):
    """The definition of a neuron in plain PyTorch, in the neuron's place."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron.define(x)


class Fused(nn.Module):
    """One function for the neuron, with norm and residual: ours, or its definition in PyTorch."""

    def __init__(self, arena: Arena, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.options, self.function = arena.case.neuron().neuron_arguments(), function
        self.norm, self.current = copy.deepcopy(arena.norm), arena.has_current

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if (norm := self.norm) is None:
            return self.function(y, **self.options)
        given = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        own = dict(training=norm.training, residual=residual)
        return self.function(y, *given, **own, **self.options, return_current=self.current)


class BehindNorm(nn.Module):
    """A neuron alone; in front of it, where the case has them, torch.nn.BatchNorm2d and the sum with the residual."""

    def __init__(self, arena: Arena, neuron: nn.Module) -> None:
        super().__init__()
        self.norm, self.neuron = copy.deepcopy(arena.norm), neuron
        self.current = arena.has_current

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if self.norm is not None:
            y = self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        current = y if residual is None else y + residual
        return (self.neuron(current), current) if self.current else self.neuron(current)


def compiled(module: nn.Module) -> nn.Module:
    """torch.compile for these very shapes; a graph break is an error, not a slower contender."""
    return torch.compile(module, fullgraph=True, dynamic=False)


class Operation(Work):
    """A module at work on the arena's data."""

    captures = True

    def __init__(
        self,
        arena: Arena,
        module: nn.Module,
        surrogate: Surrogate = ATAN,
        unequal: str = "",
        norm_of_torch: bool = True,
    ) -> None:
        self.module = module.to(arena.device).train(arena.training)
        self.parameters = list(self.module.parameters())
        self.arena, self.surrogate, self.unequal = arena, surrogate, unequal
        self.norm_of_torch = norm_of_torch
        self.device, self.rotation = arena.device, len(arena.inputs)
        self.turns = itertools.cycle(arena.inputs)

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """Spikes, and the current where it is handed on."""
        with torch.set_grad_enabled(self.arena.training):
            outputs = self.module(*inputs.leaves)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def results(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Spikes; the current where it is handed on, and all gradients (none in inference)."""
        outputs = self.forward(inputs)
        spikes, *current = (output.detach() for output in outputs)
        if not self.arena.training:
            return spikes, current
        leaves = [*inputs.leaves, *self.parameters]
        return spikes, [*current, *torch.autograd.grad(outputs, leaves, inputs.grads)]

    def __call__(self) -> None:
        """One call, on the next set of buffers."""
        self.results(next(self.turns))

    def errors(self) -> tuple[float, float]:
        """Against the definition, on the data that are timed: share of differing spikes, worst of the gradients."""
        true_spikes, true_gradients = self.arena.truth(self.surrogate)
        spikes, gradients = self.results(self.arena.to_check)
        differ = (spikes != true_spikes).float().mean().item()
        return differ, worst(map(relative_error, gradients, true_gradients))

    def compile_ahead(self) -> None:
        if not self.norm_of_torch and compiles(self.device):  # ours
            with ThreadPoolExecutor(machine.free()) as pool, compiling(pool):
                self.results(self.arena.to_check)

    def check(self) -> Row:
        allowed = self.arena.allowed(self.surrogate, self.norm_of_torch)
        return agreement(*self.errors(), allowed, self.unequal)

    def memory(self) -> Row:
        """The bytes, and by element and time step."""
        forward = lambda: self.forward(self.arena.inputs[0])  # noqa: E731
        bytes_ = memory.measure(self, forward, self.module, self.device)
        per = {k.replace("bytes", "per_element"): n for k, n in bytes_.items()}
        return bytes_ | {k: n / self.arena.elements for k, n in per.items()}


class Copy(Work):
    """A copy of the same bytes: the bandwidth that the machine has to offer in this very run."""

    captures = True

    def __init__(self, arena: Arena) -> None:
        self.device, self.rotation = arena.device, len(arena.inputs)
        self.sources = itertools.cycle([inputs.grads[0] for inputs in arena.inputs])
        self.target = torch.empty_like(arena.inputs[0].grads[0])

    def __call__(self) -> None:
        self.target.copy_(next(self.sources))


def relative_error(a: Tensor, b: Tensor) -> float:
    """Norm of the difference by the norm of b."""
    return (torch.dist(a.float(), b.float()) / b.float().norm().clamp(min=1e-30)).item()


def worst(errors: Iterable[float]) -> float:
    """The largest, NaN when one is NaN; 0 of none."""
    return float(np.max([0.0, *errors]))


def cases(options: Options, weighed: bool = False) -> list[KernelCase]:
    """Sizes, windows, dtypes and layouts of each operation, the most important ones first.

    `weighed`: those whose memory is measured. Bytes grow as T * N, so one size is enough.
    """
    if options.quick:
        small = [_case(options, op, (2, 8, 4, 4), T=3) for op in OPERATIONS]
        return small if weighed else [small[0], replace(small[0], mode="inference"), *small[1:]]
    if weighed:
        return [_case(options, op, (16, 64, 16, 16)) for op in OPERATIONS]
    large, sizes = _shapes(options)
    other = "fp32" if options.device.type == "cuda" else "bf16"
    found = [_case(options, op, large, mode=mode) for op in OPERATIONS for mode in MODES]
    for op in ("lif", "bn_lif"):
        found += [_case(options, op, shape) for shape in sizes]
        found += [_case(options, op, sizes[2], T=T) for T in (4, 16, 32)]
        found.append(_case(options, op, large, dtype=other))
    found.append(_case(options, "bn_lif", large, layout="contiguous"))
    found.append(_case(options, "lif", large, detach_reset=True))
    found += [_case(options, "lif", LONG, T=T) for T in (100, 500)]
    return found + [_case(options, "lif", shape, mode="inference") for shape in sizes]


def every_case(options: Options) -> list[KernelCase]:
    """Those of `cases`, and every operation at every size, T and dtype in both modes: hours of them."""
    if options.quick:
        return cases(options)
    large, sizes = _shapes(options)
    grid = [
        _case(options, op, shape, mode=mode, T=T, dtype=dtype)
        for op in OPERATIONS
        for mode in MODES
        for T in (4, 10, 16, 32)
        for dtype in ("fp32", "bf16")
        for shape in (*sizes, large)
    ]
    return list(dict.fromkeys([*cases(options), *grid]))


def _shapes(options: Options) -> tuple[Shape, list[Shape]]:
    """[B, C, H, W] of a ResNet's first stage: a large one, of images of 224 pixels, and those of 64 pixels."""
    on_gpu = options.device.type == "cuda"
    batches = (1, 8, 64, 512, 4096) if on_gpu else (1, 4, 16, 64)
    return (256 if on_gpu else 16, 64, 56, 56), [(images, 64, 16, 16) for images in batches]


def _case(options: Options, op: str, shape: Shape, **changes: Any) -> KernelCase:
    dtype = "bf16" if options.device.type == "cuda" else "fp32"
    layout = "contiguous" if op == "lif" else "channels_last"
    given = dict(op=op, mode="training", T=10, shape=shape, dtype=dtype, layout=layout)
    return KernelCase(**given | changes)
