"""The page of results and its pictures."""

import json
from pathlib import Path

import pytest
from matplotlib import image

from profiling.harness.contenders import OURS, Status
from profiling.render import pictures, report
from profiling.sections.step import TWIN
from spiketriton.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_the_report_writes_between_its_marks(tmp_path, lif_rows):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lif_rows()))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    assert report.write(tmp_path, page) == [page]
    text = page.read_text()
    assert text.startswith(
        f"before\n{report.START}\n\n### A CPU, 2 threads\n\n#### kernels\n\n`c` (2026-01-02, "
    )
    assert text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text
    assert "Allocator: a.\n" in text
    assert "| 10 | 256 | fp32, contiguous |" in text
    assert "30.0 (15.00x)" in text
    report.write(tmp_path, page)
    assert page.read_text() == text
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
    shipped = {path.name for path in (ROOT / "profiling/results").glob("*.png")}
    assert written - {"performance.md"} == shipped


def pixels(path: Path) -> set[tuple]:
    return {tuple(p) for p in image.imread(path).reshape(-1, 4)[::7].tolist()}


def test_a_picture_needs_rows_enough(tmp_path, lif_rows):
    assert pictures.draw(lif_rows(), tmp_path / "x") == []
    rows = lif_rows() + lif_rows(shape=[4, 8, 4, 4], N=512)
    names = [path.name for path in pictures.draw(rows, tmp_path / "x")]
    assert names == ["x-bandwidth.png", "x-growth.png"]
    unreached = [row | {"status": Status.NOT_REACHED} for row in rows]
    assert pictures.draw(unreached, tmp_path / "x") == []
    assert all(len(pixels(tmp_path / name)) > 50 for name in names)


def test_along_an_axis_all_else_is_as_in_the_most_points(lif_rows):
    rows = []
    for n, T, dtype in (
        (1, 10, "fp32"),
        (2, 10, "fp32"),
        (3, 10, "fp32"),
        (3, 4, "fp32"),
        (4, 10, "bf16"),
    ):
        rows += lif_rows(N=n, T=T, dtype=dtype)
    along = pictures._along(rows, "lif", "N")
    assert {(row["N"], row["T"], row["dtype"]) for row in along} == {
        (n, 10, "fp32") for n in (1, 2, 3)
    }
    assert {(row["N"], row["T"]) for row in pictures._along(rows, "lif", "T")} == {(3, 10), (3, 4)}
    assert pictures._along(rows, "bn_lif", "N") == []


def test_a_step_beside_its_twin_and_its_memory(lif_rows):
    step = [
        row | {"section": "step", "recipe": "r", "batch": 2, "precision": "fp32", "T": 4}
        for row in lif_rows()[1:]
    ]
    step[1]["contender"] = TWIN
    step[2]["status"] = Status.UNEQUAL
    figure = pictures.steps(step, "r")
    (axes,) = figure.axes
    shown = dict(
        zip([label.get_text() for label in axes.get_yticklabels()], axes.patches, strict=True)
    )
    widths = {name: bar.get_width() for name, bar in shown.items()}
    assert widths == {"snntorch *": 30, "4 x ANN twin": 12, TWIN: 3, OURS: 2}
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [12]
    assert "* its result is not equal" in figure.get_suptitle()
    heavy = [row | {"section": "memory", "peak_bytes": 2**21} for row in step]
    left, right = pictures.steps(step + heavy, "r").axes
    assert (left.get_xlabel(), right.get_xlabel()) == (
        "ms a training step",
        "peak MiB of tensors in a step",
    )
    assert max(bar.get_width() for bar in right.patches) == 8
    assert pictures.steps(heavy, "r") is None
    assert pictures.steps(step, "another") is None


def test_what_is_saved_and_one_colour_a_contender(lif_rows):
    rows = [row | {"section": "memory", "saved_per_element": 4.0} for row in lif_rows()]
    (axes,) = pictures.saved(rows).axes
    assert len(axes.patches) == 4
    assert pictures.saved(lif_rows()) is None
    assert pictures._colour("BatchNorm2d + torch.compile") == pictures._colour("torch.compile")
    assert pictures._colour("spikingjelly default") != pictures._colour("spikingjelly compiled")
    assert pictures._colour("nobody") == pictures.GREY
