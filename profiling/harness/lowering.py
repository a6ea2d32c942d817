"""Lowers the Triton kernels for a named GPU without one, and reads what the compiler made of them.

A case calls the package's public function on CPU tensors while launches are noted instead of run,
so what is lowered here is what a GPU would be asked to run: the same tiles, options and
specialisations. Registers, spills and the instruction count come from the machine code; loads
and stores from the PTX, each traced back to the kernel argument that it touches, so that a kernel
which quietly reads a tensor twice shows.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from profiling.harness.machine_code import fused_across_lanes, of_amd, of_nvidia
from spiketriton.training.environment import PRECISIONS
from spiketriton_kernels import (
    PROBE_FIELDS,
    multistep_alif,
    multistep_bn_lif,
    multistep_clif,
    multistep_cuba,
    multistep_ilif,
    multistep_lif,
    pack_spikes,
    packed,
    passes,
    unpack_spikes,
)
from spiketriton_kernels.backends import triton_neuron

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

SHAPES = ((32, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7), (32, 24, 56, 56))
"""A ResNet's stages, two of which have images that 16 does not divide, and few channels that 16 does not divide."""

BY_SHAPE = (
    "statistics", "bn_lif forward", "bn_lif backward, sums", "bn_lif backward, dy", "norm backward"
)  # fmt: skip
"""The cases whose accesses depend on the shape."""


def _lif(x: torch.Tensor, **options: Any) -> None:
    multistep_lif(x, **options).backward(x.detach())


def _inference(x: torch.Tensor, **options: Any) -> None:
    multistep_lif(x.detach(), **options)


def _probed(x: torch.Tensor, **options: Any) -> None:
    _lif(x, probe=torch.zeros(x.shape[0], len(PROBE_FIELDS), requires_grad=True), **options)


def _bn_lif(x: torch.Tensor, **options: Any) -> None:
    statistics = (torch.ones(x.shape[2]) for _ in range(4))
    multistep_bn_lif(x, *statistics, **options).backward(x.detach())


def _with_residual(x: torch.Tensor, **options: Any) -> None:
    _bn_lif(x, residual=torch.empty_like(x, requires_grad=True), **options)


def _with_current(x: torch.Tensor, **options: Any) -> None:
    statistics = (torch.ones(x.shape[2]) for _ in range(4))
    residual = torch.empty_like(x, requires_grad=True)
    outs = multistep_bn_lif(x, *statistics, residual=residual, return_current=True, **options)
    torch.autograd.backward(outs, (x.detach(), x.detach()))


def _packed(x: torch.Tensor) -> None:
    unpack_spikes(pack_spikes(x), x.shape, x.stride(), x.dtype)


def _training(function: Callable[..., Any]) -> Callable[..., None]:
    return lambda x, **options: function(x, **options).backward(x.detach())


_STATES = {
    "ilif": multistep_ilif,
    "clif": multistep_clif,
    "alif": multistep_alif,
    "cuba": multistep_cuba,
}

CASES: dict[str, tuple[Callable[..., None], int | str]] = {
    "lif inference": (_inference, 0),
    "lif forward": (_lif, 0),
    "lif backward": (_lif, 1),
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
    "pack": (_packed, 0),
    "unpack": (_packed, 1),
    "join statistics": (_bn_lif, "join_statistics_kernel"),
    "join sums": (_bn_lif, "join_kernel"),
    "join probe": (_probed, "join_groups_kernel"),
    **{f"{name} forward": (_training(function), 0) for name, function in _STATES.items()},
    **{f"{name} backward": (_training(function), 1) for name, function in _STATES.items()},
}
"""What is run, and which of its launches is meant: of those over the whole input, or the kernel's name."""

_PLAIN = ("bn_lif forward", "bn_lif backward, sums", "bn_lif backward, dy")
_RESIDUAL = ("bn_lif+residual forward", "bn_lif+residual backward", "norm backward")
_CURRENT = ("bn_lif+current forward", "bn_lif+current backward", "norm backward")
STEPS = {
    "multistep_lif": ("lif forward", "lif backward"),
    "multistep_bn_lif": ("statistics", *_PLAIN),
    "multistep_bn_lif, residual": ("statistics", *_RESIDUAL),
    "multistep_bn_lif, residual and current": ("statistics", *_CURRENT),
}
"""The launches of one training step of each function: their bytes add up to its traffic."""


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch: the arguments by name, and the compiler's options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments by name, with the fields of how a step is cut and of the window; neither: one step."""
        fields = {"steps": 1, "chunk": 1}
        for name in ("CUT", "WINDOW"):
            if name in self.arguments:
                fields |= self.arguments[name]._asdict()
        return fields | self.arguments

    def leaves(self) -> Iterator[tuple[tuple[int, ...], str, Any, bool]]:
        """Path, name and value of each argument and of each field of one, and whether it is compiled in."""
        for i, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if isinstance(value, tuple) and not parameter.is_constexpr:
                named = zip(value._fields, value, strict=True)  # type: ignore[attr-defined]
                leaves = [((i, j), f"{parameter.name}.{n}", v) for j, (n, v) in enumerate(named)]
            else:
                leaves = [((i,), parameter.name.removesuffix("_ptr"), value)]
            for path, name, leaf in leaves:
                one = isinstance(leaf, int) and leaf == 1 and not parameter.do_not_specialize
                yield path, name, leaf, parameter.is_constexpr or leaf is None or one


def record(
    case: str, T: int, dtype: str, layout: str, size: Sequence[int] = SIZE, **options: Any
) -> Launch:
    """The launch that a case makes, from CPU tensors and not run; arguments as ``lower``."""
    function, which = CASES[case]
    x = torch.empty((T, *size), dtype=PRECISIONS[dtype])
    if layout == "channels_last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    launches: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        options = {name: given.pop(name) for name in list(given) if name not in kernel.arg_names}
        launches.append(Launch(kernel, given, options))

    with (
        mock.patch.object(passes, "backend_for", return_value="triton"),
        mock.patch.object(packed, "backend_for", return_value="triton"),
        mock.patch.object(triton.JITFunction, "run", note),
    ):
        function(x.requires_grad_(), **options)
    if isinstance(which, str):
        return next(one for one in launches if one.kernel.__name__ == which)
    return [one for one in launches if not _joins(one)][which]


def _joins(launch: Launch) -> bool:
    """Whether it sums what other launches left: a few kilobytes."""
    return launch.kernel.__name__.startswith("join_")


def compile_for(launch: Launch, target: str) -> Any:
    """Triton's CompiledKernel of a launch for one of ``TARGETS``, as its launcher specialises it."""
    pointers = {
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.float32: "*fp32",
        torch.uint8: "*u8",
    }
    kinds: dict[int, list[str]] = defaultdict(list)
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list] = {}  # pointers and sizes divisible by 16 say so
    for path, _, value, constant in launch.leaves():
        tensor, whole = isinstance(value, torch.Tensor), isinstance(value, int)
        if constant:
            kinds[path[0]].append("constexpr")
            constants[path] = value
            continue
        kinds[path[0]].append(pointers[value.dtype] if tensor else "i32" if whole else "fp32")
        parameter = launch.kernel.params[path[0]]
        asked = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if tensor or (whole and asked and value % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
    signature = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        group = isinstance(value, tuple) and not parameter.is_constexpr
        signature[parameter.name] = type(value)(*kinds[i]) if group else kinds[i][0]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target], options=launch.options)


def lower(
    case: str,
    target: str = "sm_90",
    T: int = 10,
    dtype: str = "bf16",
    layout: str = "channels_last",
    size: Sequence[int] = SIZE,
    **options: Any,
) -> dict[str, Any]:
    """Compiles one case for one GPU and reads the result.

    Args:
        case: a key of ``CASES``. target: of ``TARGETS``. dtype: "bf16", "fp16" or "fp32".
        T: time steps. layout: "channels_last" or "contiguous". size: [B, C, H, W].
        options: arguments of ``multistep_lif``: reset, detach_reset, surrogate, ...

    RuntimeError under TRITON_INTERPRET, which replaces the compiler.

    Returns registers (of a thread), spills (bytes of a thread), shared (bytes of a program), warps,
    elements_per_thread, instructions (of a thread, per element and time step; where a program works on
    many tiles, those of its loop over them), atomics,
    vector_bytes (of the narrowest access to a tensor of T x N elements; AMD: of most accesses) and,
    None for AMD, whose addresses are not traced: loads, stores (passes over such tensors),
    bytes_per_element (and time step), checkpoint_bytes (of them, those of membranes that a long
    window keeps), bytes_per_request (a warp's access to such a tensor, on average: 512 are the
    most), accesses (dicts of tensor, kind, passes, vector_bytes, element_bytes, requests: a
    thread's), fused_across_lanes and bytes_in_flight (of a warp; see the functions of these names).
    Joins have no such tensors; for
    them all that counts elements is None.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("0", ""):
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted and cannot be lowered")
    nvidia = target.startswith("sm_")
    with mock.patch.object(triton_neuron, "AMD", not nvidia):
        launch = record(case, T, dtype, layout, size, **options)
    compiled = compile_for(launch, target)
    warps = compiled.metadata.num_warps
    untraced = dict.fromkeys(_traffic([], 1.0), None)
    text = compiled.asm["ptx" if nvidia else "amdgcn"]
    found = of_nvidia(compiled.asm["cubin"]) if nvidia else {"bytes_in_flight": None} | of_amd(text)
    in_loops, elements = found.pop("in_loops", None), None
    if _joins(launch):
        found["instructions"] = None
    else:
        elements = max(1, _tile(launch) // (warps * TARGETS[target].warp_size))
        if in_loops and "programs" in launch.arguments:  # each works on many tiles
            found["instructions"] = in_loops
        found["instructions"] /= elements * launch.sizes["chunk"]
        if nvidia:
            found |= _traffic(_accesses(text, launch, elements), _fill(launch))
            found["fused_across_lanes"] = fused_across_lanes(text)
    return (
        untraced
        | found
        | {
            "shared": compiled.metadata.shared,
            "warps": warps,
            "elements_per_thread": elements,
            "atomics": len(re.findall(r"\b(?:atom|red)\.\w|_atomic_", text)),
        }
    )


def _packs(launch: Launch) -> bool:
    """Whether it works on bytes of 8 spikes: such kernels have no rows and columns."""
    return launch.kernel in (packed.pack_kernel, packed.unpack_kernel)


def _tile(launch: Launch) -> int:
    """Elements of a program."""
    if _packs(launch):
        return 8 * launch.arguments["BLOCK"]
    return launch.sizes["block_r"] * launch.sizes["block_l"]


def _fill(launch: Launch) -> float:
    """The share of the tiles' elements that there are."""
    if _packs(launch):
        return launch.arguments["n"] / (-(-launch.arguments["n"] // _tile(launch)) * _tile(launch))
    names = ("R", "units", "align", "block_r", "block_l")
    R, units, align, block_r, block_l = (launch.sizes[name] for name in names)
    rows, columns = -(-R // block_r) * block_r, -(-units * align // block_l) * block_l
    return R * units * align / (rows * columns)


def _kept(name: str) -> bool:
    """Whether it is the states between chunks."""
    return name.endswith("saved")


def _traffic(accesses: list[dict[str, Any]], fill: float) -> dict[str, Any]:
    whole = [a for a in accesses if not _kept(a["tensor"])]
    requests = sum(a["requests"] for a in whole)
    moved = sum(a["passes"] * a["element_bytes"] for a in whole)
    bytes_ = [(a["passes"] * a["element_bytes"], _kept(a["tensor"])) for a in accesses]
    return {
        "vector_bytes": min((a["vector_bytes"] for a in whole), default=0),
        "loads": sum(a["passes"] for a in whole if a["kind"] == "load"),
        "stores": sum(a["passes"] for a in whole if a["kind"] == "store"),
        "bytes_per_element": sum(each for each, _ in bytes_),
        "checkpoint_bytes": sum(each for each, saved in bytes_ if saved),
        "bytes_per_request": 32 * fill * moved / requests if requests else 0.0,
        "accesses": accesses,
    }


_PTX_LINE = re.compile(r"^(?:(\$L__BB\w+):|\s*(@!?%\w+\s+)?([a-z][\w.:]*)\s*(.*?);)", re.MULTILINE)
_REGISTER = re.compile(r"%[a-z]+\d+")
_GLOBAL = re.compile(r"(ld|st)(?:\.[a-z]+)*?\.global\b.*?(?:\.v(\d+))?\.[bfsu](\d+)$")


@dataclass
class _Block:
    """A stretch of PTX without jumps: where it goes, and (bytes, load or store, address) it has."""

    targets: list[str]
    moves: list[tuple[int, str, str]]
    falls_through: bool = True


def _read(ptx: str, given: dict[str, Any]) -> tuple[list[_Block], dict, dict, dict]:
    """The blocks of the code, each label's, the arguments that registers point to, what registers come from."""
    names, pointers, origins = list(given), {}, defaultdict(set)
    blocks, labels = [_Block([], [])], {}
    for label, predicate, opcode, operands in _PTX_LINE.findall(ptx):
        if label:
            labels[label] = len(blocks)
            blocks.append(_Block([], []))
            continue
        registers = _REGISTER.findall(operands)
        if opcode.split(".")[0] in ("bra", "ret"):
            blocks[-1].targets += operands.split()[-1:]
            blocks[-1].falls_through = bool(predicate)
            blocks.append(_Block([], []))
        elif opcode.startswith("cp.async.c") and ".global" in opcode:
            source, width = operands.split("[")[2], operands.split(",")[2]
            blocks[-1].moves.append((int(width, 0), "load", _REGISTER.findall(source)[0]))
        elif access := _GLOBAL.match(opcode):
            width = int(access.group(2) or 1) * int(access.group(3)) // 8
            address = _REGISTER.findall(operands[operands.index("[") :])[0]
            kind = "load" if access.group(1) == "ld" else "store"
            blocks[-1].moves.append((width, kind, address))
        elif opcode.startswith("ld.param"):
            index = int(operands[operands.index("_param_") :].removeprefix("_param_").split("]")[0])
            if index < len(names) and isinstance(given[names[index]], torch.Tensor):
                pointers[registers[0]] = names[index]
        elif registers and not opcode.startswith(("ld.", "st.")):
            origins[registers[0]].update(registers[1:])
    return blocks, labels, pointers, origins


def _accesses(ptx: str, launch: Launch, elements: int) -> list[dict[str, Any]]:
    """Every global access to a tensor of T x N elements (to their bits, to ``saved``), summed by tensor.

    An address is traced to the one pointer argument that it is computed from. The sum is that of
    the longest way through the code: of two versions of a loop only one runs. The body of the loop
    over chunks of the window runs once a chunk; kernels that walk rows have a loop around it. What the
    packing kernels jump over is for the last program alone, and left out.
    """
    steps, chunk = launch.sizes["steps"], launch.sizes["chunk"]
    chunks = -(-steps // chunk)
    outer = 1 if "programs" in launch.kernel.arg_names else 0
    given = {name: value for _, name, value, constant in launch.leaves() if not constant}
    blocks, labels, pointers, origins = _read(ptx, given)

    def pointer(register: str) -> str:
        seen, todo = {register}, [register]
        while todo:
            new = origins[todo.pop()] - seen
            seen |= new
            todo += new
        touched = {pointers[r] for r in seen if r in pointers}
        assert len(touched) == 1, f"{launch.kernel.__name__}: {register} points to {touched}"
        return touched.pop()

    loops: dict[int, int] = {}  # first block -> last
    passed_over: set[int] = set()
    before: dict[int, list[int]] = defaultdict(list)
    for i, block in enumerate(blocks):
        for j in [labels[target] for target in block.targets] + [i + 1] * block.falls_through:
            if j <= i:
                loops[j] = max(i, loops.get(j, 0))
            else:
                before[j].append(i)
                passed_over.update(range(i + 1, j))
    rare = passed_over if _packs(launch) else set()
    # bytes and accesses by tensor and direction up to the end of each block, on the longest way there
    moved: list[dict[tuple[str, str], tuple[int, int]]] = []
    narrowest: dict[tuple[str, str], int] = {}
    for i, block in enumerate(blocks):
        total: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for way in before[i]:
            for key, most in moved[way].items():
                total[key] = max(total[key], most)
        depth = sum(first <= i <= last for first, last in loops.items())
        for width, kind, address in block.moves if depth >= outer and i not in rare else ():
            key = (pointer(address), kind)
            times = chunks if depth > outer else 1
            total[key] = (total[key][0] + width * times, total[key][1] + times)
            narrowest[key] = min(width, narrowest.get(key, width))
        moved.append(total)
    largest = max(t.numel() for t in given.values() if isinstance(t, torch.Tensor))
    result = []
    for name, kind in sorted(narrowest):
        tensor = given[name]
        size = tensor.element_size()
        total_bytes, total_accesses = max(way[name, kind] for way in moved)
        moves = elements * chunks * chunk
        passes, requests = total_bytes / size / moves, total_accesses / moves
        if _kept(name):  # masked off in one of the chunks
            passes *= chunk * tensor.shape[0] / steps
        elif tensor.numel() != largest and tensor.dtype != torch.uint8:
            continue
        access = {"tensor": name, "kind": kind, "passes": passes}
        access |= {"vector_bytes": narrowest[name, kind], "element_bytes": size}
        result.append(access | {"requests": requests})
    return result
