"""What is read of machine code: by Triton's own cuobjdump of NVIDIA's, of the text of AMD's."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import triton


def of_nvidia(cubin: bytes) -> dict[str, Any]:
    """By triton's own cuobjdump."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = dict(capture_output=True, text=True, check=True)
        flags = ("-res-usage", "-sass")
        usage, sass = (subprocess.run([tool, flag, file.name], **run).stdout for flag in flags)
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass)
    spilled = [re.search(r"\.(64|128)", name) for name in code if name.split(".")[0] == "STL"]
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "spills": sum(int(width.group(1)) // 8 if width else 4 for width in spilled),
        "instructions": sum(name != "NOP" for name in code),
        "in_loops": _in_loops(sass),
        "bytes_in_flight": _in_flight(sass),
    }


_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")


def _in_loops(sass: str) -> int:
    """Instructions of the longest loop."""
    code = [(int(at, 16), name, rest) for at, _, name, rest in _SASS.findall(sass)]
    jumps = [
        (at, re.findall(r"0x[0-9a-f]+", rest)) for at, name, rest in code if name.startswith("BRA")
    ]
    loops = [(int(to[-1], 16), at) for at, to in jumps if to and int(to[-1], 16) < at]
    return max((sum(a <= at <= b for at, *_ in code) for a, b in loops), default=len(code))


def _in_flight(sass: str) -> float:
    """Bytes that a warp loads in the time of one round trip to memory, on average.

    A warp issues in order, and waits where an instruction names a register that a load has yet to
    fill (for ``LDGSTS``, where it waits for a group). Instructions count as if they took no time,
    round trips as if all were equally long. Loops run 8 times, other conditional jumps are not taken.
    """
    code = [(int(at, 16), bool(when), name, rest) for at, when, name, rest in _SASS.findall(sass)]
    index = {at: i for i, (at, *_) in enumerate(code)}
    pending: dict[int, float] = {}  # register -> when it is filled
    groups: list[float] = []
    taken: dict[int, int] = defaultdict(int)
    now, loaded, last, i = 0.0, 0, 0.0, 0
    while i < len(code):
        at, conditional, name, rest = code[i]
        i += 1
        kind, *options = name.split(".")
        now += 1e-9
        for register in map(int, re.findall(r"\bR(\d+)", rest)):
            now = max(now, pending.pop(register, 0.0))
        width = next((int(o) // 8 for o in options if o in ("64", "128", "256")), 4)
        if kind == "LDG":
            width = next(
                (int(o[1:]) // 8 for o in options if o in ("U8", "S8", "U16", "S16")), width
            )
            first = int(re.findall(r"\bR(\d+)", rest)[0])
            pending |= dict.fromkeys(range(first, first + max(1, width // 4)), now + 1)
        elif kind == "LDGSTS":
            last = now + 1
        elif kind == "LDGDEPBAR":
            groups.append(last)
        elif kind == "DEPBAR" and rest.startswith("SB0"):
            left = int(rest.split(",")[1].strip(), 16)
            now = max([now, *groups[: len(groups) - left]])
        elif kind == "EXIT" and not conditional:
            break
        elif kind == "BRA":
            target = int(re.findall(r"0x[0-9a-f]+", rest)[-1], 16)
            if target <= at and taken[at] < 7:
                taken[at] += 1
                i = index[target]
            elif target > at and not conditional:
                i = index[target]
        loaded += 32 * width if kind in ("LDG", "LDGSTS") else 0
    return loaded / max(1, math.floor(now))


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
