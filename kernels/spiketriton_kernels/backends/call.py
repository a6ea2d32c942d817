"""A call of the compiled C++ pass, field by field: from these lists the struct is printed, and a call is packed.

A library tells the digest of the lists that it was compiled with, names and types, and is refused where it is another.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from ..neuron import GIVEN, NORM, PARAMETERS, Gradients, Inputs, Outputs, Upstream

_CODES = {"int32_t": "i", "int64_t": "q", "double": "d", "void *": "P", "float *": "P"}


class Part(struct.Struct):
    """Fields that are packed together: (type in C++, name), in order; an array is NAME[COUNT]."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self.fields = fields
        super().__init__("@" + "".join(f"{_count(name)}{_CODES[kind]}" for kind, name in fields))

    def of(self, **given: float) -> bytes:
        """What is named; 0 for all else. For calls whose own cost does not matter."""
        names = [name for _, name in self.fields]
        if unknown := sorted({*given} - {*names}):
            raise TypeError(f"{', '.join(unknown)}: accepted: {', '.join(names)}")
        return self.pack(*[given.get(name, 0) for name in names])


def _count(name: str) -> int:
    return int(name.partition("[")[2].rstrip("]") or 1)


def _all(kind: str, names: Iterable[str], before: str = "") -> list[tuple[str, str]]:
    return [(kind, before + name) for name in names]


INPUT = Part(
    *_all("int64_t", ("steps", "neurons", "channels", "inner")),
    *_all("int32_t", ("threads", "measures")),
)
"""x [T, B, ...]."""

NEURON = Part(
    *_all("int32_t", ("reset", "detach_reset")),
    *_all("int64_t", ("rows", "parameter_size", f"sizes[{len(PARAMETERS)}]")),
    *_all("double", (f"numbers[{len(GIVEN)}]", "v_reset", "v_start")),
    *_all("void *", (f"parameters[{len(PARAMETERS)}]",)),
)

FORTH = Part(
    *_all("double", ("eps", "bn_scale", "count", "momentum")),
    *_all("void *", NORM),
    *_all("void *", Inputs._fields),
    *_all("void *", [name for name in Outputs._fields if name != "saved"]),
    *_all("void *", ("running_mean", "running_var")),
)
"""The norm, what every pass reads, and what a forward pass writes. None is 0."""

BACK = Part(
    *_all("void *", Upstream._fields, "grad_"),
    ("void *", "sums"),
    *[("float *" if name == "probe" else "void *", f"out_{name}") for name in Gradients._fields],
)
"""What a walk back reads besides, and writes."""

PARTS = (INPUT, NEURON, FORTH, BACK)


def _printed() -> str:
    fields = "".join(f"    {kind} {name};\n" for part in PARTS for kind, name in part.fields)
    return f"struct Call {{\n{fields}}};\n"


DIGEST = int(hashlib.sha256(_printed().encode()).hexdigest()[:15], 16)
"""Of the fields' names, types and order."""

HEADER = f"""\
// A call: printed from the lists of spiketriton_kernels/backends/call.py.

#pragma once

#include <cstdint>

{_printed()}
constexpr int64_t CALL_DIGEST = {DIGEST};
"""
