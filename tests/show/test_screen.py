"""Lines and tables that fit the screen, at the widths that terminals have and at smaller ones."""

import io

import pytest
from rich.console import Console

from spiketriton.show.screen import (
    ENDLESS,
    Table,
    console_of,
    fill,
    say,
    show_table,
    wrapped,
)

HEAD = ("run", "T", "accuracy %", "µJ with data", "images/s")
ROWS = [("net (lif)", "1", "99.44", "20.00", "1,234"), ("a longer name", "16", "9.10", "1.5", "7")]


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width)


def text_of(made: Console) -> str:
    return made.file.getvalue()  # type: ignore[attr-defined]


def test_parts_are_kept_whole():
    parts = ["step 3", "loss 1.25", "12 images/s"]
    assert fill(parts, 40) == ["step 3  loss 1.25  12 images/s"]
    assert fill(parts, 17, indent="  ") == ["step 3  loss 1.25", "  12 images/s"]
    assert fill(parts, 1) == parts


def test_prose_breaks_between_words_and_keeps_its_lines():
    assert wrapped("one two three", 8, "  ") == ["one two", "  three"]
    assert wrapped("a\n\nb-c /a/very/long/path", 5) == ["a", "", "b-c", "/a/very/long/path"]


def test_a_table_side_by_side():
    made = console(80)
    show_table(made, "title", Table(HEAD, ROWS, keys=2, legend="what it means"))
    assert text_of(made).splitlines() == [
        "title",
        "run            T   accuracy %  µJ with data  images/s",
        "─────────────────────────────────────────────────────",
        "net (lif)      1        99.44         20.00     1,234",
        "a longer name  16        9.10           1.5         7",
        "what it means",
    ]


def test_what_does_not_fit_comes_below_with_the_keys_in_front():
    made = console(44)
    show_table(made, "", Table(HEAD, ROWS, keys=2))
    assert text_of(made).splitlines() == [
        "run            T   accuracy %  µJ with data",
        "───────────────────────────────────────────",
        "net (lif)      1        99.44         20.00",
        "a longer name  16        9.10           1.5",
        "",
        "run            T   images/s",
        "───────────────────────────",
        "net (lif)      1      1,234",
        "a longer name  16         7",
    ]


@pytest.mark.parametrize("width", range(8, 130, 15))
def test_no_cell_is_lost_or_broken_at_any_width(width):
    made = console(width)
    show_table(made, "", Table(HEAD, ROWS, keys=2))
    lines = text_of(made).splitlines()
    for row in (HEAD[2:], *(row[2:] for row in ROWS)):
        for cell in row:
            assert [line for line in lines if line.split().count(cell) or cell in line]
    assert all(len(line) <= max(width, len("a longer name  16")) for line in lines)


def test_a_pipe_has_no_edge_unless_it_is_given_one(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console_of(io.StringIO()).width == ENDLESS
    monkeypatch.setenv("COLUMNS", "72")
    assert console_of(io.StringIO()).width == 72
    monkeypatch.setenv("FORCE_COLOR", "1")
    made = console_of(io.StringIO())
    say(made, "bold", style="bold")
    assert text_of(made) == "bold\n"


def test_in_a_notebook_a_line_goes_to_its_stream(monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    stream = io.StringIO()
    console_of(stream).print("a line")
    assert stream.getvalue() == "a line\n"
    assert capsys.readouterr().out == ""
