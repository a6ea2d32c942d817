"""Bytes that a warp of a compiled kernel has under way."""

import math
import re
from collections import defaultdict

from profiling.harness.machine_code import SASS


def bytes_in_flight(sass: str) -> float:
    """Bytes that a warp loads in the time of one round trip to memory, on average.

    A warp issues in order, and waits where an instruction names a register that a load has yet to
    fill (for ``LDGSTS``, where it waits for a group). Instructions count as if they took no time,
    round trips as if all were equally long. Loops run 8 times, other conditional jumps are not taken.
    """
    code = [(int(at, 16), bool(when), name, rest) for at, when, name, rest in SASS.findall(sass)]
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
            narrow = (int(o[1:]) // 8 for o in options if o in ("U8", "S8", "U16", "S16"))
            width = next(narrow, width)
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
