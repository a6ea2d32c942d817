"""Lines and tables that fit the screen: as wide as the terminal, and in a pipe as long as they are."""

import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.text import Text

GAP = 2  # blanks between columns, and between the fields of a line
ENDLESS = 100_000  # columns of a pipe: it has no edge at which lines must break


def console_of(stream: TextIO | None = None) -> Console:
    """A console on `stream` (stdout). A pipe gets no colours, and its width only from COLUMNS."""
    stream = sys.stdout if stream is None else stream
    live = stream.isatty()
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() and int(asked) else ENDLESS
    made = Console(
        file=stream,
        force_terminal=live,
        force_jupyter=False,  # in a notebook rich would show what is meant for another stream
        width=None if live else width,
        highlight=False,
    )
    if made.is_dumb_terminal:  # rich takes it for 80 columns, whatever it has
        made.size = ConsoleDimensions(*shutil.get_terminal_size((80, 25)))
    return made


def fill(fields: Sequence[str], width: int, indent: str = "") -> list[str]:
    """Lines of `fields` with two blanks between; a line breaks between fields, never within one."""
    lines = [fields[0]]
    for field in fields[1:]:
        longer = lines[-1] + " " * GAP + field
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(indent + field)
    return lines


def say(console: Console, text: str, *, style: str = "", indent: str = "") -> None:
    """Prints prose: broken between words where it does not fit; a longer word stays whole."""
    for line in wrapped(text, console.width, indent):
        show_whole(console, line, style=style)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of `text`, broken between words; later lines are indented."""
    return [
        part
        for line in text.split("\n")
        for part in textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        or [""]
    ]


def show_whole(console: Console, text: str, *, style: str = "") -> None:
    """Prints one line as it is: a command or a path, which is copied and must not be broken."""
    console.print(Text(text, style=style), soft_wrap=True)


@dataclass(frozen=True)
class Table:
    """Cells below heads, for a screen or a page.

    keys: columns at the left that tell the rows apart. words: columns that begin at the left, as the keys do; numbers
    end at the right. bold: numbers of the rows to print in bold. legend: prose below, what the heads mean.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    words: Collection[int] = ()
    bold: Collection[int] = ()
    legend: str = ""


def show_table(console: Console, title: str, table: Table) -> None:
    """Prints a table.

    Where the columns do not fit side by side they are printed below each other, each time with the
    keys in front. Keys too long for that stand on lines of their own. No cell is cut or broken, as rich would.
    """
    head, rows, keys = table.head, table.rows, table.keys
    if title:
        say(console, title, style="bold")
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    front = sum(widths[:keys]) + GAP * keys
    room = console.width - front
    apart = room < max(widths[keys:]) or (sum(widths[keys:]) > room < console.width / 2)
    for number, band in enumerate(_bands(widths[keys:], console.width - GAP if apart else room)):
        if number:
            console.print()
        columns = [keys + place for place in band]
        columns = columns if apart else [*range(keys), *columns]
        line = partial(_line, widths=widths, columns=columns, left={*range(keys), *table.words})
        top = line(head)
        show_whole(console, top, style="bold")
        show_whole(console, "─" * cell_len(top))
        for place, row in enumerate(rows):
            style = "bold" if place in table.bold else ""
            if apart:
                show_whole(console, (" " * GAP).join(row[:keys]), style=style)
            show_whole(console, line(row), style=style)
    if table.legend:
        say(console, table.legend)


def _line(
    row: Sequence[str], widths: Sequence[int], columns: Sequence[int], left: Collection[int]
) -> str:
    """The chosen columns of a row: those of `left` at the left of their column, all else at the right."""
    cells = []
    for column in columns:
        blanks = " " * (widths[column] - cell_len(row[column]))
        cells.append(row[column] + blanks if column in left else blanks + row[column])
    margin = "" if 0 in columns else " " * GAP
    return (margin + (" " * GAP).join(cells)).rstrip()


def _bands(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns of these widths, in order, side by side as long as there is room; one at least."""
    bands: list[list[int]] = [[]]
    used = 0
    for place, width in enumerate(widths):
        if bands[-1] and used + width > room:
            bands.append([])
            used = 0
        bands[-1].append(place)
        used += width + GAP
    return bands
