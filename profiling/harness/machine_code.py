"""What is read of compiled kernels: NVIDIA's machine code by Triton's own cuobjdump, PTX, and AMD's assembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton


def of_nvidia(cubin: bytes) -> dict[str, Any]:
    """By triton's own cuobjdump; `sass` is the code itself."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = dict(capture_output=True, text=True, check=True)
        flags = ("-res-usage", "-sass")
        usage, sass = (subprocess.run([tool, flag, file.name], **run).stdout for flag in flags)
    names = [name for _, _, name, _ in SASS.findall(sass)]
    spilled = [re.search(r"\.(64|128)", name) for name in names if name.startswith("STL")]
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "spills": sum(int(width[1]) // 8 if width else 4 for width in spilled),
        "instructions": sum(name != "NOP" for name in names),
        "in_longest_loop": in_longest_loop(sass),
        "sass": sass,
    }


def in_longest_loop(sass: str) -> int:
    """Its instructions; without a loop all."""
    code = [(int(at, 16), name, rest) for at, _, name, rest in SASS.findall(sass)]
    jumps = [(at, re.findall("0x[0-9a-f]+", to)) for at, name, to in code if name.startswith("BRA")]
    loops = [(int(to[-1], 16), at) for at, to in jumps if to and int(to[-1], 16) < at]
    return max((sum(a <= at <= b for at, *_ in code) for a, b in loops), default=len(code))


SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
"""Address, predicate, instruction and operands."""


def fused_across_lanes(ptx: str) -> int:
    """Multiply-adds of a lane's own product and another lane's sum: the lanes' last bits then differ."""
    others = set(re.findall(r"shfl\.sync\.bfly\.b32\s+(%r\d+)", ptx))
    addends = re.findall(r"fma\.rn\.f32\s+%\w+, %\w+, %\w+, (%\w+)", ptx)
    return sum(register in others for register in addends)


def of_amd(assembly: str) -> dict[str, Any]:
    """`vector_bytes`: at which most global bytes move: in the loops, where there are any."""
    labels = {m[1]: m.start() for m in re.finditer(r"(?m)^(\.L\w+):", assembly)}
    jumps = [(labels[m[1]], m.start()) for m in re.finditer(r"s_c?branch\w*\s+(\.L\w+)", assembly)]
    loops = "".join(assembly[label:jump] for label, jump in jumps if label < jump)
    number = lambda name: int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[0])  # noqa: E731
    widths = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
    pattern = r"\b(?:global|buffer)_(?:load|store)_[us]?(byte|short|dword(?:x[234])?)"
    moved = [widths[word] for word in re.findall(pattern, loops) or re.findall(pattern, assembly)]
    return {
        "registers": number("vgpr_count"),
        "spills": max(4 * number("vgpr_spill_count"), number("private_segment_fixed_size")),
        "instructions": len(re.findall(r"(?m)^\s+(?:v|s|global|buffer|ds|flat)_\w+", assembly)),
        "vector_bytes": max(moved, key=lambda width: width * moved.count(width)),
    }


_PTX_LINE = re.compile(r"^(?:(\$L__BB\w+):|\s*(@!?%\w+\s+)?([a-z][\w.:]*)\s*(.*?);)", re.MULTILINE)
_REGISTER = re.compile(r"%[a-z]+\d+")
_GLOBAL = re.compile(r"(ld|st)(?:\.[a-z]+)*?\.global\b.*?(?:\.v(\d+))?\.[bfsu](\d+)$")


class _Move(NamedTuple):
    width: int
    kind: str  # load or store
    address: str  # a register


class _Block:
    """A stretch of PTX without jumps: where it goes, and its accesses to global memory."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.moves: list[_Move] = []
        self.falls_through = True


def _read(ptx: str) -> tuple[list[_Block], dict[str, int], dict[str, set[str]]]:
    """The blocks of the code, each label's, and the registers and parameters that a register is computed from."""
    blocks, labels, origins = [_Block()], {}, defaultdict(set)
    for label, predicate, opcode, operands in _PTX_LINE.findall(ptx):
        if label:
            labels[label] = len(blocks)
            blocks.append(_Block())
            continue
        registers = _REGISTER.findall(operands)
        if opcode.split(".")[0] in ("bra", "ret"):
            blocks[-1].targets += operands.split()[-1:]
            blocks[-1].falls_through = bool(predicate)
            blocks.append(_Block())
        elif opcode.startswith("cp.async.c") and ".global" in opcode:
            source, width = operands.split("[")[2], operands.split(",")[2]
            blocks[-1].moves.append(_Move(int(width, 0), "load", _REGISTER.findall(source)[0]))
        elif access := _GLOBAL.match(opcode):
            width = int(access[2] or 1) * int(access[3]) // 8
            address = _REGISTER.findall(operands[operands.index("[") :])[0]
            kind = "load" if access[1] == "ld" else "store"
            blocks[-1].moves.append(_Move(width, kind, address))
        elif opcode.startswith("ld.param"):
            origins[registers[0]].update(re.findall(r"_param_(\d+)", operands))
        elif registers and not opcode.startswith(("ld.", "st.")):
            origins[registers[0]].update(registers[1:])
    return blocks, labels, origins


@dataclass
class Accesses:
    """A thread's, to one tensor in one direction."""

    bytes: int = 0
    requests: int = 0
    vector_bytes: int = 0  # of the narrowest


def accesses(
    ptx: str, tensors: Mapping[int, str], runs: Sequence[int], *, rare_jumps: bool
) -> dict[tuple[str, str], Accesses]:
    """By tensor and "load" or "store", on the longest way through the code: of two versions of a loop only one runs.

    Args:
        tensors: the names of the parameters that are pointers. An address is traced to the one that it comes from.
        runs: how often a block runs that is in no loop, in one, in one of that, ... and in any further ones.
        rare_jumps: whether what is jumped over is left out.
    """
    blocks, labels, origins = _read(ptx)

    def tensor(register: str) -> str:
        seen, todo = {register}, [register]
        while todo:
            new = origins[todo.pop()] - seen
            seen |= new
            todo += new
        (touched,) = {tensors[int(s)] for s in seen if s.isdigit() and int(s) in tensors}
        return touched

    after = [
        [labels[target] for target in block.targets] + [i + 1] * block.falls_through
        for i, block in enumerate(blocks)
    ]
    order, depths, before = _walk(after)
    passed_over: set[int] = set()
    for i, others in enumerate(after):
        for j in others:
            passed_over.update(range(i + 1, j))
    # bytes and accesses up to the end of each block, on the longest way there
    moved: dict[int, dict[tuple[str, str], tuple[int, int]]] = {}
    found: dict[tuple[str, str], Accesses] = {}
    for i in order:
        block = blocks[i]
        total: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for way in before[i]:
            for key, most in moved[way].items():
                total[key] = max(total[key], most)
        times = runs[min(depths[i], len(runs) - 1)]
        counts = times and not (rare_jumps and i in passed_over)
        for move in block.moves if counts else ():
            key = (tensor(move.address), move.kind)
            total[key] = (total[key][0] + move.width * times, total[key][1] + times)
            narrowest = found.setdefault(key, Accesses(vector_bytes=move.width)).vector_bytes
            found[key].vector_bytes = min(move.width, narrowest)
        moved[i] = total
    for key, one in found.items():
        one.bytes, one.requests = max(way[key] for way in moved.values())
    return found


def _walk(after: Sequence[Sequence[int]]) -> tuple[list[int], dict[int, int], dict[int, list[int]]]:
    """Blocks that are reached from the first one, each behind all that lead to it but for the ends of loops; in how
    many loops each is; and those that lead to it. A loop's end leads to a block that every way to it goes through."""
    order: list[int] = []
    state = {0: iter(after[0])}
    path = [0]
    while path:
        new = next((j for j in state[path[-1]] if j not in state), None)
        if new is None:
            order.append(path.pop())
        else:
            state[new] = iter(after[new])
            path.append(new)
    order.reverse()
    leading: dict[int, list[int]] = {i: [] for i in order}
    for i in order:
        for j in after[i]:
            leading[j].append(i)
    through = {i: set(order) for i in order} | {
        0: {0}
    }  # the blocks that every way to one goes through
    changed = True
    while changed:
        changed = False
        for i in order[1:]:
            new_set = set.intersection(*(through[j] for j in leading[i])) | {i}
            changed = changed or new_set != through[i]
            through[i] = new_set
    loops: dict[int, set[int]] = {}
    for i in order:
        for j in after[i]:
            if j in through[i]:
                body, todo = loops.setdefault(j, {j}), [i]
                while todo:
                    if (one := todo.pop()) not in body:
                        body.add(one)
                        todo += leading[one]
    depths = {i: sum(i in body for body in loops.values()) for i in order}
    before = {i: [j for j in leading[i] if i not in through[j]] for i in order}
    return order, depths, before
