"""Lines and tables that fit the screen: as wide as the terminal, and in a pipe as long as they are."""

import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.text import Text

GAP = 2  # blanks between columns, and between the fields of a line
ENDLESS = 100_000  # columns of a pipe: it has no edge at which lines must break


def console_of(stream: TextIO | None = None) -> Console:
    """A console on `stream` (stdout). A pipe gets no colours, and its width only from COLUMNS."""
    stream = stream or sys.stdout
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
    lines = [*fields[:1]]
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
    made = textwrap.TextWrapper(width, subsequent_indent=indent, break_on_hyphens=False)
    made.break_long_words = False
    return [part for line in text.split("\n") for part in made.wrap(line) or [""]]


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

    Where the columns do not fit side by side they are printed below each other, each time with the keys in front.
    Keys too long for that stand on lines of their own. No cell is cut or broken, as rich does where one is too long.
    """
    if title:
        say(console, title, style="bold")
    keys = table.keys
    widths = [max(map(cell_len, column)) for column in zip(table.head, *table.rows, strict=True)]
    room = console.width - sum(widths[:keys]) - GAP * keys
    apart = room < max(widths[keys:]) or (sum(widths[keys:]) > room < console.width / 2)

    def line(row: Sequence[str], columns: Sequence[int]) -> str:
        cells = []
        for column in columns:
            blanks = " " * (widths[column] - cell_len(row[column]))
            left = column < keys or column in table.words
            cells.append(row[column] + blanks if left else blanks + row[column])
        return (" " * GAP).join(cells)

    for number, band in enumerate(_bands(widths[keys:], console.width - GAP if apart else room)):
        columns = [keys + place for place in band]
        columns = columns if apart else [*range(keys), *columns]
        margin = " " * GAP * apart
        head = margin + line(table.head, columns)
        for text in ([""] if number else []) + [head, "─" * cell_len(head)]:
            show_whole(console, text)
        for place, row in enumerate(table.rows):
            style = "bold" if place in table.bold else ""
            if apart:
                show_whole(console, (" " * GAP).join(row[:keys]), style=style)
            show_whole(console, margin + line(row, columns), style=style)
    if table.legend:
        say(console, table.legend)


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
