"""Numbers on the disk: JSON files that are replaced as a whole, and rows appended to a file.

JSON has no word for NaN and infinities; both become null.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from spiketriton.system.errors import UserError, one_line
from spiketriton.system.locks import no_link, writing
from spiketriton.system.plain import of_plain

Row = dict[str, Any]


_NUMBERS = re.compile(
    r"\[\n(?:\s*(?:[-+.\deE]+|null),?\n)+\s*\]"
)  # no string of JSON has a line break


def json_text(value: Any, indent: int | None = 2) -> str:
    """`value` as JSON, with null for numbers that are not finite; ends with a line break.

    Numbers of a list share a line.
    """
    text = json.dumps(_finite(value), indent=indent, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    replace_file(path, json_text(value, indent))


def read_json(path: Path) -> Any:
    """UserError: the file does not hold JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not valid JSON") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_record(path: Path, kind: Any) -> Any:
    """What a JSON file holds as the record that was written (`plain.of_plain`). UserError: it is another."""
    try:
        return of_plain(kind, read_json(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


Kinds = Mapping[str, Mapping[str, type]]
_ALL: dict[str, type] = {"step": int, "epoch": float, "seconds": float}
METRICS: Kinds = {
    "train": _ALL | dict.fromkeys(("loss", "lr", "grad_norm"), object),
    "eval": _ALL | dict.fromkeys(("test_loss",), object),  # and the score, see `tasks.Score`
}
"""What each row of metrics.jsonl has, by its kind; numbers where it says `object` may be null."""
GRADIENTS: Kinds = {"": {"step": int, "layer": str, "index": int, "time_step": int}}
"""The same of gradients.jsonl, whose rows are of one kind."""


def _wrong(row: Any, kinds: Kinds) -> str:
    if not isinstance(row, dict):
        return "no object"
    kind = row.get("kind", "")
    if not isinstance(kind, str) or kind not in kinds:
        return f"of no known kind ({', '.join(kinds)})"
    for key, value in row.items():
        needed = kinds[kind].get(key, object)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if needed is str:
            good = isinstance(value, str)
        elif needed is int:
            good = isinstance(value, int) and number and 0 <= value < 2**53
        elif needed is float:
            good = number and abs(value) < 1e300
        elif key in kinds[kind] or kind == "":
            good = value is None or (number and abs(value) < 1e300)
        else:
            good = value is None or number or isinstance(value, str | bool)
        if not good:
            return f"{key} = {str(value)[:40]!r}"
    return next((f"{key} is missing" for key in kinds[kind] if key not in row), "")


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes the whole file or leaves the old one. UserError: the disk is full, for example."""
    part = path.with_name(path.name + ".part")
    try:
        with writing(part):
            try:
                part.write_bytes(_in_bytes(content) if isinstance(content, str) else content)
                os.replace(part, path)
            except BaseException:  # only then: a renamed one may be another's already
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _in_bytes(text: str) -> bytes:
    """In UTF-8; names of files that are none, as the bytes that they are."""
    return text.encode("utf-8", "surrogateescape")


class Lines:
    """A file of lines, each written when it is appended.

    While the disk is full, lines are kept in memory, `warn` is called once, and they are written with the next ones.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = print) -> None:
        self.path, self.warn = path, warn
        self._waiting = b""
        self._warned = False

    def add(self, text: str) -> None:
        self._waiting += _in_bytes(text)
        try:
            with open(self.path, "ab", buffering=0, opener=no_link) as file:
                _write_or_leave(file, self._waiting)
        except OSError as error:
            warned, self._warned = self._warned, True
            if not warned:
                why = f"cannot be written ({error.strerror})"
                self.warn(f"{self.path} {why}; its rows are kept in memory")
        else:
            self._waiting, self._warned = b"", False


class Rows(Lines):
    """A file of JSON objects, one per line. Floats keep 7 significant digits."""

    def __init__(self, path: Path, kinds: Kinds | None = None) -> None:
        super().__init__(path)
        self.kinds = kinds

    def append(self, rows: Iterable[Row]) -> None:
        rounded = ({key: _rounded(value) for key, value in row.items()} for row in rows)
        self.add("".join(json_text(row, indent=None) for row in rounded))

    def read(self) -> list[Row]:
        """All rows but a last line that was cut short. UserError: another line is damaged."""
        if not self.path.exists():
            return []
        rows = []
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(
                    f"{self.path} is damaged: line {number} is not valid JSON"
                ) from None
            if self.kinds and (wrong := _wrong(row, self.kinds)):
                raise UserError(f"{self.path} is damaged: line {number}: {one_line(wrong)}")
            rows.append(row)
        return rows

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drops the rows for which `wanted` is false."""
        if self.path.exists():
            kept = [json_text(row, indent=None) for row in self.read() if wanted(row)]
            replace_file(self.path, "".join(kept))


class NoRows(Rows):
    """A file that another process writes."""

    def read(self) -> list[Row]:
        return []

    def add(self, text: str) -> None:
        pass

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        pass


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _write_or_leave(file: FileIO, content: bytes) -> None:
    size, rest = file.seek(0, os.SEEK_END), memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(size)
        if not size and os.path.isfile(file.name):
            os.unlink(file.name)
        raise
