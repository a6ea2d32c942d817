"""A call of the compiled C++ pass, field by field: from these lists the struct is printed, and a call is packed.

A library tells the digest of the lists that it was compiled with, names and types, and is refused where it is another.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable

from ..neuron import NORM, Gradients, Inputs, Outputs, Upstream

_CODES = {"int32_t": "i", "int64_t": "q", "double": "d", "void *": "P", "float *": "P"}


class Part(struct.Struct):
    """Fields that are packed together: (type in C++, name), in order."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self.fields = fields
        super().__init__("@" + "".join(_CODES[kind] for kind, _ in fields))

    def of(self, **given: float) -> bytes:
        """What is named; 0 for all else. For calls whose own cost does not matter."""
        names = [name for _, name in self.fields]
        if unknown := sorted({*given} - {*names}):
            raise TypeError(f"{', '.join(unknown)}: accepted: {', '.join(names)}")
        return self.pack(*[given.get(name, 0) for name in names])


def _all(kind: str, names: Iterable[str], before: str = "") -> list[tuple[str, str]]:
    return [(kind, before + name) for name in names]


INPUT = Part(
    *_all("int64_t", ("steps", "neurons", "channels", "inner")),
    *_all("int32_t", ("threads", "measures")),
)
"""x [T, B, ...]."""

FORTH = Part(
    *_all("double", ("eps", "bn_scale", "count", "momentum")),
    *_all("void *", NORM),
    *_all("void *", ("first" if name == "states" else name for name in Inputs._fields)),
    *_all("void *", ("last" if n == "states" else n for n in Outputs._fields if n != "saved")),
    *_all("void *", ("running_mean", "running_var", "bits", "moments")),
)
"""The norm, what every pass reads, and what a forward pass writes. None is 0."""

BACK = Part(
    *_all("void *", Upstream._fields, "grad_"),
    ("void *", "sums"),
    *[("float *" if name == "probe" else "void *", f"out_{name}") for name in Gradients._fields],
)
"""What a walk back reads besides, and writes."""

NEURON = Part(("int64_t", "form"), ("int64_t", "rows"), ("int64_t", "row_size"))
"""The step's number in the library; the gradients by constants, [rows, row_size]."""

CONSTANT = Part(("void *", "values"), ("double", "number"), ("int64_t", "size"), ("int64_t", "row"))
"""One constant: so many values, or where there are none a number; its row among the gradients, or -1."""


@functools.cache
def of_neuron(states: int, constants: int) -> struct.Struct:
    """The end of a call: ``NEURON``, as many starts, as many ``CONSTANT`` and one of zeros; fields of 8 bytes."""
    parts = [NEURON.format, "d" * states, *[CONSTANT.format] * (constants + 1)]
    return struct.Struct("@" + "".join(parts).replace("@", ""))


RECURRENT = Part(
    *_all("int64_t", ("steps", "samples", "neurons", "threads")),
    *_all("void *", ("x", "matrix", "first", "spikes", "last", "trace", "kept")),
    *_all("void *", ("grad_spikes", "grad_states", "grad_trace")),
    *_all("void *", ("out_dx", "out_states", "out_constants")),
    ("float *", "out_probe"),
)
"""A call of neurons whose spikes come back by a matrix, x [T, B, N]: what both ways read and write."""


def _printed(parts: Iterable[Part]) -> str:
    return "".join(f"    {kind} {name};\n" for part in parts for kind, name in part.fields)


class Struct:
    """A call that begins with these parts. Of as many as the step has, its starts and its constants follow."""

    def __init__(self, *parts: Part) -> None:
        self.parts = parts
        text = f"""\
struct Constant {{
{_printed([CONSTANT])}}};

struct Call {{
{_printed(parts)}    double starts[STATES];
    Constant constants[CONSTANTS + 1];
}};
"""
        self.digest = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
        """Of the fields' names, types and order."""
        self.header = f"""\
// A call: printed from the lists of spiketriton_kernels/backends/call.py.

#pragma once

{text}
constexpr int64_t CALL_DIGEST = {self.digest};
"""

    def size(self, states: int, constants: int) -> int:
        """Bytes of a call of a step."""
        before = sum(part.size for part in self.parts)
        return before + 8 * states + CONSTANT.size * (constants + 1)


WINDOW = Struct(INPUT, FORTH, BACK, NEURON)
"""A call of native.cpp."""
RETURNED = Struct(RECURRENT, NEURON)
"""A call of recurrent.cpp."""
