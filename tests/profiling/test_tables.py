"""Rows as tables, cell by cell."""

import pytest

from profiling.harness.contenders import Status
from profiling.render.tables import kernel_matrix, number, tables
from profiling.sections.step import TWIN

STEP = {
    "section": "step", "recipe": "r", "T": 4, "batch": 64, "image": [1, 28, 28],
    "precision": "fp32", "layout": "channels_last", "status": "ok",
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0, "0"),
        (9.999, "10.00"),
        (0.012345, "0.0123"),
        (123.6, "124"),
        (-2.5, "-2.50"),
        (9876543, "9,876,543"),
    ],
)
def test_numbers_have_three_digits(value, words):
    assert number(value) == words


def test_a_case_of_kernels(lif_rows):
    rows = lif_rows()
    rows[3] |= {"status": Status.UNEQUAL, "why": "its reset", "note": "no ATan"}
    late = rows[0] | {"contender": "late", "status": Status.NOT_REACHED}
    (grid,) = tables([*rows, late], "kernels")
    assert grid.title == "lif training: T=10, N=256 (2x8x4x4), fp32, contiguous"
    assert grid.lines == [
        ["copy", "1.00 (1.00-1.00)", "1.00", "50.0 %", "-"],
        ["spiketriton", "2.00 (2.00-2.00)", "1.00", "50.0 %", "1.00x"],
        ["torch.compile", "3.00 (3.00-3.00)", "1.00", "50.0 %", "1.50x"],
        ["snntorch", "30.0 (30.0-30.0) *", "1.00", "50.0 %", "15.00x"],
    ]
    assert grid.notes == ["* snntorch: not equal, its reset", "snntorch: no ATan"]
    text = grid.markdown()
    assert text.startswith(f"**{grid.title}**\n\n| contender | ms (20-80 %) |")
    assert "| --- | ---: | ---: |" in text
    assert text.endswith("|\n\n* snntorch: not equal, its reset\n\nsnntorch: no ATan\n")


def test_the_matrix_has_a_line_a_case_and_a_column_a_contender(lif_rows):
    rows = lif_rows() + [
        row for row in lif_rows(T=4, detach_reset=True) if row["contender"] != "snntorch"
    ]
    failed = {key: value for key, value in rows[2].items() if not key.endswith("_ms")}
    rows[2] = failed | {"status": Status.FAILED, "why": "no compiler"}
    (grid,) = kernel_matrix(rows)
    assert grid.header[:4] == ["T", "N", "dtype, layout", "GB/s (of copy)"]
    assert grid.header[4:] == ["copy", "spiketriton", "torch.compile", "snntorch"]
    setting = "fp32, contiguous"
    speed = "1.00 (50.0 %)"
    assert grid.lines == [
        ["10", "256", setting, speed, "1.00", "2.00", "failed", "30.0 (15.00x)"],
        ["4", "256", f"{setting}, reset detached", speed, "1.00", "2.00", "3.00 (1.50x)", "-"],
    ]
    assert grid.notes == ["torch.compile: failed, no compiler"]
    both = kernel_matrix(rows + [row | {"mode": "inference"} for row in rows])
    assert [grid.title[:14] for grid in both] == ["lif, training:", "lif, inference"]


def test_a_step_and_its_memory():
    timed = dict(median_ms=8.0, p20_ms=7.0, p80_ms=9.0, images_per_s=8000.0)
    rows = [
        STEP | timed | {"contender": "spiketriton", "twin_ratio": 0.5, "above_floor": 0.25},
        STEP | timed | {"contender": TWIN},
        STEP | {"contender": "norse", "status": Status.WRONG, "why": "spikes"},
    ]
    (grid,) = tables(rows, "step")
    about = "training step of r: T=4, batch 64 of 1x28x28, fp32, channels_last"
    assert grid.title == about
    assert grid.lines[0] == ["spiketriton", "8.00 (7.00-9.00)", "8,000", "25.0 %", "0.500", "1.00x"]
    assert grid.lines[1][3:] == ["-", "-", "-"]
    assert grid.lines[2] == ["norse", "wrong result", "-", "-", "-", "-"]
    heavy = [
        row | {"section": "memory", "peak_bytes": 2**20 * n, "saved_bytes": 2**19}
        for n, row in enumerate(rows[:2], 1)
    ]
    heavy.append(rows[2] | {"section": "memory"})
    (grid,) = tables(heavy, "memory")
    assert grid.title == "memory of a step of r: T=4, batch 64"
    assert grid.header[3:] == ["peak / spiketriton's"]
    assert grid.lines == [
        ["spiketriton", "1.0", "0.5", "1.00x"],
        [TWIN, "2.0", "0.5", "2.00x"],
        ["norse", "wrong result", "-", "-"],
    ]
