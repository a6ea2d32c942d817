"""Lowers the Triton kernels for a named GPU without one, and reads what the compiler made of them.

A case calls the package's public function on CPU tensors while launches are noted instead of run. Triton's own launcher
then compiles the one that is meant: with the tiles, options and specialisations that a GPU would be asked to run.
Registers, spills and the instruction count come from the machine code; loads and stores from the PTX, each traced back
to the kernel argument that it touches, so that a kernel which quietly reads a tensor twice shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import triton
from triton.backends.compiler import GPUTarget

from profiling.harness import machine_code
from profiling.harness.launcher import Driver, without_gpu
from spiketriton.system.errors import UserError
from spiketriton.training.environment import PRECISIONS
from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    multistep_alif,
    multistep_bn_lif,
    multistep_clif,
    multistep_cuba,
    multistep_ilif,
    multistep_lif,
    pack_spikes,
    unpack_spikes,
)
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.backends import triton_neuron, triton_norm, triton_packed
from spiketriton_kernels.neuron import Norm

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SIZE = (4, 64, 16, 16)
"""[B, C, H, W] of the lowered launches. Sizes are runtime arguments: only divisibility matters."""


def _training(function: Callable[..., Any], x: torch.Tensor, *given: Any, **options: Any) -> None:
    out = function(x, *given, **options)
    outs = out if isinstance(out, tuple) else (out,)
    torch.autograd.backward(outs, [x.detach() for _ in outs])


_lif = partial(_training, multistep_lif)


def _inference(x: torch.Tensor, **options: Any) -> None:
    multistep_lif(x.detach(), **options)


def _probed(x: torch.Tensor, **options: Any) -> None:
    _lif(x, probe=torch.zeros(x.shape[0], len(PROBE_FIELDS), requires_grad=True), **options)


def _bn_lif(x: torch.Tensor, **options: Any) -> None:
    _training(multistep_bn_lif, x, *(torch.ones(x.shape[2]) for _ in range(4)), **options)


def _with_residual(x: torch.Tensor, **options: Any) -> None:
    _bn_lif(x, residual=torch.empty_like(x, requires_grad=True), **options)


_with_current = partial(_with_residual, return_current=True)


def _given_statistics(x: torch.Tensor, **options: Any) -> None:
    """As behind a frozen convolution: the norm has its statistics, and y no gradient."""
    residual = torch.empty_like(x, requires_grad=True)
    norm = [torch.ones(x.shape[2], requires_grad=learns) for learns in (True, True, False, False)]
    given = dict(training=False, residual=residual, return_current=True)
    _training(multistep_bn_lif, x.detach(), *norm, **given, **options)


def _shared_statistics(x: torch.Tensor, **options: Any) -> None:
    """As of several ranks: of the one that there is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        _with_residual(x, process_group=dist.group.WORLD, **options)
    finally:
        dist.destroy_process_group()


def _everything(x: torch.Tensor, **options: Any) -> None:
    """States in and out, the membranes of every step, what is added to spikes and a gain for each step."""
    state, gain = torch.empty_like(x[0], dtype=torch.float32), torch.ones(x.shape[0])
    learnt = {
        name: value.requires_grad_() for name, value in dict(v_init=state, step_gain=gain).items()
    }
    learnt["spike_add"] = torch.empty_like(x, requires_grad=True)
    norm = [torch.ones(x.shape[2]) for _ in range(4)]
    wanted = dict(return_v=True, return_trace=True)
    spikes, v, trace = multistep_bn_lif(x, *norm, bn_scale=0.9, **learnt, **wanted, **options)
    upstream = [value.detach() for value in (spikes, v, trace)]
    torch.autograd.backward([spikes, v, trace], upstream)


def _measured(x: torch.Tensor, **options: Any) -> None:
    _with_current(
        x, probe=torch.zeros(x.shape[0], len(PROBE_FIELDS), requires_grad=True), **options
    )


def _plif_by_channel(x: torch.Tensor, **options: Any) -> None:
    _training(kernels.PLIF(per_channel=x.shape[2], **options), x)


def _learnt(x: torch.Tensor, **options: Any) -> None:
    """Everything that LIF may learn, by channel."""
    C, width = x.shape[2], torch.ones((), requires_grad=True)
    learnt = {
        name: torch.full((C,), 0.5, requires_grad=True) for name in ("decay", "threshold", "gain")
    }
    _lif(x, surrogate=Surrogate("atan", width=width), **learnt, **options)


def _adaptive_behind_a_norm(x: torch.Tensor) -> None:
    norm = [torch.ones(x.shape[2], requires_grad=True) for _ in "12"]
    spikes = Adaptive(x.shape[2]).fused_norm(x, Norm(*norm, None, None))
    spikes.backward(x.detach())


def _packed(x: torch.Tensor) -> None:
    unpack_spikes(pack_spikes(x), x.shape, x.stride(), x.dtype)


class Adaptive(kernels.SpikingNeuron):
    """A step of one's own, with two states and a constant of each channel that learns."""

    states = ("v", "a")

    def __init__(self, channels: int) -> None:
        super().__init__(surrogate=Surrogate("atan", height=1.0, width=0.3))
        self.beta = torch.nn.Parameter(torch.full((channels,), 0.2))

    def step(self, x: torch.Tensor, v: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = 0.5 * v + x
        s = self.fire(h - 1.0 - self.beta * a)
        return s, torch.where(s > 0, 0.0, h), 0.9 * a + 0.1 * s


class Quadratic(kernels.SpikingNeuron):
    """A step of one's own, of which two values are kept for the way back."""

    states = ("v",)

    def step(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = v + 0.25 * v * (v - 0.5) + x
        s = self.fire(h - 1.0)
        return s, torch.where(s > 0, 0.0, h)


def _adaptive(x: torch.Tensor) -> None:
    _training(Adaptive(x.shape[2]), x)


def _recurrent(
    neuron: Callable[[int], kernels.SpikingNeuron], x: torch.Tensor, **options: Any
) -> None:
    """Sequences [T, B, C], which have no pixels."""
    layer = kernels.Recurrent(neuron(x.shape[2]), x.shape[2])
    if "probe" in options:
        layer.neuron.probe = torch.zeros(len(x), len(PROBE_FIELDS), requires_grad=True)
    _training(layer, x[..., 0, 0].contiguous())


_STATES = {
    "lif": multistep_lif,
    "ilif": multistep_ilif,
    "clif": multistep_clif,
    "alif": multistep_alif,
    "cuba": multistep_cuba,
    "plif": lambda x, **options: kernels.PLIF(**options)(x),
}

_RETURNED: dict[str, Callable[[int], kernels.SpikingNeuron]] = {
    "": lambda _: kernels.LIF(),
    " plif": lambda _: kernels.PLIF(),
    " alif": lambda _: kernels.ALIF(),
    " cuba": lambda _: kernels.CuBaLIF(),
    " own step": Adaptive,
}

CASES: dict[str, tuple[Callable[..., None], int | str]] = {
    "lif inference": (_inference, 0),
    "lif backward, probe": (_probed, 1),
    "statistics": (_bn_lif, 0),
    "bn_lif forward": (_bn_lif, 1),
    "bn_lif backward, sums": (_bn_lif, 2),
    "bn_lif backward, dy": (_bn_lif, 3),
    "bn_lif+residual forward": (_with_residual, 1),
    "bn_lif+residual backward": (_with_residual, 2),
    "norm backward": (_with_residual, 3),
    "bn_lif+current forward": (_with_current, 1),
    "bn_lif+current backward": (_with_current, 2),
    "given statistics forward": (_given_statistics, 0),
    "given statistics backward": (_given_statistics, 1),
    "shared statistics backward, dx": (_shared_statistics, 2),
    "shared statistics backward, dy": (_shared_statistics, 3),
    "everything forward": (_everything, 1),
    "everything backward": (_everything, 2),
    "bn_lif+current backward, probe": (_measured, 2),
    "learnt by channel backward": (_learnt, 1),
    "plif by channel backward": (_plif_by_channel, 1),
    "join by rows": (_learnt, "join_kernel"),
    "own step behind a norm forward": (_adaptive_behind_a_norm, 1),
    "own step behind a norm backward": (_adaptive_behind_a_norm, 2),
    "pack": (_packed, 0),
    "unpack": (_packed, 1),
    "join statistics": (_bn_lif, "join_statistics_kernel"),
    "join sums": (_bn_lif, "join_kernel"),
    "join probe": (_probed, "join_groups_kernel"),
    **{
        f"recurrent{name} forward": (partial(_recurrent, one), 0) for name, one in _RETURNED.items()
    },
    **{
        f"recurrent{name} backward": (partial(_recurrent, one), 1)
        for name, one in _RETURNED.items()
    },
    "own step forward": (_adaptive, 0),
    "own step backward": (_adaptive, 1),
    "quadratic step backward": (lambda x: _training(Quadratic(), x), 1),
    **{f"{name} forward": (partial(_training, one), 0) for name, one in _STATES.items()},
    **{f"{name} backward": (partial(_training, one), 1) for name, one in _STATES.items()},
}
"""What is run, and which of its launches is meant: of those over the whole input, or the kernel's name."""


@dataclass(frozen=True)
class Launch:
    """A kernel launch that was noted: its arguments by name, and a function that compiles it."""

    kernel: Any
    arguments: dict[str, Any]
    compile: Callable[[], Any]

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments by name, with the fields of how a step is cut and of the window; neither: one step."""
        fields = {"steps": 1, "chunk": 1}
        for name in ("CUT", "WINDOW"):
            if name in self.arguments:
                fields |= self.arguments[name]._asdict()
        return fields | self.arguments

    @property
    def joins(self) -> bool:
        """Whether it sums what other launches left: a few kilobytes."""
        return self.kernel.__name__.startswith("join_")

    @property
    def packs(self) -> bool:
        """Whether it works on bytes of 8 spikes: such kernels have no rows and columns."""
        return self.kernel in (triton_packed.pack_kernel, triton_packed.unpack_kernel)

    @property
    def tile(self) -> int:
        """Elements of a program."""
        if self.packs:
            return 8 * self.arguments["BLOCK"]
        return self.sizes["block_r"] * self.sizes["block_l"] * self.tiles

    @property
    def tiles(self) -> int:
        """Of a program that takes several in each step."""
        return self.arguments["PRODUCT"].tiles if "PRODUCT" in self.arguments else 1

    @property
    def runs(self) -> tuple[int, ...]:
        """How often a block of code runs by the loops that it is in; where programs walk over rows, those of one."""
        chunks = -(-self.sizes["steps"] // self.sizes["chunk"])
        if "programs" in self.kernel.arg_names:
            return 0, 1, chunks
        return (1, chunks) if self.tiles == 1 else (1, self.tiles, chunks * self.tiles)

    @property
    def fill(self) -> float:
        """The share of the tiles' elements that there are."""
        if self.packs:
            return self.arguments["n"] / (-(-self.arguments["n"] // self.tile) * self.tile)
        names = ("R", "units", "align", "block_r", "block_l")
        R, units, align, block_r, block_l = (self.sizes[name] for name in names)
        rows, columns = -(-R // block_r) * block_r, -(-units * align // block_l) * block_l
        return R * units * align / (rows * columns)


def record(
    case: str, T: int, dtype: str, layout: str, size: Sequence[int], **options: Any
) -> Launch:
    """The launch that a case makes, from CPU tensors and not run; arguments as ``lower``."""
    function, which = CASES[case]
    x = torch.empty((T, *size), dtype=PRECISIONS[dtype])
    if layout == "channels_last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    launches: list[Launch] = []
    run = triton.JITFunction.run

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        compiles = partial(run, kernel, *args, grid=grid, warmup=True, **named)
        launches.append(
            Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | named, compiles)
        )

    with mock.patch.object(triton.JITFunction, "run", note):
        function(x.requires_grad_(), **options)
    if isinstance(which, str):
        return next(one for one in launches if one.kernel.__name__ == which)
    return [one for one in launches if not one.joins][which]


def compile_for(
    target: str, case: str, T: int, dtype: str, layout: str, size: Sequence[int], **options: Any
) -> tuple[Launch, Any]:
    """A case's launch and what Triton compiles of it; arguments, and what is raised, as ``lower``."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0")
    if interpreted not in ("0", ""):
        raise UserError(f"compiled: TRITON_INTERPRET is {interpreted!r}; accepted: unset, or 0")
    nvidia = target.startswith("sm_")
    with (
        without_gpu(Driver(TARGETS[target], device=target)),
        mock.patch.object(triton_neuron, "AMD", not nvidia),
        mock.patch.object(triton_norm, "AMD", not nvidia),
    ):
        launch = record(case, T, dtype, layout, size, **options)
        return launch, launch.compile()


def lower(
    case: str,
    target: str = "sm_90",
    T: int = 10,
    dtype: str = "bf16",
    layout: str = "channels_last",
    size: Sequence[int] = SIZE,
    **options: Any,
) -> dict[str, Any]:
    """Compiles one case for one GPU and reads the result. UserError under TRITON_INTERPRET.

    Args:
        case: a key of ``CASES``. target: of ``TARGETS``. dtype: "bf16", "fp16" or "fp32".
        T: time steps. layout: "channels_last" or "contiguous". size: [B, C, H, W].
        options: arguments of ``multistep_lif``: reset, detach_reset, surrogate, ...

    Returns registers and spills (in bytes) of a thread, shared (bytes of a program), warps, elements_per_thread,
    instructions (of a thread, per element and time step; where a program works on many tiles, those of its
    loop over them), atomics, vector_bytes (of the narrowest access to a tensor of T x N elements; AMD: of most
    accesses) and, None for AMD, whose addresses are not traced: loads and stores (passes over such tensors),
    bytes_per_element (and time step), checkpoint_bytes (of them, those of membranes that a long window keeps),
    bytes_per_request (a warp's access to such a tensor, on average: 512 are the most), accesses (dicts of tensor,
    kind, passes, vector_bytes, element_bytes, requests: a thread's), fused_across_lanes and sass (machine_code.py).
    Joins have no such tensors; for them all that counts elements is None.
    """
    nvidia = target.startswith("sm_")
    launch, compiled = compile_for(target, case, T, dtype, layout, size, **options)
    warps = compiled.metadata.num_warps
    text = compiled.asm["ptx" if nvidia else "amdgcn"]
    found = machine_code.of_nvidia(compiled.asm["cubin"]) if nvidia else machine_code.of_amd(text)
    looped, elements = found.pop("in_longest_loop", None), None
    if launch.joins:
        found["instructions"] = None
    else:
        elements = max(1, launch.tile // (warps * TARGETS[target].warp_size))
        if looped and "programs" in launch.arguments:  # each works on many tiles
            found["instructions"] = looped
        found["instructions"] /= elements * launch.sizes["chunk"]
        if nvidia:
            found |= _traffic(_accesses(compiled, launch, elements), launch.fill)
            found["fused_across_lanes"] = machine_code.fused_across_lanes(text)
    return {
        **dict.fromkeys(_traffic([], 1.0)),
        **found,
        "shared": compiled.metadata.shared,
        "warps": warps,
        "elements_per_thread": elements,
        "atomics": len(re.findall(r"\b(?:atom|red)\.\w|_atomic_", text)),
    }


def _kept(name: str) -> bool:
    """Whether it is the states between chunks."""
    return name.endswith("saved")


def _traffic(accesses: list[dict[str, Any]], fill: float) -> dict[str, Any]:
    whole = [a for a in accesses if not _kept(a["tensor"])]
    requests = sum(a["requests"] for a in whole)
    moved = sum(a["passes"] * a["element_bytes"] for a in whole)
    saved = sum(a["passes"] * a["element_bytes"] for a in accesses if _kept(a["tensor"]))
    return {
        "vector_bytes": min((a["vector_bytes"] for a in whole), default=0),
        "loads": sum(a["passes"] for a in whole if a["kind"] == "load"),
        "stores": sum(a["passes"] for a in whole if a["kind"] == "store"),
        "bytes_per_element": moved + saved,
        "checkpoint_bytes": saved,
        "bytes_per_request": 32 * fill * moved / requests if requests else 0.0,
        "accesses": accesses,
    }


def given(compiled: Any, launch: Launch) -> Iterator[tuple[str, Any]]:
    """Name and value of each parameter of the compiled code, in order: fields of tuples too, but no constants."""
    for name, kind in compiled.src.signature.items():
        value = launch.arguments[name]
        if isinstance(kind, tuple):
            names = getattr(value, "_fields", range(len(value)))
            fields = zip(names, value, kind, strict=True)
            yield from ((f"{name}.{field}", one) for field, one, k in fields if k != "constexpr")
        elif kind != "constexpr":
            yield name.removesuffix("_ptr"), value


def _accesses(compiled: Any, launch: Launch, elements: int) -> list[dict[str, Any]]:
    """Those to tensors of T x N elements, to their bits, and to ``saved``; by tensor and direction."""
    steps, chunk = launch.sizes["steps"], launch.sizes["chunk"]
    chunks = -(-steps // chunk)
    parameters = list(given(compiled, launch))
    tensors = {name: value for name, value in parameters if isinstance(value, torch.Tensor)}
    places = {i: name for i, (name, _) in enumerate(parameters) if name in tensors}
    found = machine_code.accesses(
        compiled.asm["ptx"],
        places,
        launch.runs,
        rare_jumps=launch.packs,  # for the last program alone
    )
    largest, moves = max(t.numel() for t in tensors.values()), elements * chunks * chunk
    result = []
    for (name, kind), one in sorted(found.items()):
        tensor = tensors[name]
        size = tensor.element_size()
        passes = one.bytes / size / moves
        if _kept(name):  # masked off in one of the chunks
            passes *= chunk * tensor.shape[0] / steps
        elif tensor.numel() != largest and tensor.dtype != torch.uint8:
            continue
        access = {"tensor": name, "kind": kind, "passes": passes, "element_bytes": size}
        result.append(access | {"vector_bytes": one.vector_bytes, "requests": one.requests / moves})
    return result
