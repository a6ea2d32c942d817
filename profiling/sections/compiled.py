"""Command `compiled`: what the compiler makes of every kernel for a GPU that need not be here.

Registers, spills, shared memory, vector widths, bytes, those of a warp's request and instructions are
read from the machine code (harness/lowering.py), and from the order of its loads how many bytes are
under way at once. From them and the card's data sheet follow the occupancy and a roofline: the time
that memory alone, waiting for loads alone, or issuing alone, would take. That is a prediction, and
labelled so: it knows nothing of caches, clocks under load or launches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from profiling.harness.contenders import Status
from profiling.sections.kernels import FLOOR
from spiketriton.errors import UserError
from spiketriton.training.environment import PRECISIONS

SHAPE = (256, 64, 56, 56)
"""[B, C, H, W] that times are predicted for: a ResNet's first stage."""


@dataclass(frozen=True)
class Card:
    """Limits of a GPU, from its vendor's data sheet and programming guide."""

    name: str
    gb_per_s: float  # memory bandwidth
    processors: int  # multiprocessors or compute units
    ghz: float  # boost clock
    issued: float  # warps' instructions a clock and processor
    warp: int
    warps: int  # resident at most on a processor
    registers: int  # of a processor, 32 bits each
    shared: int  # bytes of a processor

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """Programs that fit on a processor at once."""
        by_registers = self.registers // (8 * math.ceil(registers / 8) * self.warp * warps)
        by_shared = self.shared // (shared + 1024)  # 1 KiB is the system's
        return min(by_registers, by_shared, self.warps // warps, 32)

    def ms_of_memory(self, bytes_: float) -> float:
        return 1e3 * bytes_ / (1e9 * self.gb_per_s)

    def ms_of_waiting(self, loaded: float, in_flight: float) -> float:
        """For loads of so many bytes, of which a processor has ``in_flight`` under way."""
        return 1e3 * ROUND_TRIP * loaded / (in_flight * self.processors)

    def ms_of_issue(self, thread_instructions: float) -> float:
        rate = self.processors * self.issued * 1e9 * self.ghz
        return 1e3 * thread_instructions / self.warp / rate


CARDS = {
    "sm_80": Card("A100 80 GB SXM", 2039, 108, 1.41, 4, 32, 64, 65536, 164 * 1024),
    "sm_89": Card("RTX 4090", 1008, 128, 2.52, 4, 32, 48, 65536, 100 * 1024),
    "sm_90": Card("H100 SXM", 3350, 132, 1.98, 4, 32, 64, 65536, 228 * 1024),
    "sm_100": Card("B200", 8000, 148, 1.96, 4, 32, 64, 65536, 228 * 1024),
    "sm_120": Card("RTX 5090", 1792, 170, 2.41, 4, 32, 48, 65536, 100 * 1024),
    # four 16-lane units, each busy for 4 clocks with a wave of 64; 512 registers a lane and unit
    "gfx942": Card("MI300X", 5300, 304, 2.1, 1, 64, 32, 4 * 512 * 64, 64 * 1024),
}

COPY = 0.88
"""Of a data sheet's bandwidth, what a copy reaches."""

ROUND_TRIP = 1.4e-6
"""Seconds of a load under full traffic: 32 KB under way then fill an H100's processor."""

OPERATIONS = {
    "multistep_lif": "lif",
    "multistep_bn_lif": "bn_lif",
    "multistep_bn_lif, residual": "bn_lif_residual",
    "multistep_bn_lif, residual and current": "bn_lif_current",
}
"""lowering.STEPS by the name of the operation in kernels.py, whose floor is the budget."""

ROW = (
    "kernel",
    "registers",
    "spills",
    "shared",
    "vector_bytes",
    "loads",
    "stores",
    "bytes_per_element",
)
ROW += ("instructions", "atomics", "predicted_ms", "bound_by", "occupancy")
ROW += ("bytes_per_request", "kb_in_flight", "of_bandwidth")

USUAL = {"T": ("10",), "dtype": ("bf16",), "layout": ("channels_last", "contiguous")}
ACCEPTED = {"dtype": tuple(PRECISIONS), "layout": ("channels_last", "contiguous")}


def settings(words: Sequence[str]) -> list[dict[str, Any]]:
    """`T=4,10 dtype=bf16,fp32 layout=contiguous` as cases; UserError on anything else."""
    found = dict(USUAL)
    for word in words:
        key, _, values = word.partition("=")
        if key not in found or not values:
            raise UserError(f"compiled {word!r}: accepted: T=4,10 dtype=bf16 layout=contiguous")
        found[key] = tuple(values.split(","))
        for value in found[key]:
            if key == "T" and not (value.isdecimal() and int(value) > 0):
                raise UserError(f"compiled T={value!r}: accepted: whole numbers from 1")
            if key != "T" and value not in ACCEPTED[key]:
                raise UserError(f"compiled {key}={value!r}: accepted: {', '.join(ACCEPTED[key])}")
    return [{"T": int(T), "dtype": d, "layout": at} for T, d, at in product(*found.values())]


def predicted(card: Card, report: dict[str, Any], size: int, elements: int) -> dict[str, Any]:
    """Of a kernel for so many elements of a size: occupancy, KB in flight, time, what takes it, and the share of the
    data sheet's bandwidth that this is."""
    resident = card.resident(report["registers"], report["shared"], report["warps"])
    one, moved = report["bytes_in_flight"], report["bytes_per_element"]  # of a warp
    in_flight = None if one is None else one * resident * report["warps"]
    found: dict[str, Any] = {
        "occupancy": resident * report["warps"] / card.warps,
        "kb_in_flight": None if in_flight is None else in_flight / 1024,
        "predicted_ms": None,
        "bound_by": None,
        "of_bandwidth": None,
    }
    if moved is None:
        return found
    least = card.ms_of_memory(moved * elements)
    limits = {"memory": least / COPY, "issue": card.ms_of_issue(report["instructions"] * elements)}
    if in_flight:
        limits["waiting"] = card.ms_of_waiting(report["loads"] * size * elements, in_flight)
    slowest = max(limits, key=limits.__getitem__)
    return found | {
        "predicted_ms": limits[slowest],
        "bound_by": slowest,
        "of_bandwidth": least / limits[slowest],
    }


def lowered(target: str, T: int, dtype: str, layout: str) -> Iterator[dict[str, Any]]:
    """A row for each kernel, for each operation's sum, and for each shape's requests, as they are ready.

    UserError: TRITON_INTERPRET is set, under which nothing is compiled.
    """
    interpret = os.environ.get("TRITON_INTERPRET", "0")
    if interpret not in ("0", ""):
        raise UserError(f"compiled: TRITON_INTERPRET is {interpret!r}; accepted: unset, or 0")
    from profiling.harness import lowering

    card = CARDS[target]
    spec = {"target": target, "card": card.name, "T": T, "dtype": dtype, "layout": layout}
    spec["status"] = Status.OK
    reports = {}
    for case in lowering.CASES:
        report = reports[case] = lowering.lower(case, target, T, dtype, layout)
        report |= {"kernel": case} | predicted(
            card, report, PRECISIONS[dtype].itemsize, T * math.prod(SHAPE)
        )
        yield spec | {key: report[key] for key in ROW}
    for operation, steps in lowering.STEPS.items():

        def total(key: str, steps: Sequence[str] = steps) -> float | None:
            numbers = [reports[case][key] for case in steps]
            return None if None in numbers else sum(numbers)

        moved = total("bytes_per_element")
        yield spec | {
            "operation": operation,
            "passes": None if moved is None else moved / PRECISIONS[dtype].itemsize,
            "budget": FLOOR[OPERATIONS[operation]][0],
            "checkpoint_bytes": total("checkpoint_bytes"),
            "predicted_ms": total("predicted_ms"),
            "predicted_for": [T, *SHAPE],
        }
    for shape in lowering.SHAPES:
        moved = {
            case: lowering.lower(case, target, T, dtype, layout, shape)["bytes_per_request"]
            for case in lowering.BY_SHAPE
        }
        yield spec | {"size": list(shape), "requests": moved}
