"""What the command `compiled` makes of the reports of compiled kernels."""

import pytest

from profiling.harness import lowering
from profiling.harness.machine_code import in_longest_loop
from profiling.sections.compiled import CARDS, lowered


def test_occupancy_follows_the_programming_guide():
    card = CARDS["sm_90"]
    # 65,536 registers: 16 programs of 4 warps at 32 registers a thread, 4 at 128
    assert card.resident(32, 0, 4) == 16
    assert card.resident(128, 0, 4) == 4
    assert card.resident(33, 0, 4) == card.resident(40, 0, 4) == 12  # registers come in eights
    assert card.resident(32, 113 * 1024, 4) == 2  # 114 KiB with the system's own: exactly half
    assert card.resident(32, 114 * 1024, 4) == 1
    assert card.resident(8, 0, 1) == 32
    assert CARDS.keys() == lowering.TARGETS.keys()


def test_the_loop_is_what_a_tile_costs():
    """Of a program that works on many: neither what comes before or behind, nor where the code ends."""
    sass = """
        /*0000*/ MOV R1, c[0x0][0x28] ;
        /*0010*/ LDG.E.128 R4, [R2] ;
        /*0020*/ FFMA R4, R4, R4, R4 ;
        /*0030*/ @P1 BRA 0x20 ;
        /*0040*/ @P0 BRA.U 0x10 ;
        /*0050*/ EXIT ;
        /*0060*/ BRA 0x60 ;
        /*0070*/ NOP ;
    """
    assert in_longest_loop(sass) == 4
    assert in_longest_loop("/*0000*/ MOV R1, R2 ;\n/*0010*/ EXIT ;") == 2


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_rows_of_kernels_and_of_operations(target, monkeypatch):
    asked, traced = [], target != "gfx942"

    def lower(case, *given):
        asked.append((case, *given))
        return {
            "registers": 128, "spills": 0, "shared": 0, "warps": 4, "vector_bytes": 16, "loads": 1,
            "stores": 1, "atomics": 0, "instructions": 1.0,
            "bytes_per_element": 4.0 if traced else None,
            "checkpoint_bytes": 0.5 if traced else None,
            "bytes_per_request": 512.0 if traced else None,
        }  # fmt: skip

    monkeypatch.setattr(lowering, "lower", lower)
    rows = list(lowered(target, 4, "bf16", "contiguous"))
    assert asked == [(case, target, 4, "bf16", "contiguous") for case in lowering.CASES]
    of = {row.get("kernel") or row["operation"]: row for row in rows}
    assert all(row["card"] == CARDS[target].name and row["status"] == "ok" for row in rows)
    assert of["lif forward"]["occupancy"] == (0.25 if traced else 0.5)  # 4 programs of 4 warps
    if traced:
        assert of["bn_lif"]["passes"] == 8  # four launches of 4 bytes, of 2 an element
        assert of["bn_lif"]["checkpoint_bytes"] == 2
        assert [row["budget"] for row in rows if "operation" in row] == [5, 8, 11, 13]
    else:
        assert "bn_lif" not in of
