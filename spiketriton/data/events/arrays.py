"""Events as arrays: what the readers of all formats give, and files of NumPy's, .npy and .npz."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spiketriton.errors import UserError, one_line

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
    offset: Callable[[int], int | None]  # byte at which an event lies, if that can be said
    damage: tuple[int | None, str] | None = None  # behind these events


def cut_short(held: int, record: int) -> str:
    return f"the file is cut short: {held} of the {record} bytes of an event"


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
    stride = array.strides[0] if len(array) else 0
    return _columns(path, columns, lambda event: start + stride * event, damage)


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
    return _columns(path, [column[:whole] for column in columns], lambda event: None, cut)


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
    row = dtype.itemsize
    for side in shape[1:]:
        row *= side
    held = len(raw) - start
    if held >= row * shape[0]:
        count = shape[0]
        array = np.frombuffer(raw, dtype, row * count // dtype.itemsize, start)
        return array.reshape(shape, order="F" if fortran else "C"), start, None
    count = 0 if (fortran and len(shape) > 1) or not row else held // row
    array = np.frombuffer(raw, dtype, row * count // dtype.itemsize, start)
    why = f"{name}promises {row * shape[0]:,} bytes of data, the file holds {held:,}"
    return array.reshape(count, *shape[1:]), start, (start + row * count, why)


def _columns(
    path: Path,
    columns: list[np.ndarray],
    offset: Callable[[int], int | None],
    damage: tuple[int | None, str] | None,
) -> Columns:
    """Columns of any numbers as integers. DamagedEvents: a value is no whole number, or too large."""
    whole = []
    for name, column in zip("txyp", columns, strict=True):
        if column.dtype.kind == "f":
            exact = column.astype(np.float64)  # 2^63 is beyond half precision
            bad = ~(np.abs(exact) < 2.0**63) | (exact != np.floor(exact))
        else:
            bad = column > (1 << 63) - 1 if column.dtype.kind == "u" else np.zeros(1, bool)
        if bad.any():
            at = int(np.argmax(bad))
            why = f"{name} = {column[at]} is not a whole number of 64 bits"
            raise DamagedEvents(path, offset(at), at, why)
        whole.append(column.astype(np.int64))
    t, x, y, p = whole
    if len(p) and (p.min() < -1 or p.max() > 1):
        at = int(np.argmax((p < -1) | (p > 1)))
        why = f"p = {p[at]} is no polarity; accepted: 0 and 1, or -1 and 1"
        raise DamagedEvents(path, offset(at), at, why)
    return Columns(t, x, y, (p > 0).astype(np.uint8), offset, damage)
