"""The kernels' cases: each operation once, with everything that can compute it.

`training` is forward and backward, in training mode; `inference` is forward alone, without a graph
and in evaluation mode. Currents of the plain neuron lie on a grid that is exact in every dtype and
never meets the threshold, so equal arithmetic gives equal spikes, bit for bit, whatever its order.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from profiling.contenders import OURS, Contender, Options, Section, Spec, Verdict, agreement
from profiling.memory import Memory, measure
from profiling.peers import ATAN, Unavailable, Variant, variants, version
from profiling.timing import Sampler, Timing, buffers_beyond_cache
from spiketriton.neurons import LIF
from spiketriton_kernels import (
    Surrogate,
    multistep_bn_lif,
    multistep_bn_lif_reference,
    multistep_lif,
    multistep_lif_reference,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPERATIONS = ("lif", "bn_lif", "bn_lif_residual")

FLOOR = {
    ("lif", "training"): 5,
    ("lif", "inference"): 2,
    ("bn_lif", "training"): 8,
    ("bn_lif", "inference"): 2,
    ("bn_lif_residual", "training"): 10,
    ("bn_lif_residual", "inference"): 3,
    ("copy", "training"): 2,
    ("copy", "inference"): 2,
}
"""Passes over memory at the least, in elements of the I/O dtype (docs/design.md). Every contender's
GB/s counts these bytes, whatever it moves in truth: the higher, the faster."""

ALLOWED = {
    ("lif", "fp32"): (0.0, 1e-5),
    ("lif", "half"): (0.0, 2e-2),
    ("bn_lif", "fp32"): (1e-5, 1e-2),
    ("bn_lif", "half"): (1e-2, 0.2),
}
"""Share of differing spikes, relative error of gradients. Batch norm's rounding puts a current on
the other side of the threshold now and then; half-precision currents, more often."""

BATCH_NORM = "BatchNorm2d + "  # of torch, in front of a contender that is a neuron alone

TELLING = 2 * len(OPERATIONS)
"""Cases at the front: each operation on the largest input, forward and backward and alone."""

LARGEST_CHECK = 2**27
"""Elements; a larger case is checked on the first images of its batch."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation on one kind of input: [T, *shape] with shape = [B, C, H, W]."""

    op: str
    mode: str
    T: int
    shape: tuple[int, int, int, int]
    dtype: str = "fp32"
    layout: str = "contiguous"
    detach_reset: bool = False

    @classmethod
    def of(cls, spec: Spec) -> Case:
        return cls(**(spec | {"shape": tuple(spec["shape"])}))

    @property
    def training(self) -> bool:
        return self.mode == "training"

    @property
    def N(self) -> int:
        """Neurons."""
        return math.prod(self.shape)

    def floor_bytes(self, op: str | None = None) -> int:
        """Bytes that this operation (or `copy`) moves at the least."""
        passes = FLOOR[op or self.op, self.mode]
        return passes * self.T * self.N * DTYPES[self.dtype].itemsize

    def neuron(self) -> LIF:
        return LIF(tau=2.0, decay_input=False, detach_reset=self.detach_reset, surrogate=ATAN)

    def allowed(self) -> tuple[float, float]:
        kind = "lif" if self.op == "lif" else "bn_lif"
        return ALLOWED[kind, "fp32" if self.dtype == "fp32" else "half"]


@dataclass(frozen=True)
class Inputs:
    """Data of one call: currents (or what batch norm makes currents of), residual, dL/ds."""

    x: Tensor
    residual: Tensor | None
    grad: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.x] if self.residual is None else [self.x, self.residual]

    def first(self, images: int) -> Inputs:
        """The same for the first images of the batch."""
        residual = None if self.residual is None else _leaf(self.residual[:, :images])
        return Inputs(_leaf(self.x[:, :images]), residual, _leaf(self.grad[:, :images]))


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


class Arena:
    """What the contenders of a case share: the data, the norm's parameters and the truth."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.draws = torch.Generator(device).manual_seed(0)
        self.norm = nn.BatchNorm2d(case.shape[1], device=device)
        with torch.no_grad():  # currents about as wide as the threshold is high
            self.norm.weight.uniform_(0.5, 1.5, generator=self.draws)
            self.norm.bias.uniform_(0.0, 0.5, generator=self.draws)
        self.truths: dict[str, tuple[Tensor, list[Tensor]]] = {}

    @cached_property
    def inputs(self) -> list[Inputs]:
        """Sets of buffers to rotate through."""
        tensors = 3 if self.case.op == "bn_lif_residual" else 2
        size = tensors * self.case.T * self.case.N * DTYPES[self.case.dtype].itemsize
        return [self._draw() for _ in range(buffers_beyond_cache(size, self.device))]

    def _draw(self) -> Inputs:
        case = self.case
        residual = None
        if case.op == "bn_lif_residual":
            residual = (self._normal() > 1.0).to(DTYPES[case.dtype])  # a shortcut's spikes
            residual.requires_grad_(case.training)
        x = self._normal()
        if case.op == "lif":
            # multiples of 1/4, moved by 1/16 off every potential that equals the threshold
            x = ((x + 0.5) * 4).round() / 4 + 1 / 16
        x = x.to(DTYPES[case.dtype]).requires_grad_(case.training)
        return Inputs(x, residual, self._normal().to(DTYPES[case.dtype]))

    def _normal(self) -> Tensor:
        T, (B, C, H, W) = self.case.T, self.case.shape
        if self.case.layout == "channels_last":
            x = torch.randn(T, B, H, W, C, device=self.device, generator=self.draws)
            return x.movedim(-1, 2)
        return torch.randn(T, B, C, H, W, device=self.device, generator=self.draws)

    @cached_property
    def to_check(self) -> Inputs:
        case = self.case
        images = case.shape[0] * LARGEST_CHECK // (case.T * case.N)
        return self.inputs[0] if images >= case.shape[0] else self.inputs[0].first(max(1, images))

    def truth(self, surrogate: Surrogate) -> tuple[Tensor, list[Tensor]]:
        """Spikes and gradients of the definition, computed once for each surrogate."""
        key = f"{surrogate.shape} {surrogate.height} {surrogate.width}"
        if key not in self.truths:
            module = behind_norm(self, Reference(self.case, surrogate))
            self.truths[key] = Operation(self, module).results(self.to_check)
        return self.truths[key]


class Reference(nn.Module):
    """The definition, eager."""

    def __init__(self, case: Case, surrogate: Surrogate = ATAN) -> None:
        super().__init__()
        self.options = case.neuron().neuron_arguments() | dict(surrogate=surrogate)

    def forward(self, x: Tensor) -> Tensor:
        return multistep_lif_reference(x, **self.options)


class Fused(nn.Module):
    """One function for norm, residual and neuron: ours, or its definition in PyTorch."""

    def __init__(self, arena: Arena, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.options, self.function = arena.case.neuron().neuron_arguments(), function
        self.norm = copy.deepcopy(arena.norm)

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        norm = self.norm
        return self.function(
            y,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            training=norm.training,
            residual=residual,
            **self.options,
        )


class BatchNormThen(nn.Module):
    """torch.nn.BatchNorm2d on the folded currents, the residual, and some neuron."""

    def __init__(self, arena: Arena, neuron: nn.Module) -> None:
        super().__init__()
        self.norm, self.neuron = copy.deepcopy(arena.norm), neuron

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        current = self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return self.neuron(current if residual is None else current + residual)


class Operation:
    """A module at work on the arena's data (the Work of a contender)."""

    def __init__(
        self, arena: Arena, module: nn.Module, surrogate: Surrogate = ATAN, unequal: str = ""
    ) -> None:
        self.module = module.to(arena.device).train(arena.case.training)
        self.arena, self.surrogate, self.unequal = arena, surrogate, unequal
        self.turn = 0
        self.sampler = Sampler(self, arena.device)
        self.prepare, self.sample = self.sampler.prepare, self.sampler.sample

    def forward(self, inputs: Inputs) -> Tensor:
        with torch.set_grad_enabled(self.arena.case.training):
            return self.module(*inputs.leaves())

    def gradients(self, spikes: Tensor, inputs: Inputs) -> list[Tensor]:
        leaves = [*inputs.leaves(), *(p for p in self.module.parameters() if p.requires_grad)]
        return list(torch.autograd.grad(spikes, leaves, inputs.grad))

    def __call__(self) -> None:
        """One call, on the next set of buffers."""
        sets = self.arena.inputs
        inputs = sets[self.turn % len(sets)]
        self.turn += 1
        spikes = self.forward(inputs)
        if self.arena.case.training:
            self.gradients(spikes, inputs)

    def results(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Spikes and all gradients (none in inference)."""
        spikes = self.forward(inputs)
        gradients = self.gradients(spikes, inputs) if self.arena.case.training else []
        return spikes.detach(), gradients

    def check(self) -> Verdict:
        """Against the definition, on the data that are timed."""
        true_spikes, true_gradients = self.arena.truth(self.surrogate)
        spikes, gradients = self.results(self.arena.to_check)
        differ = (spikes != true_spikes).float().mean().item()
        error = worst(map(relative_error, gradients, true_gradients))
        return agreement(differ, error, self.arena.case.allowed(), self.unequal)

    def memory(self) -> Memory:
        inputs = self.arena.inputs[0]
        kept = [*self.module.parameters(), *self.module.buffers()]
        return measure(self, lambda: self.forward(inputs), kept, self.arena.device)


def relative_error(a: Tensor, b: Tensor) -> float:
    """Norm of the difference by the norm of b."""
    return (torch.dist(a.float(), b.float()) / b.float().norm().clamp(min=1e-30)).item()


def worst(errors: Iterable[float]) -> float:
    """The largest, NaN when one is NaN; 0 of none."""
    return float(np.max([0.0, *errors]))


class Copy:
    """A copy of the same bytes: the bandwidth that the machine has to offer in this very run."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.turn = arena, 0
        self.target = torch.empty_like(arena.inputs[0].grad)
        self.sampler = Sampler(self, arena.device)
        self.prepare, self.sample = self.sampler.prepare, self.sampler.sample

    def __call__(self) -> None:
        sets = self.arena.inputs
        self.target.copy_(sets[self.turn % len(sets)].grad)
        self.turn += 1

    def check(self) -> Verdict:
        self.turn = 0
        self()
        same = torch.equal(self.target, self.arena.inputs[0].grad)
        return agreement(0.0, 0.0 if same else math.inf, (0.0, 0.0))

    def memory(self) -> Memory:
        raise Unavailable("a copy has no backward")


def behind_norm(arena: Arena, neuron: nn.Module) -> nn.Module:
    """A neuron alone, with torch's batch norm in front where the case has one."""
    return neuron if arena.case.op == "lif" else BatchNormThen(arena, neuron)


def compiled(module: nn.Module) -> nn.Module:
    """torch.compile for these very shapes; a graph break is an error, not a slower contender."""
    return torch.compile(module, fullgraph=True, dynamic=False)


class Kernels:
    """Section `kernels`: each operation over sizes, T, dtypes and layouts."""

    name = "kernels"

    def specs(self, options: Options) -> list[Spec]:
        return [asdict(case) for case in cases(options)]

    def contenders(self, spec: Spec, options: Options) -> list[Contender]:
        case = Case.of(spec)
        torch._dynamo.reset()  # else old cases count as recompilations of this one
        arena = Arena(case, options.device)

        def contender(name: str, make: Callable[[], nn.Module], **facts: Any) -> Contender:
            return Contender(name, lambda: Operation(arena, make()), facts)

        everyone = [Contender("copy", lambda: Copy(arena))]
        if case.op == "lif":
            fused = _Lif(case)
            everyone += [
                contender(OURS, lambda: fused),
                contender("torch.compile", lambda: compiled(Reference(case))),
                contender("eager", lambda: Reference(case)),
            ]
        else:
            everyone += [
                contender(OURS, lambda: Fused(arena, multistep_bn_lif)),
                contender(
                    "torch.compile", lambda: compiled(Fused(arena, multistep_bn_lif_reference))
                ),
                contender("eager", lambda: Fused(arena, multistep_bn_lif_reference)),
                contender(
                    f"{BATCH_NORM}torch.compile",
                    lambda: BatchNormThen(arena, compiled(Reference(case))),
                ),
            ]
        for peer in options.peers:
            everyone += self._peers(peer, arena)
        return everyone

    def numbers(self, spec: Spec, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
        """GB/s at the floor's bytes, beside the copy's of the same race."""
        case, copied = Case.of(spec), timings.get("copy")
        rows = {}
        for name, timing in timings.items():
            floor = case.floor_bytes("copy" if name == "copy" else None)
            row = rows[name] = {"N": case.N, "gb_per_s": floor / timing.median / 1e9}
            if copied is not None:
                row["copy_gb_per_s"] = case.floor_bytes("copy") / copied.median / 1e9
                row["of_copy"] = row["gb_per_s"] / row["copy_gb_per_s"]
        return rows

    def _peers(self, peer: str, arena: Arena) -> list[Contender]:
        case = arena.case
        if version(peer) is None:
            return [missing(peer)]
        found = variants(peer, case.neuron(), arena.device, DTYPES[case.dtype])
        return [_peer(variant, arena) for variant in found]


def _peer(variant: Variant, arena: Arena) -> Contender:
    def build() -> Operation:
        module = variant.make(arena.case.neuron())
        module = compiled(module) if variant.compiled else module
        return Operation(arena, behind_norm(arena, module), variant.surrogate, variant.unequal)

    name = variant.name if arena.case.op == "lif" else BATCH_NORM + variant.name
    return Contender(name, build, peer_facts(variant))


def peer_facts(variant: Variant) -> dict[str, Any]:
    """What a row says of a peer: its version, and its surrogate where it is another than ours."""
    facts: dict[str, Any] = {"package": f"{variant.package} {version(variant.package)}"}
    if variant.surrogate is not ATAN:
        s = variant.surrogate
        facts["note"] = f"surrogate {s.shape} (height {s.height:g}, width {s.width:g}): has no ATan"
    return facts


def missing(peer: str) -> Contender:
    """Stands in the place of a peer that is not installed."""

    def build() -> Operation:
        raise Unavailable(f'{peer} is not installed; pip install -e ".[peers]" installs it')

    return Contender(peer, build)


class Weighed:
    """Section `memory`: the contenders of another section, their bytes instead of their time."""

    name = "memory"

    def __init__(self, section: Section, specs: Callable[[Options], list[Spec]]) -> None:
        self.section, self.specs = section, specs

    def contenders(self, spec: Spec, options: Options) -> list[Contender]:
        return [c for c in self.section.contenders(spec, options) if c.name != "copy"]

    def weigh(self, spec: Spec, memory: Memory) -> dict[str, float]:
        """The bytes of a row; of a kernel's case, by element and time step too."""
        row: dict[str, float] = dict(memory.row())
        if "op" in spec:
            case = Case.of(spec)
            elements = case.T * case.N
            row["peak_per_element"] = memory.peak_bytes / elements
            row["saved_per_element"] = memory.saved_bytes / elements
        return row


def weighed_cases(options: Options) -> list[Spec]:
    """The kernels' cases that section `memory` weighs: bytes grow as T * N, so one size tells."""
    if options.quick:
        return [asdict(case) for case in cases(options) if case.training]
    dtype = "bf16" if options.device.type == "cuda" else "fp32"
    given = dict(mode="training", T=10, shape=(16, 64, 16, 16), dtype=dtype)
    layouts = {"lif": "contiguous"}
    return [
        asdict(Case(op=op, layout=layouts.get(op, "channels_last"), **given)) for op in OPERATIONS
    ]


class _Lif(nn.Module):
    """Our fused neuron."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.options = case.neuron().neuron_arguments()

    def forward(self, x: Tensor) -> Tensor:
        return multistep_lif(x, **self.options)


def cases(options: Options) -> list[Case]:
    """Sizes, windows, dtypes and layouts of each operation, the telling ones first."""
    if options.quick:
        small = (2, 8, 4, 4)
        return [
            Case(op="lif", mode="training", T=3, shape=small),
            Case(op="lif", mode="inference", T=3, shape=small),
            Case(op="bn_lif", mode="training", T=3, shape=small, layout="channels_last"),
            Case(op="bn_lif_residual", mode="training", T=3, shape=small, layout="channels_last"),
        ]
    on_gpu = options.device.type == "cuda"
    dtype, other = ("bf16", "fp32") if on_gpu else ("fp32", "bf16")
    # [B, C, H, W]: a ResNet's first stage, for images of 224 pixels and of 64
    large = (256 if on_gpu else 16, 64, 56, 56)
    batches = (1, 8, 64, 512, 4096) if on_gpu else (1, 4, 16, 64)
    sizes = [(images, 64, 16, 16) for images in batches]

    def case(op: str, shape: tuple[int, int, int, int], *modes: str, **changes: Any) -> list[Case]:
        layout = "contiguous" if op == "lif" else "channels_last"
        given = dict(T=10, dtype=dtype, layout=layout) | changes
        return [Case(op=op, mode=mode, shape=shape, **given) for mode in modes]

    found = []
    for op in OPERATIONS:
        found += case(op, large, "training", "inference")
    for op in ("lif", "bn_lif"):
        for shape in sizes:
            found += case(op, shape, "training")
        for T in (4, 16, 32):
            found += case(op, sizes[2], "training", T=T)
        found += case(op, large, "training", dtype=other)
    found += case("bn_lif", large, "training", layout="contiguous")
    found += case("lif", large, "training", detach_reset=True)
    for shape in sizes:
        found += case("lif", shape, "inference")
    return found
