"""docs/performance.md from result files: for each machine the pictures, then every table."""

from __future__ import annotations

import os
from pathlib import Path

from profiling.harness.contenders import Status
from profiling.harness.session import Row, file_name, machine
from profiling.render import pictures, tables
from profiling.render.rows import newest, read
from spiketriton.errors import UserError

START, END = "<!-- results: python profiling/run.py report -->", "<!-- end of results -->"


def write(folder: Path, page: Path) -> list[Path]:
    """Rewrites the results in `page` and the pictures in `folder`; returns what was written.

    UserError: no results but rehearsals, or the page has no place for them.
    """
    rows = newest(read(folder))
    if not rows:
        raise UserError(
            f"{folder} holds only --quick rehearsals; python profiling/run.py all measures"
        )
    text = page.read_text()
    if START not in text or END not in text:
        raise UserError(f"{page} has no lines {START!r} and {END!r} to write between")
    written, parts = [page], []
    for place in dict.fromkeys(map(machine, rows)):
        mine = [row for row in rows if machine(row) == place]
        drawn = pictures.draw(mine, folder / file_name(place))
        written += drawn
        parts.append(f"### {place}\n")
        for path in drawn:
            link = Path(os.path.relpath(path, page.parent)).as_posix()
            parts.append(f"![{path.stem}]({link})\n")
        parts += [
            _section(section, chosen)
            for section in tables.SECTIONS
            if (chosen := [row for row in mine if row["section"] == section])
        ]
    head, rest = text.split(START)[0], text.split(END)[1]
    page.write_text(f"{head}{START}\n\n" + "\n".join(parts) + f"\n{END}{rest}")
    return written


def _section(name: str, rows: list[Row]) -> str:
    made = (f"`{row['command']}` ({row['run'][:10]}, {tables.where(row)})\n" for row in rows)
    grids = tables.kernel_matrix(rows) if name == "kernels" else tables.tables(rows, name)
    lines = [f"#### {name}\n", *dict.fromkeys(made)]
    if name not in ("compiled", "memory"):
        allocators = dict.fromkeys(row["allocator"] for row in rows if row["status"] == Status.OK)
        lines.append(f"Allocator: {', '.join(allocators)}.\n")
    return "\n".join(lines + [grid.markdown() for grid in grids])
