"""Command `compiled`: what the compiler makes of every kernel for a GPU that need not be here.

Registers, spills, shared memory, vector widths, bytes, those of a warp's request and instructions are read from the
machine code (harness/lowering.py); the occupancy follows from the GPU's programming guide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from profiling.harness import lowering
from profiling.harness.contenders import Status
from profiling.sections.kernels import FLOOR
from spiketriton.system.errors import UserError
from spiketriton.training.environment import PRECISIONS


@dataclass(frozen=True)
class Card:
    """Limits of a GPU's processor, from its vendor's programming guide."""

    name: str
    warps: int  # resident at most
    shared: int  # bytes
    registers: int = 65536  # of 32 bits
    warp: int = 32

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """Programs that fit at once."""
        by_registers = self.registers // (8 * math.ceil(registers / 8) * self.warp * warps)
        by_shared = self.shared // (shared + 1024)  # 1 KiB is the system's
        return min(by_registers, by_shared, self.warps // warps, 32)


CARDS = {
    "sm_80": Card("A100 80 GB SXM", 64, 164 * 1024),
    "sm_89": Card("RTX 4090", 48, 100 * 1024),
    "sm_90": Card("H100 SXM", 64, 228 * 1024),
    "sm_100": Card("B200", 64, 228 * 1024),
    "sm_120": Card("RTX 5090", 48, 100 * 1024),
    # four units of 512 registers a lane
    "gfx942": Card("MI300X", 32, 64 * 1024, registers=4 * 512 * 64, warp=64),
}

OPERATIONS = {
    "lif": ("lif forward", "lif backward"),
    "bn_lif": ("statistics", "bn_lif forward", "bn_lif backward, sums", "bn_lif backward, dy"),
    "bn_lif_residual": (
        "statistics", "bn_lif+residual forward", "bn_lif+residual backward", "norm backward"
    ),
    "bn_lif_current": (
        "statistics", "bn_lif+current forward", "bn_lif+current backward", "norm backward"
    ),
}  # fmt: skip
"""The launches of one training step of each operation of kernels.py: their bytes add up to its traffic."""

ROW = ("registers", "spills", "shared", "vector_bytes", "loads", "stores", "bytes_per_element")
ROW += ("instructions", "atomics", "bytes_per_request")

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


def lowered(target: str, T: int, dtype: str, layout: str) -> Iterator[dict[str, Any]]:
    """A row for each kernel and for each operation's sum, as they are ready. UserError: TRITON_INTERPRET is set."""
    card = CARDS[target]
    spec = {"target": target, "card": card.name, "T": T, "dtype": dtype, "layout": layout}
    spec["status"] = Status.OK
    reports = {}
    for case in lowering.CASES:
        report = reports[case] = lowering.lower(case, target, T, dtype, layout)
        resident = card.resident(report["registers"], report["shared"], report["warps"])
        occupancy = resident * report["warps"] / card.warps
        yield spec | {"kernel": case, "occupancy": occupancy} | {key: report[key] for key in ROW}
    for operation, launches in OPERATIONS.items() if target != "gfx942" else ():  # is not traced
        moved, saved = (
            sum(reports[case][key] for case in launches)
            for key in ("bytes_per_element", "checkpoint_bytes")
        )
        yield spec | {
            "operation": operation,
            "passes": moved / PRECISIONS[dtype].itemsize,
            "budget": FLOOR[operation][0],
            "checkpoint_bytes": saved,
        }
