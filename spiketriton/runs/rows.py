"""Numbers on the disk: JSON files that are replaced as a whole, and rows appended to a file.

JSON has no word for NaN and infinities; both become null.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from spiketriton.errors import UserError

Row = dict[str, Any]


def json_text(value: Any, indent: int | None = 2) -> str:
    """`value` as JSON, with null for numbers that are not finite; ends with a line break."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Writes `json_text` to `path`; see `replace_file`."""
    replace_file(path, json_text(value, indent))


def read_json(path: Path) -> Any:
    """UserError: the file does not hold JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        raise UserError(f"{path} is damaged: it is not valid JSON") from None


def replace_file(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one. UserError: the disk is full, for example."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


class Rows:
    """A file of JSON objects, one per line, each written when it is appended.

    Floats keep 7 significant digits. While the disk is full, rows are kept in memory, `warn` is
    called once, and they are written together with the next ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warn: Callable[[str], None] = print
        self._waiting = b""
        self._warned = False

    def append(self, rows: Iterable[Row]) -> None:
        self._waiting += "".join(json_text(_rounded(row), indent=None) for row in rows).encode()
        try:
            with open(self.path, "ab", buffering=0) as file:
                _write_or_leave(file, self._waiting)
        except OSError as error:
            if not self._warned:
                self.warn(
                    f"{self.path} cannot be written ({error.strerror}); its rows are kept in memory"
                )
            self._warned = True
        else:
            self._waiting, self._warned = b"", False

    def read(self) -> list[Row]:
        """All rows but a last line that was cut short. UserError: another line is damaged."""
        if not self.path.exists():
            return []
        rows = []
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise UserError(
                    f"{self.path} is damaged: line {number} is not valid JSON"
                ) from None
        return rows

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drops the rows for which `wanted` is false."""
        if self.path.exists():
            kept = [json_text(row, indent=None) for row in self.read() if wanted(row)]
            replace_file(self.path, "".join(kept))


class NoRows(Rows):
    """A file that another process writes."""

    def append(self, rows: Iterable[Row]) -> None:
        pass

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        pass


def _rounded(row: Row) -> Row:
    """Floats with 7 significant digits; float32 has no more."""
    return {
        key: float(f"{value:.7g}") if isinstance(value, float) else value
        for key, value in row.items()
    }


def _write_or_leave(file: FileIO, content: bytes) -> None:
    """Appends all of `content` or nothing of it. OSError."""
    size, rest = file.seek(0, os.SEEK_END), memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(size)
        raise
