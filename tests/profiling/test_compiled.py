"""Predictions follow from the machine code and the card's data sheet."""

import pytest

from profiling.harness import lowering, machine_code
from profiling.sections import compiled
from profiling.sections.compiled import CARDS, lowered
from spiketriton.errors import UserError


def test_occupancy_and_roofline_follow_the_data_sheet():
    card = CARDS["sm_90"]
    # 65,536 registers: 16 programs of 4 warps at 32 registers a thread, 4 at 128
    assert card.resident(32, 0, 4) == 16
    assert card.resident(128, 0, 4) == 4
    assert card.resident(121, 0, 4) == 4  # registers come in eights
    assert card.resident(120, 0, 4) == 4
    assert card.resident(113, 0, 4) == card.resident(120, 0, 4)
    assert card.resident(32, 100 * 1024, 4) == 2
    assert card.resident(32, 113 * 1024, 4) == 2  # 114 KiB with the system's own: exactly half
    assert card.resident(32, 114 * 1024, 4) == 1
    assert card.resident(8, 0, 1) == 32
    assert card.ms_of_memory(3350e9) == pytest.approx(1000)
    assert card.ms_of_issue(32 * 132 * 4 * 1.98e9) == pytest.approx(1000)
    assert CARDS["gfx942"].ms_of_issue(64 * 304 * 2.1e9) == pytest.approx(1000)
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
    assert machine_code._in_loops(sass) == 4
    assert machine_code._in_loops("/*0000*/ MOV R1, R2 ;\n/*0010*/ EXIT ;") == 2


@pytest.mark.parametrize("traced", [True, False])
def test_rows_of_kernels_and_of_operations(traced, monkeypatch):
    asked = []

    def lower(case, target, T, dtype, layout, *size):
        asked.append((case, target, T, dtype, layout, *size))
        heavy = case == "statistics"
        return {
            "registers": 128, "spills": 0, "shared": 0, "warps": 4, "vector_bytes": 16, "loads": 1,
            "stores": 1, "atomics": 0, "instructions": 80.0 if heavy else 1.0,
            "bytes_per_element": 4.0 if traced else None,
            "checkpoint_bytes": 0.5 if traced else None,
            "bytes_per_request": 512.0 if traced else None,
            "bytes_in_flight": 2048.0 if traced else None,
        }  # fmt: skip

    monkeypatch.setattr(lowering, "lower", lower)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    rows = list(lowered("sm_90", 4, "bf16", "contiguous"))
    plain = [given[1:] for given in asked if len(given) == 5]
    assert plain == [("sm_90", 4, "bf16", "contiguous")] * len(lowering.CASES)
    shaped = [(given[0], given[5]) for given in asked if len(given) == 6]
    assert shaped == [(case, shape) for shape in lowering.SHAPES for case in lowering.BY_SHAPE]
    moved = [row["requests"] for row in rows if "requests" in row]
    assert moved == [dict.fromkeys(lowering.BY_SHAPE, 512.0 if traced else None)] * 4
    of = {row.get("kernel") or row["operation"]: row for row in rows if "requests" not in row}
    assert all(row["card"] == "H100 SXM" and row["status"] == "ok" for row in rows)
    forward, sums = of["lif forward"], of["multistep_bn_lif"]
    assert forward["occupancy"] == 0.25  # 4 programs of 4 warps, of 64
    assert forward["kb_in_flight"] == (32 if traced else None)
    if not traced:
        assert forward["predicted_ms"] is forward["bound_by"] is sums["passes"] is None
        assert sums["predicted_ms"] is sums["checkpoint_bytes"] is None
        return
    elements = 4 * 256 * 64 * 56 * 56
    memory = 1e3 * 4 * elements / 3350e9 / compiled.COPY
    issue = 1e3 * 80 * elements / (32 * 132 * 4 * 1.98e9)
    assert issue > memory
    assert forward["bound_by"] == "memory"
    assert forward["predicted_ms"] == pytest.approx(memory)
    assert forward["of_bandwidth"] == pytest.approx(compiled.COPY)
    assert of["statistics"]["bound_by"] == "issue"
    assert of["statistics"]["predicted_ms"] == pytest.approx(issue)
    assert sums["predicted_ms"] == pytest.approx(3 * memory + issue)
    assert sums["passes"] == 8  # four launches of 4 bytes, of 2 an element
    assert sums["checkpoint_bytes"] == 2
    assert sums["predicted_for"] == [4, 256, 64, 56, 56]
    budgets = [row["budget"] for row in rows if "operation" in row]
    assert budgets == [5, 8, 11, 13]


def test_few_bytes_under_way_are_what_takes_the_time():
    report = dict(
        registers=128, shared=0, warps=4, bytes_per_element=4.0, loads=2.0, instructions=1.0
    )
    full, starved = (
        compiled.predicted(CARDS["sm_90"], report | {"bytes_in_flight": each}, 2, 10**9) for each in (2048, 512)
    )  # fmt: skip
    assert (full["bound_by"], full["kb_in_flight"]) == ("memory", 32)
    assert (starved["bound_by"], starved["kb_in_flight"]) == ("waiting", 8)
    assert starved["predicted_ms"] == pytest.approx(1e3 * 1.4e-6 * 4e9 / (8192 * 132))
    assert starved["of_bandwidth"] == pytest.approx(8192 * 132 / 1.4e-6 / 3350e9)


def test_nothing_is_compiled_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="TRITON_INTERPRET is '1'; accepted: unset"):
        next(lowered("sm_90", 4, "bf16", "contiguous"))
    assert compiled.SHAPE == (256, 64, 56, 56)
