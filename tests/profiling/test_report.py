"""The page of results and its pictures: which rows count, and what is made of them."""

import json

import pytest

from profiling.harness.contenders import OURS, Status
from profiling.render import report
from profiling.render.rows import by_case, find, newest, read
from profiling.render.tables import number
from spiketriton.system.errors import UserError


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_newest_run_of_a_case_counts_and_rehearsals_do_not(tmp_path, lif_rows):
    late = lif_rows("2026-01-04", 5.0, status=Status.NOT_REACHED)
    write(tmp_path / "a.jsonl", [*lif_rows("2026-01-02", 2.0), *late])
    write(tmp_path / "b.jsonl", [*lif_rows("2026-01-01", 9.0), *lif_rows("2026-01-03", quick=True)])
    rows = read(tmp_path)
    assert [row["run"] for row in rows] == sorted(row["run"] for row in rows)
    kept = newest(rows)
    assert len(kept) == 4
    assert find(kept, OURS)["median_ms"] == 2.0
    elsewhere = lif_rows("2026-01-01", 7.0, threads=4)
    other = lif_rows("2026-01-01", 8.0, T=4)
    assert len(newest(rows + elsewhere + other)) == 12
    assert [len(group) for group in by_case(kept + other)] == [4, 4]


def test_lines_that_are_no_rows_and_folders_without_any_are_refused(tmp_path, lif_rows):
    page = tmp_path / "page.md"
    with pytest.raises(UserError, match=r"holds no results \(\*\.jsonl\)"):
        report.write(tmp_path, page)
    write(tmp_path / "a.jsonl", lif_rows(quick=True))
    with pytest.raises(UserError, match="holds only --quick rehearsals"):
        report.write(tmp_path, page)
    write(tmp_path / "a.jsonl", lif_rows())
    page.write_text("no marks")
    with pytest.raises(UserError, match="has no lines"):
        report.write(tmp_path, page)
    (tmp_path / "b.jsonl").write_text("{}\nno json\n")
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: is not valid JSON"):
        read(tmp_path)


def test_numbers_have_three_digits():
    shown = {
        None: "-",
        0: "0",
        9.999: "10.00",
        0.012345: "0.0123",
        -2.5: "-2.50",
        9876543: "9,876,543",
    }
    assert {value: number(value) for value in shown} == shown


def test_the_summary_takes_the_fastest_other_of_each_case(lif_rows):
    """Two cases of one line: the median of 1.5 and 0.5, and the lower of both."""
    rows = lif_rows() + [row | {"shape": [1, 1, 1, 1]} for row in lif_rows(ours=6.0)]
    # has no line beside lines of several
    alone = [row | {"mode": "inference"} for row in lif_rows()]
    (grid,) = report.summary(rows + alone)
    assert grid.lines == [["`lif` training, fp32", "1.00x", "0.50x", "2"]]
    assert grid.notes == ["All 3 cases: 1.50x in the median; slower than the fastest other in 1."]
