"""Events as arrays: what the readers of all formats give, and files of NumPy's, .npy and .npz."""

import io
import math
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spiketriton.system.errors import UserError, one_line

EVENT = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
"""An event: microseconds, column from the left, row from the top, polarity (1: brighter)."""


class DamagedEvents(UserError):
    """A file that does not hold what its format promises; names the place and the events before it."""

    def __init__(self, path: Path, offset: int | None, events: int, why: str) -> None:
        where = "" if offset is None else f" at byte {offset:,}"
        super().__init__(f"{path} is damaged{where}, after {events:,} events: {why}")


@dataclass(frozen=True)
class Columns:
    """What a format's reader finds: four columns, and where and why the file ends too early."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    at: np.ndarray | None  # byte at which each event lies; None: that cannot be said
    damage: tuple[int | None, str] | None = None  # behind these events

    def only(self, chosen: np.ndarray) -> "Columns":
        """The events of a mask."""
        if chosen.all():
            return self
        kept = {name: getattr(self, name)[chosen] for name in ("t", "x", "y", "p", "at")}
        return replace(self, **kept)

    def damaged(self, path: Path, event: int, why: str) -> DamagedEvents:
        return DamagedEvents(path, None if self.at is None else int(self.at[event]), event, why)


def records(
    raw: bytes, start: int, dtype: Any, what: str = "an event"
) -> tuple[np.ndarray, np.ndarray, tuple[int, str] | None]:
    """The whole records from a byte on, the byte of each, and how the file ends."""
    size = np.dtype(dtype).itemsize
    count, rest = divmod(len(raw) - start, size)
    why = f"the file is cut short: {rest} of the {size} bytes of {what}"
    damage = (start + size * count, why) if rest else None
    at = np.arange(start, start + size * count, size)
    return np.frombuffer(raw, dtype, count, start), at, damage


def read_npy(path: Path, raw: bytes) -> Columns:
    array, start, damage = _array(path, raw, "")
    names = array.dtype.names
    if names is not None:
        if array.ndim != 1 or not {"t", "x", "y", "p"} <= {*names}:
            raise not_events(path, f"an array {list(array.shape)} of the fields {', '.join(names)}")
        columns = [array[name] for name in ("t", "x", "y", "p")]
    elif array.ndim == 2 and array.shape[1] == 4:
        columns = list(array.T)
    else:
        raise not_events(path, f"an array {list(array.shape)} of {array.dtype}")
    at = start + array.strides[0] * np.arange(len(array))
    return _whole(path, columns, at, damage)


def read_npz(path: Path, raw: bytes) -> Columns:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            stored = {name: archive.read(name) for name in archive.namelist()}
    except Exception as error:  # zipfile and its decompressors raise anything on damaged input
        why = one_line(error) or type(error).__name__
        raise DamagedEvents(path, None, 0, f"it is not a whole .npz archive ({why})") from None
    missing = [name for name in "txyp" if f"{name}.npy" not in stored]
    if missing:
        held = ", ".join(sorted(stored)) or "nothing"
        raise not_events(path, f"{held}, without {', '.join(missing)}")
    arrays = [_array(path, stored[f"{name}.npy"], f"{name} ") for name in "txyp"]
    columns = [array for array, _, _ in arrays]
    damage = next((damage for _, _, damage in arrays if damage is not None), None)
    lengths = {len(column) for column in columns if column.ndim == 1}
    if any(column.ndim != 1 for column in columns) or (len(lengths) > 1 and damage is None):
        shapes = ", ".join(
            f"{name} {list(c.shape)}" for name, c in zip("txyp", columns, strict=True)
        )
        raise not_events(path, f"arrays of other lengths: {shapes}")
    whole = min(lengths)
    cut = (None, damage[1]) if damage else None  # a byte within a compressed file says nothing
    return _whole(path, [column[:whole] for column in columns], None, cut)


def not_events(path: Path, held: str) -> UserError:
    return UserError(
        f"{path} holds {held}; accepted: t, x, y, p as arrays, as fields, or as the columns [N, 4]"
    )


def _array(path: Path, raw: bytes, name: str) -> tuple[np.ndarray, int, tuple[int, str] | None]:
    """An array in numpy's format, as much of it as is there; where its data begin; how it ends."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # numpy parses the header as Python and raises anything
        why = f"{name}its header is not one of numpy's arrays ({one_line(error)[:80]})"
        raise DamagedEvents(path, stream.tell(), 0, why) from None
    start = stream.tell()
    fields = [dtype[n] for n in dtype.names] if dtype.names else [dtype]
    if any(field.kind not in "iufb" or field.shape for field in fields):
        raise not_events(path, f"{name or 'an array '}of {dtype}")
    if not shape or any(side < 0 for side in shape):
        raise not_events(path, f"{name or 'an array '}of shape {list(shape)}")
    row = dtype.itemsize * math.prod(shape[1:])
    held, promised = len(raw) - start, row * shape[0]
    count, damage = shape[0], None
    if held < promised:
        count = 0 if fortran and len(shape) > 1 else held // row
        why = f"{name}promises {promised:,} bytes of data, the file holds {held:,}"
        damage = start + row * count, why
    array = np.frombuffer(raw, dtype, row * count // dtype.itemsize, start)
    return array.reshape(count, *shape[1:], order="F" if fortran else "C"), start, damage


def _whole(
    path: Path,
    columns: list[np.ndarray],
    at: np.ndarray | None,
    damage: tuple[int | None, str] | None,
) -> Columns:
    """Columns of any numbers as integers. DamagedEvents: a value is no whole number, or too large."""
    t, x, y, p = columns
    found = Columns(t, x, y, p, at, damage)
    whole = {}
    for name, column in zip("txyp", columns, strict=True):
        bad = np.zeros(len(column), bool)
        if column.dtype.kind == "f":
            exact = column.astype(np.float64)  # 2^63 is beyond half precision
            bad = ~(np.abs(exact) < 2.0**63) | (exact != np.floor(exact))
        elif column.dtype.kind == "u":
            bad = column > (1 << 63) - 1
        if bad.any():
            first = int(np.argmax(bad))
            why = f"{name} = {column[first]} is not a whole number of 64 bits"
            raise found.damaged(path, first, why)
        whole[name] = column.astype(np.int64)
    p = whole["p"]
    if (strange := (p < -1) | (p > 1)).any():
        first = int(np.argmax(strange))
        why = f"p = {p[first]} is no polarity; accepted: 0 and 1, or -1 and 1"
        raise found.damaged(path, first, why)
    return Columns(whole["t"], whole["x"], whole["y"], (p > 0).astype(np.uint8), at, damage)
