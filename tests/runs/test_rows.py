"""JSON files and rows: no NaN, whole or not at all, and nothing lost on a full disk."""

import errno
import json
import math
import os

import pytest

from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import (
    GRADIENTS,
    Rows,
    _write_or_leave,
    json_text,
    read_json,
    replace_file,
    write_json,
)
from spiketriton.system.errors import UserError


def test_rows_wait_while_the_disk_is_full(tmp_path, monkeypatch, capsys):
    folder = RunFolder.create(tmp_path / "run", "x")
    warnings: list[str] = []
    rows = Rows(folder.metrics.path)
    rows.warn = warnings.append
    Rows(tmp_path / "no" / "folder").append([])  # a warning of its own, to stdout
    assert "cannot be written (No such file or directory)" in capsys.readouterr().out
    rows.append([{"step": 1}])
    with monkeypatch.context() as patch:
        patch.setattr("spiketriton.runs.rows._write_or_leave", half_then_full)
        rows.append([{"step": 2}])
        rows.append([{"step": 3}])
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    assert rows.read() == [{"step": 1}]
    rows.append([{"step": 4}])
    assert rows.read() == [{"step": step} for step in (1, 2, 3, 4)]


def half_then_full(file, content: bytes) -> None:
    """`_write_or_leave` on a disk that takes half of the content."""

    class Full:
        def __init__(self) -> None:
            self.left = len(content) // 2
            self.seek, self.truncate = file.seek, file.truncate

        def write(self, part: memoryview) -> int:
            if self.left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.left = file.write(part[: self.left]), 0
            return written

    _write_or_leave(Full(), content)


def test_what_json_has_no_word_for_is_null_at_any_depth():
    value = {"a": math.nan, "b": [1.5, (math.inf, None)], "c": {"d": -math.inf, "e": "nan"}, "f": 2}
    text = json_text(value)
    assert json.loads(text) == {
        "a": None,
        "b": [1.5, [None, None]],
        "c": {"d": None, "e": "nan"},
        "f": 2,
    }
    several = {"a": ["[\n1\n]", [1, -2.5e-9], [[0], []], [True, None]]}
    assert json.loads(json_text(several)) == several
    assert "[1, -2.5e-09]" in json_text(several)
    assert text.startswith('{\n  "a"')
    assert text.endswith("}\n")
    assert json_text({"a": 1, "b": 2}, indent=None) == '{"a": 1, "b": 2}\n'


def test_a_json_file_comes_back_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"ü": [1, 2]})
    assert read_json(path) == {"ü": [1, 2]}
    assert path.read_text("utf-8") == '{\n  "\\u00fc": [1, 2]\n}\n'
    write_json(path, [1], indent=None)
    assert path.read_text("utf-8") == "[1]\n"
    for damaged in (b'{"a": ', b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.json is damaged: it is not valid JSON"):
            read_json(path)


def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    replace_file(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"x\.json cannot be written: No space left on device"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["x.json"]


def test_two_processes_that_write_one_file_take_turns(tmp_path):
    """As two evaluations of a run do, beside what a third one left that was killed."""
    path = tmp_path / "x.json"
    (tmp_path / "x.json.part").write_text("half of one that is longer than both" * 10_000)
    wholes = [word * 50_000 for word in ("one ", "two ")]
    children = []
    for whole in wholes:
        children.append(os.fork())
        if not children[-1]:
            try:
                for _ in range(100):
                    replace_file(path, whole)
                    assert path.read_text() in wholes
            except BaseException:
                os._exit(1)
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert [found.name for found in tmp_path.iterdir()] == ["x.json"]


def test_rows_keep_seven_digits_and_are_cut(tmp_path):
    rows = Rows(tmp_path / "rows.jsonl")
    assert rows.read() == []
    rows.keep(lambda row: False)
    assert not rows.path.exists()
    rows.append([{"step": 1, "loss": 1 / 3, "count": 123456789}, {"step": 2, "loss": math.nan}])
    rows.append([{"step": 3}])
    assert rows.read() == [
        {"step": 1, "loss": 0.3333333, "count": 123456789},
        {"step": 2, "loss": None},
        {"step": 3},
    ]
    rows.keep(lambda row: row["step"] != 2)
    assert [row["step"] for row in rows.read()] == [1, 3]
    assert rows.path.read_text().count("\n") == 2


def test_a_row_cut_short_is_left_out_and_a_damaged_one_is_named(tmp_path):
    rows = Rows(tmp_path / "rows.jsonl")
    rows.path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in rows.read()] == [1, 2]
    rows.path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged: line 2 is not valid JSON"):
        rows.read()


def test_values_that_no_row_has_are_named(tmp_path):
    rows = Rows(tmp_path / "gradients.jsonl", kinds=GRADIENTS)
    whole = {"step": 2**53 - 1, "layer": "a", "index": 0, "time_step": 0, "norm": None}
    rows.path.write_text(json.dumps(whole) + "\n")
    assert rows.read() == [whole]
    for key, value in (("step", 2**53), ("index", True), ("layer", 1), ("norm", 1e300)):
        rows.path.write_text(json.dumps(whole | {key: value}) + "\n")
        with pytest.raises(UserError, match=rf"gradients\.jsonl is damaged: line 1: {key} = "):
            rows.read()
