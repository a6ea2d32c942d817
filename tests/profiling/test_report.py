"""The page of results and its pictures."""

import json
import re
from pathlib import Path

import pytest

from profiling.render import report
from spiketriton.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_the_report_writes_between_its_marks(tmp_path, lif_rows):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lif_rows()))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    every = tmp_path / "README.md"
    assert report.write(tmp_path, page) == [page, every]
    text = page.read_text()
    assert text.startswith(
        f"before\n{report.START}\n\n### A CPU, 2 threads\n\nMeasured 2026-01-02.\n\n**Kernels: "
    )
    assert text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text
    assert "| `lif` training, fp32 | 1.50x (1.50x) | 1 |" in text
    rows = every.read_text()
    assert "## A CPU, 2 threads\n\n### kernels\n\n`c` (2026-01-02, " in rows
    assert "Allocator: a.\n" in rows
    assert "| 10 | 256 | fp32, contiguous |" in rows
    assert "30.0 (15.00x)" in rows
    report.write(tmp_path, page)
    assert (page.read_text(), every.read_text()) == (text, rows)
    page.write_text("no marks")
    with pytest.raises(UserError, match="has no lines"):
        report.write(tmp_path, page)


def test_rehearsals_make_no_report(tmp_path, lif_rows):
    rows = lif_rows(quick=True)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="holds only --quick rehearsals"):
        report.write(tmp_path, tmp_path / "page.md")


def test_the_page_is_what_the_results_in_the_repository_give(tmp_path):
    text = (ROOT / "docs/performance.md").read_text()
    page = tmp_path / "docs/performance.md"
    page.parent.mkdir()
    page.write_text(text)
    (tmp_path / "profiling").mkdir()
    folder = tmp_path / "profiling/results"
    folder.mkdir()
    for file in (ROOT / "profiling/results").glob("*.jsonl"):
        (folder / file.name).write_bytes(file.read_bytes())
    written = {path.name for path in report.write(folder, page)}
    assert page.read_text() == text
    assert (folder / "README.md").read_text() == (ROOT / "profiling/results/README.md").read_text()
    said = re.search(r"\*\*(.*?)\*\*", text, re.DOTALL)[
        1
    ].split()  # the answer in the first paragraph
    measured = re.findall(r"All (\d+) cases: (\S+)x in the median; slower .* in (\d+)\.", text)
    assert any(set(numbers) <= {word.rstrip(",.") for word in said} for numbers in measured)
    shipped = {path.name for path in (ROOT / "profiling/results").glob("*.png")}
    assert written - {"performance.md", "README.md"} == shipped


def test_the_summary_takes_the_fastest_other_of_each_case(lif_rows):
    """Two cases of one line: the median of 1.5 and 0.5, and the lower of both."""
    rows = lif_rows() + [row | {"shape": [1, 1, 1, 1]} for row in lif_rows(ours=6.0)]
    alone = [
        row | {"mode": "inference"} for row in lif_rows()
    ]  # has no line beside lines of several
    (grid,) = report.summary(rows + alone)
    assert grid.lines == [["`lif` training, fp32", "1.00x (0.50x)", "2"]]
    assert grid.notes == ["All 3 cases: 1.50x in the median; slower than the fastest other in 1."]
