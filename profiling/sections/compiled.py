"""Section `compiled`: what the compiler makes of every kernel for a GPU that need not be here.

Registers, spills, shared memory, vector widths, bytes and instructions are read from the machine
code (lowering.py). From them and the card's data sheet follow the occupancy and a roofline: the
time that memory alone, or issuing alone, would take. That is a prediction, and labelled so: it
knows nothing of latency, caches, clocks under load or launches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from profiling.cases import DTYPES, FLOOR
from spiketriton.errors import UserError

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
LAYOUTS = ("channels_last", "contiguous")
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

    def seconds_of_memory(self, bytes_: float) -> float:
        return bytes_ / (1e9 * self.gb_per_s)

    def seconds_of_issue(self, thread_instructions: float) -> float:
        rate = self.processors * self.issued * 1e9 * self.ghz
        return thread_instructions / self.warp / rate


CARDS = {
    "sm_80": Card("A100 80 GB SXM", 2039, 108, 1.41, 4, 32, 64, 65536, 164 * 1024),
    "sm_90": Card("H100 SXM", 3350, 132, 1.98, 4, 32, 64, 65536, 228 * 1024),
    "sm_100": Card("B200", 8000, 148, 1.96, 4, 32, 64, 65536, 228 * 1024),
    # four 16-lane units, each busy for 4 clocks with a wave of 64; 512 registers a lane and unit
    "gfx942": Card("MI300X", 5300, 304, 2.1, 1, 64, 32, 4 * 512 * 64, 64 * 1024),
}

OPERATIONS = {
    "multistep_lif": "lif",
    "multistep_bn_lif": "bn_lif",
    "multistep_bn_lif, residual": "bn_lif_residual",
}
"""lowering.STEPS by the name of the operation in cases.py, whose floor is the budget."""


def settings(words: Sequence[str]) -> dict[str, list[Any]]:
    """`T=4,10 dtype=bf16,fp32 layout=contiguous` as lists; UserError on anything else."""
    found: dict[str, list[Any]] = {"T": [10], "dtype": ["bf16"], "layout": ["channels_last"]}
    accepted = {"dtype": tuple(DTYPES), "layout": LAYOUTS}
    for word in words:
        key, _, values = word.partition("=")
        if key not in found or not values:
            raise UserError(f"compiled {word!r}: accepted: T=4,10 dtype=bf16 layout=contiguous")
        found[key] = values.split(",")
        for value in found[key]:
            if key == "T" and not (value.isdecimal() and int(value) > 0):
                raise UserError(f"compiled T={value!r}: accepted: whole numbers from 1")
            if key != "T" and value not in accepted[key]:
                raise UserError(f"compiled {key}={value!r}: accepted: {', '.join(accepted[key])}")
    return found | {"T": [int(T) for T in found["T"]]}


def lowered(target: str, T: int, dtype: str, layout: str) -> Iterator[dict[str, Any]]:
    """A row for each kernel, and one for each operation's sum, as they are ready.

    UserError: TRITON_INTERPRET is set, under which nothing is compiled.
    """
    interpret = os.environ.get("TRITON_INTERPRET", "0")
    if interpret not in ("0", ""):
        raise UserError(f"compiled: TRITON_INTERPRET is {interpret!r}; accepted: unset, or 0")
    from profiling import lowering

    card, elements = CARDS[target], T * math.prod(SHAPE)
    spec = {"target": target, "card": card.name, "T": T, "dtype": dtype, "layout": layout}
    reports = {}
    for case in lowering.CASES:
        report = reports[case] = lowering.lower(case, target, T, dtype, layout)
        resident = card.resident(report.registers, report.shared, report.warps)
        memory = card.seconds_of_memory(report.bytes_per_element * elements)
        issue = card.seconds_of_issue(report.instructions * elements)
        traced = not math.isnan(memory)
        yield {
            **spec,
            "status": "ok",
            "kernel": case,
            "registers": report.registers,
            "spills": report.spills,
            "shared": report.shared,
            "vector_bytes": report.vector_bytes,
            "loads": report.loads if traced else None,
            "stores": report.stores if traced else None,
            "bytes_per_element": report.bytes_per_element if traced else None,
            "instructions": report.instructions,
            "atomics": report.atomics,
            "occupancy": resident * report.warps / card.warps,
            "predicted_ms": 1e3 * max(memory, issue) if traced else None,
            "bound_by": ("issue" if issue > memory else "memory") if traced else None,
        }
    size = DTYPES[dtype].itemsize
    for operation, steps in lowering.STEPS.items():
        budget = FLOOR[OPERATIONS[operation], "training"]
        moved = sum(reports[case].bytes_per_element for case in steps)
        traced = not math.isnan(moved)
        seconds = sum(
            max(
                card.seconds_of_memory(reports[case].bytes_per_element * elements),
                card.seconds_of_issue(reports[case].instructions * elements),
            )
            for case in steps
        )
        yield {
            **spec,
            "status": "ok",
            "operation": operation,
            "passes": moved / size if traced else None,
            "budget": budget,
            "checkpoint_bytes": _checkpoints(reports, steps) if traced else None,
            "predicted_ms": 1e3 * seconds if traced else None,
            "predicted_for": [T, *SHAPE],
        }


def _checkpoints(reports: dict[str, Any], steps: Sequence[str]) -> float:
    """Bytes per element of membranes that a long window keeps: beside the budget, not in it."""
    accesses = [a for case in steps for a in reports[case].accesses if a.tensor == "saved"]
    return sum(a.passes * a.element_bytes for a in accesses)
