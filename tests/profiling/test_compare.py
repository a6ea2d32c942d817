"""`profiling/run.py compare`: what takes another time in the second of two result files."""

import json
from pathlib import Path

import pytest

from profiling import run
from profiling.render.compare import compare
from spiketriton.system.errors import UserError

STEP = {
    "section": "step",
    "recipe": "a",
    "T": 4,
    "status": "ok",
    "device": "A GPU",
    "device_type": "cuda",
}
STEP |= {"threads": 1, "commit": "0123456789", "run": "then"}
LIF = {
    **STEP,
    "section": "kernels",
    "op": "lif",
    "mode": "training",
    "shape": [2, 3],
    "dtype": "bf16",
}
LIF = {key: value for key, value in LIF.items() if key != "recipe"} | {"layout": "contiguous"}


def file_of(path: Path, **times: float) -> str:
    rows = [STEP | {"contender": name, "median_ms": ms} for name, ms in times.items()]
    rows.append(LIF | {"contender": "spiketriton", "median_ms": 1.0})
    rows.append(STEP | {"contender": "broken", "status": "failed"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_differences_beyond_the_threshold_are_listed_the_slowest_first(tmp_path, capsys):
    a = file_of(tmp_path / "a.jsonl", spiketriton=10, twin=4, floor=3, gone=1)
    b = file_of(tmp_path / "b.jsonl", spiketriton=11.2, twin=8, floor=3.1, new=1)
    assert run.main(["compare", a, b]) == 1  # ours is slower by more than a tenth
    said = capsys.readouterr().out
    assert "2 of 4 differ by more than 10 %" in said
    assert said.index("2.00x") < said.index("1.12x")
    assert "step a" in said
    assert "commit 012345678" in said
    assert run.main(["compare", a, b, "--threshold", "0.2"]) == 0
    assert "1 of 4 differ by more than 20 %" in capsys.readouterr().out
    assert run.main(["compare", b, a]) == 0  # faster
    assert "0.50x" in capsys.readouterr().out


def test_the_last_measured_row_of_each_counts_and_each_time_has_its_commit(tmp_path, capsys):
    """A contender that failed after it had been timed is not compared."""
    files = []
    for name, times, commit in (("a", (7, 10), "aaaaaaaaaa"), ("b", (10, 20), "bbbbbbbbbb")):
        rows = [STEP | {"contender": "spiketriton", "median_ms": ms} for ms in times]
        failed = {"contender": "other", "status": "failed", "median_ms": times[1]}
        lines = [json.dumps(row | {"commit": commit}) + "\n" for row in (*rows, STEP | failed)]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(lines))
    grid, slower = compare(*files, 0.1)
    assert slower
    assert grid.lines == [["spiketriton", "step a", "10.0", "20.0", "2.00x"]]
    assert grid.title == "1 of 1 differ by more than 10 %"
    assert grid.notes == ["before: commit aaaaaaaaa, then; after: commit bbbbbbbbb, then"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "a.jsonl"], "two result files"),
        (["compare", "a.jsonl", "none.jsonl"], "none.jsonl cannot be read: No such file"),
        (["compare", "a.jsonl", "text.jsonl"], "text.jsonl is no result file"),
        (["compare", "a.jsonl", "other.jsonl"], "no measured case in common"),
        (["compare", "a.jsonl", "elsewhere.jsonl"], "are of A GPU and Another"),
        (["compare", "a.jsonl", "a.jsonl", "--threshold", "0"], "accepted: numbers above 0"),
        (["host", "--threshold", "0.2"], "host takes no --threshold"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path / "a.jsonl", spiketriton=10)
    (tmp_path / "text.jsonl").write_text("no row\n")
    (tmp_path / "other.jsonl").write_text(
        json.dumps(STEP | {"contender": "spiketriton", "median_ms": 1, "recipe": "b"}) + "\n"
    )
    (tmp_path / "elsewhere.jsonl").write_text(
        json.dumps(STEP | {"contender": "spiketriton", "median_ms": 1, "device": "Another"}) + "\n"
    )
    with pytest.raises(UserError, match=said):
        run.main(words)
