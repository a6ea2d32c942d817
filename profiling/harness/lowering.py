"""Lower the Triton kernels for a named GPU without one, and read what the compiler made of them.

    python profiling/lowering.py --target sm_90 --dtype bf16 --steps 10

A case calls the package's public function on CPU tensors with a recorder in place of the kernels,
so what is lowered here is what a GPU would be asked to run: the same tiles, options and
specialisations. Registers, spills and the instruction count come from the machine code; loads
and stores from the PTX, each traced back to the kernel argument that it touches, so that a kernel
which quietly reads a tensor twice shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spiketriton_kernels import (
    PROBE_FIELDS,
    SHAPES,
    Surrogate,
    multistep_bn_lif,
    multistep_lif,
    operators,
)
from spiketriton_kernels.backends import triton_neuron

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = ("channels_last", "contiguous")
SIZE = (4, 64, 16, 16)
"""[B, C, H, W] of the lowered launches. Sizes are runtime arguments: only divisibility matters."""

KERNELS = (
    "fire_kernel",
    "walk_kernel",
    "statistics_kernel",
    "join_statistics_kernel",
    "norm_backward_kernel",
)


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch: the arguments by name, and the compiler's options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    def constant(self, parameter: Any) -> bool:
        """Whether triton's launcher compiles this argument in: constexpr, None, or a size of 1."""
        value = self.arguments[parameter.name]
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        return parameter.is_constexpr or value is None or one


@dataclass(frozen=True)
class Access:
    """How a kernel touches a tensor of T x N elements; ``passes``: times each element is moved."""

    tensor: str
    kind: str  # "load" or "store"
    passes: float
    vector_bytes: int  # of the narrowest instruction
    element_bytes: int


@dataclass(frozen=True)
class Report:
    """What the compiler made of one kernel."""

    case: str
    kernel: str
    target: str
    T: int
    dtype: str
    layout: str
    registers: int  # of a thread
    spills: int  # bytes that a thread stores to local memory, as ptxas counts them
    shared: int  # bytes of a program
    warps: int
    elements_per_thread: int
    loads: float  # passes over tensors of T x N elements; NaN for AMD, where they are not traced
    stores: float
    vector_bytes: int  # of the narrowest access to those tensors (AMD: of most global accesses)
    bytes_per_element: float  # per element and time step, membrane checkpoints included
    instructions: float  # of a thread, per element and time step
    atomics: int
    accesses: tuple[Access, ...]
    ptx: str  # PTX, or AMD's assembly


class _Recorder:
    """Stands where a kernel stands and notes each launch."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            names = self.kernel.arg_names
            given = dict(zip(names, args, strict=False)) | kwargs
            options = {name: given.pop(name) for name in list(given) if name not in names}
            self.launches.append(Launch(self.kernel, given, options))

        return launch


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside the with-block CPU tensors take the Triton path; launches are noted, not run."""
    launches: list[Launch] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(operators, "backend_for", return_value="triton"))
        for name in KERNELS:
            recorder = _Recorder(getattr(triton_neuron, name), launches)
            stack.enter_context(mock.patch.object(triton_neuron, name, recorder))
        yield launches


def _lif(x: torch.Tensor, **options: Any) -> None:
    spikes = multistep_lif(x, **options)
    assert isinstance(spikes, torch.Tensor)
    spikes.backward(x.detach())


def _bn_lif(x: torch.Tensor, residual: bool = False, **options: Any) -> None:
    weight, bias, mean, var = (torch.ones(x.shape[2]) for _ in range(4))
    extra = torch.empty_like(x, requires_grad=True) if residual else None
    spikes = multistep_bn_lif(x, weight, bias, mean, var, residual=extra, **options)
    assert isinstance(spikes, torch.Tensor)
    spikes.backward(x.detach())


def _inference(x: torch.Tensor, **options: Any) -> None:
    with torch.no_grad():
        multistep_lif(x, **options)


def _probed(x: torch.Tensor, **options: Any) -> None:
    probe = torch.zeros(x.shape[0], len(PROBE_FIELDS), requires_grad=True)
    _lif(x, probe=probe, **options)


def _with_residual(x: torch.Tensor, **options: Any) -> None:
    _bn_lif(x, residual=True, **options)


CASES: dict[str, tuple[Callable[..., None], int]] = {
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
}
"""What is run, and which of its launches over the whole input is meant."""

STEPS: dict[str, tuple[str, ...]] = {
    "multistep_lif": ("lif forward", "lif backward"),
    "multistep_bn_lif": (
        "statistics",
        "bn_lif forward",
        "bn_lif backward, sums",
        "bn_lif backward, dy",
    ),
    "multistep_bn_lif, residual": (
        "statistics",
        "bn_lif+residual forward",
        "bn_lif+residual backward",
        "norm backward",
    ),
}
"""The launches of one training step of each function: their bytes add up to its traffic."""


def record(
    case: str,
    T: int,
    dtype: str,
    layout: str = "channels_last",
    size: Sequence[int] = SIZE,
    **options: Any,
) -> Launch:
    """The launch that a case makes; arguments as ``lower``."""
    function, index = CASES[case]
    x = torch.empty((T, *size), dtype=DTYPES[dtype])
    if layout == "channels_last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    with recorded() as launches:
        function(x.requires_grad_(), **options)
    return [one for one in launches if one.kernel is not triton_neuron.join_statistics_kernel][
        index
    ]


def _source(launch: Launch) -> ASTSource:
    """The launch as triton's launcher specialises it: pointers and sizes divisible by 16 say so."""
    pointers = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if launch.constant(parameter):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = pointers[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_for(launch: Launch, target: str) -> Any:
    """Triton's CompiledKernel of a launch for one of ``TARGETS``.

    Raises RuntimeError under TRITON_INTERPRET, which replaces the compiler.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("0", ""):
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted and cannot be lowered")
    return triton.compile(_source(launch), target=TARGETS[target], options=launch.options)


def lower(
    case: str,
    target: str = "sm_90",
    T: int = 10,
    dtype: str = "bf16",
    layout: str = "channels_last",
    size: Sequence[int] = SIZE,
    **options: Any,
) -> Report:
    """Compile one case for one GPU and read the result.

    Args:
        case: a key of ``CASES``. target: of ``TARGETS``. dtype: of ``DTYPES``. layout: ``LAYOUTS``.
        T: time steps. size: [B, C, H, W].
        options: arguments of ``multistep_lif``: reset, detach_reset, surrogate, ...
    """
    launch = record(case, T, dtype, layout, size, **options)
    compiled = compile_for(launch, target)
    warps = compiled.metadata.num_warps
    tile = launch.arguments["BLOCK_R"] * launch.arguments["BLOCK_L"]
    elements = max(1, tile // (warps * TARGETS[target].warp_size))
    chunk = launch.arguments.get("CHUNK", 1)
    if target.startswith("sm_"):
        text = compiled.asm["ptx"]
        registers, spills, instructions = _nvidia(compiled.asm["cubin"])
        accesses = _accesses(text, launch, elements)
        whole = [a for a in accesses if a.tensor != "saved"]
        loads = sum(a.passes for a in whole if a.kind == "load")
        stores = sum(a.passes for a in whole if a.kind == "store")
        vector_bytes = min(a.vector_bytes for a in whole)
        moved = sum(a.passes * a.element_bytes for a in accesses)
    else:
        text = compiled.asm["amdgcn"]
        registers, spills, instructions = _amd(text)
        accesses, loads, stores, moved = (), float("nan"), float("nan"), float("nan")
        vector_bytes = _amd_vector(text)
    return Report(
        case=case,
        kernel=launch.kernel.__name__,
        target=target,
        T=T,
        dtype=dtype,
        layout=layout,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        warps=warps,
        elements_per_thread=elements,
        loads=loads,
        stores=stores,
        vector_bytes=vector_bytes,
        bytes_per_element=moved,
        instructions=instructions / elements / chunk,
        atomics=len(re.findall(r"\b(?:atom|red)\.\w|_atomic_", text)),
        accesses=accesses,
        ptx=text,
    )


def _nvidia(cubin: bytes) -> tuple[int, int, int]:
    """Registers, spilled bytes and instructions, by triton's own cuobjdump."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (_output(tool, flag, file.name) for flag in ("-res-usage", "-sass"))
    registers = re.findall(r"REG:(\d+)", usage)[0]
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass)
    spilled = [re.search(r"\.(64|128)", name) for name in code if name.split(".")[0] == "STL"]
    spills = sum(int(width.group(1)) // 8 if width else 4 for width in spilled)
    return int(registers), spills, sum(name != "NOP" for name in code)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


_PTX_LINE = re.compile(r"^(?:(\$L__BB\w+):|\s*(@!?%\w+\s+)?([a-z][\w.:]*)\s*(.*?);)", re.MULTILINE)
_REGISTER = re.compile(r"%[a-z]+\d+")
_GLOBAL = re.compile(r"(ld|st)(?:\.[a-z]+)*?\.global\b.*?(?:\.v(\d+))?\.[bfsu](\d+)$")


@dataclass
class _Block:
    """A stretch of PTX without jumps: where it goes, and (bytes, load or store, address) it has."""

    targets: list[str]
    moves: list[tuple[int, str, str]]
    falls_through: bool = True


def _accesses(ptx: str, launch: Launch, elements: int) -> tuple[Access, ...]:
    """Every global access to a tensor of T x N elements (or to ``saved``), summed by tensor.

    An address is traced to the one pointer argument that it is computed from. The sum is that of
    the longest way through the code: of two versions of a loop only one runs. The body of the loop
    over chunks of the window runs once a chunk; kernels that walk rows have a loop around it.
    """
    steps, chunk = launch.arguments.get("T", 1), launch.arguments.get("CHUNK", 1)
    chunks = -(-steps // chunk)
    outer = 1 if "programs" in launch.kernel.arg_names else 0
    names = [p.name for p in launch.kernel.params if not launch.constant(p)]
    pointers: dict[str, str] = {}
    origins: dict[str, set[str]] = defaultdict(set)
    blocks, labels = [_Block([], [])], {}
    for label, predicate, opcode, operands in _PTX_LINE.findall(ptx):
        if label:
            labels[label] = len(blocks)
            blocks.append(_Block([], []))
            continue
        registers = _REGISTER.findall(operands)
        if opcode.split(".")[0] == "bra":
            blocks[-1].targets.append(operands.split()[-1])
            blocks[-1].falls_through = bool(predicate)
            blocks.append(_Block([], []))
        elif opcode == "ret":
            blocks[-1].falls_through = bool(predicate)
            blocks.append(_Block([], []))
        elif access := _GLOBAL.match(opcode):
            width = int(access.group(2) or 1) * int(access.group(3)) // 8
            address = _REGISTER.findall(operands[operands.index("[") :])[0]
            kind = "load" if access.group(1) == "ld" else "store"
            blocks[-1].moves.append((width, kind, address))
        elif opcode.startswith("ld.param"):
            index = int(operands[operands.index("_param_") :].removeprefix("_param_").split("]")[0])
            if index < len(names) and isinstance(launch.arguments[names[index]], torch.Tensor):
                pointers[registers[0]] = names[index]
        elif registers and not opcode.startswith(("ld.", "st.")):
            origins[registers[0]].update(registers[1:])

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
    before: dict[int, list[int]] = defaultdict(list)
    for i, block in enumerate(blocks):
        for j in [labels[target] for target in block.targets] + [i + 1] * block.falls_through:
            if j <= i:
                loops[j] = max(i, loops.get(j, 0))
            else:
                before[j].append(i)
    # bytes by tensor and direction up to the end of each block, on the longest way there
    moved: list[dict[tuple[str, str], int]] = []
    narrowest: dict[tuple[str, str], int] = {}
    for i, block in enumerate(blocks):
        total: dict[tuple[str, str], int] = defaultdict(int)
        for way in before[i]:
            for key, bytes_ in moved[way].items():
                total[key] = max(total[key], bytes_)
        depth = sum(first <= i <= last for first, last in loops.items())
        for width, kind, address in block.moves if depth >= outer else ():
            key = (pointer(address), kind)
            total[key] += width * (chunks if depth > outer else 1)
            narrowest[key] = min(width, narrowest.get(key, width))
        moved.append(total)
    largest = max(t.numel() for t in launch.arguments.values() if isinstance(t, torch.Tensor))
    result = []
    for name, kind in sorted(narrowest):
        tensor = launch.arguments[name]
        size, total_bytes = tensor.element_size(), max(way[name, kind] for way in moved)
        each = total_bytes / size / elements / chunks
        if name == "saved_ptr":  # masked off in one of the chunks
            passes = each * tensor.shape[0] / steps
        elif tensor.numel() == largest:
            passes = each / chunk
        else:
            continue
        result.append(Access(name.removesuffix("_ptr"), kind, passes, narrowest[name, kind], size))
    return tuple(result)


def _amd(assembly: str) -> tuple[int, int, int]:
    """Vector registers, spilled bytes and instructions."""
    number = lambda name: int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[0])  # noqa: E731
    code = re.findall(r"^\s+(?:v|s|global|buffer|ds|flat)_\w+", assembly, re.MULTILINE)
    spills = max(4 * number("vgpr_spill_count"), number("private_segment_fixed_size"))
    return number("vgpr_count"), spills, len(code)


def _amd_vector(assembly: str) -> int:
    """Bytes of the width at which most global bytes move: in the loops, where there are any."""
    labels = {m[1]: m.start() for m in re.finditer(r"^(\.L\w+):", assembly, re.MULTILINE)}
    jumps = [(labels[m[1]], m.start()) for m in re.finditer(r"s_c?branch\w*\s+(\.L\w+)", assembly)]
    loops = "".join(assembly[label:jump] for label, jump in jumps if label < jump)
    bytes_ = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
    moved: dict[int, int] = defaultdict(int)
    pattern = r"\b(?:global|buffer)_(?:load|store)_[us]?(byte|short|dword(?:x[234])?)"
    for word in re.findall(pattern, loops) or re.findall(pattern, assembly):
        moved[bytes_[word]] += bytes_[word]
    return max(moved, key=lambda width: moved[width])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Lower the kernels for GPUs that are not here.")
    several: dict[str, Any] = dict(nargs="+")
    parser.add_argument("--target", choices=TARGETS, default=["sm_90"], **several)
    parser.add_argument("--dtype", choices=DTYPES, default=["bf16"], **several)
    parser.add_argument("--steps", type=int, default=[10], **several)
    parser.add_argument("--layout", choices=LAYOUTS, default=["channels_last"], **several)
    parser.add_argument("--case", choices=CASES, default=list(CASES), **several)
    parser.add_argument("--reset", choices=("soft", "hard", "none"), default="hard")
    parser.add_argument("--through-reset", action="store_true", help="detach_reset = False")
    parser.add_argument("--surrogate", choices=SHAPES, default="atan")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, no PTX")
    given = parser.parse_args(arguments)
    options = dict(
        reset=given.reset,
        detach_reset=not given.through_reset,
        surrogate=Surrogate(given.surrogate),
    )
    numbers = ("registers", "spills", "vector_bytes", "loads", "stores", "bytes_per_element")
    if not given.json:
        print(f"{'case':28}{'target':8}{'dtype':>6}{'T':>4} {'layout':14}", end="")
        print("regs spill vector loads stores bytes instr (per element and step)")
    for target in given.target:
        for dtype in given.dtype:
            for T in given.steps:
                for layout in given.layout:
                    for case in given.case:
                        report = lower(case, target, T, dtype, layout, **options)
                        if given.json:
                            print(json.dumps(asdict(report) | {"ptx": ""}), flush=True)
                            continue
                        values = [getattr(report, name) for name in (*numbers, "instructions")]
                        print(f"{case:28}{target:8}{dtype:>6}{T:>4} {layout:14}", end="")
                        print(
                            "{:4}{:6}{:7}{:6.2f}{:7.2f}{:6.2f}{:6.1f}".format(*values), flush=True
                        )


if __name__ == "__main__":
    main()
