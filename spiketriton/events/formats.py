"""Files of events: `read_events` for AEDAT 2, 3.1 and 4, 5-byte .bin, .npy, .npz and Prophesee.

aedat2   DVS128 by jAER (CIFAR10-DVS): text lines that begin with #, then pairs of big-endian uint32,
         an address (bit 0 polarity, 0 is ON; bits 1-7 and 8-14 the pixel; bit 15 an external signal,
         which is no event) and microseconds, which may wrap around. Turned as CIFAR10-DVS is: x is
         127 minus bits 8-14, y is 127 minus bits 1-7.
aedat3   AEDAT 3.1 (DVS128 Gesture): text up to "#!END-HEADER", then packets: a header of 28 bytes and
         its events, little-endian. Polarity events (type 1) are 8 bytes: bit 0 valid, bit 1 polarity,
         bits 2-16 y, bits 17-31 x; 31 bits of microseconds, with the packet's overflows above. Other
         packets and events that the camera's filters marked as invalid are left out, as the format asks.
bin      ATIS (N-MNIST, N-Caltech101): 5 bytes an event: x, y, then a bit of polarity and 23 bits of
         microseconds, big-endian. y = 240 is no event: from there on, time is 8192 microseconds later.
npy      a structured array with the fields t, x, y, p, or an array [N, 4] of these columns.
npz      the arrays t, x, y, p.
aedat4: see aedat4.py. dat, evt2, evt3: see prophesee.py.

Sources: https://docs.inivation.com/software/software-advanced-usage/file-formats (AEDAT 2 and 3.1);
https://www.garrickorchard.com/datasets/n-mnist (.bin, and the overflows in its Matlab reader).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from spiketriton.events.aedat4 import MARK, read_aedat4
from spiketriton.events.arrays import EVENT, Columns, DamagedEvents, read_npy, read_npz, records
from spiketriton.events.prophesee import format_of, read_dat, read_evt2, read_evt3
from spiketriton.system.errors import UserError

Sensor = tuple[int, int]  # height, width in pixels
Backward = Literal["refuse", "sort"]

DVS128: Sensor = (128, 128)
ATIS_OVERFLOW_ROW, ATIS_OVERFLOW_US = 240, 8192


def read_events(
    path: str | Path,
    format: str = "auto",
    *,
    sensor: Sensor | None = None,
    backward: Backward = "refuse",
) -> np.ndarray:
    """The events of a file: an array of `EVENT`, ordered by time.

    format: a key of `FORMATS`; "auto": by its ending and first bytes. sensor: height and width; events outside are
    refused; None: what the format can express. backward: when time runs backward, "refuse" the file or "sort" its
    events. UserError: the file cannot be read, or the format is not known. DamagedEvents: it is cut short, or holds
    events that cannot be.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise UserError(f'format "{format}": accepted: auto, {", ".join(FORMATS)}')
    if backward not in ("refuse", "sort"):
        raise UserError(f'backward = "{backward}": accepted: refuse, sort')
    if sensor is not None and not (
        len(sensor) == 2 and all(isinstance(side, int | np.integer) and side > 0 for side in sensor)
    ):
        raise UserError(f"sensor = {sensor!r}: accepted: height and width in pixels, as (260, 346)")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    found = FORMATS[_format_of(path, raw) if format == "auto" else format]
    if not raw.startswith(found.mark):
        start = raw[: len(found.mark)]
        raise DamagedEvents(path, 0, 0, f"it begins with {start!r}, not with {found.mark!r}")
    return _checked(path, found.read(path, raw), sensor or found.sensor, backward)


def _format_of(path: Path, raw: bytes) -> str:
    ending = path.suffix.lower()
    if ending in (".aedat", ".aedat4") or raw.startswith(b"#!AER-DAT"):
        marks = ((name, format.mark) for name, format in FORMATS.items() if format.mark)
        found = next((name for name, mark in marks if raw.startswith(mark)), None)
        accepted = "#!AER-DAT2., 3. and 4.0"
    elif ending == ".raw":
        found, accepted = format_of(raw), "% evt 2.0 and % evt 3.0"
    elif ending[1:] in FORMATS:
        return ending[1:]
    else:
        raise UserError(
            f"{path}: unknown file ending; accepted: .aedat, .aedat4, .bin, .dat, .npy, .npz, .raw"
        )
    if found is None:
        begins = f"begins with {raw[:14]!r}" if raw else "is empty"
        raise UserError(f"{path} {begins}; accepted of {ending}: {accepted}")
    return found


def _checked(path: Path, found: Columns, sensor: Sensor | None, backward: Backward) -> np.ndarray:
    """The columns as one array; refuses the first event that cannot be, then the end of the file."""
    t = found.t
    behind = t[1:] < t[:-1]
    wrong: list[tuple[int, str]] = []
    height, width = sensor or (1 << 16, 1 << 16)
    for name, values, limit in (("x", found.x, width), ("y", found.y, height)):
        outside = (values < 0) | (values >= limit)
        if outside.any():
            at = int(np.argmax(outside))
            size = f"the sensor of {width} x {height}" if sensor else "0 to 65535"
            wrong.append((at, f"{name} = {values[at]} is outside {size}"))
    if backward == "refuse" and behind.any():
        at = int(np.argmax(behind)) + 1
        why = f'time runs backward, from {t[at - 1]} to {t[at]} µs; backward = "sort" accepts that'
        wrong.append((at, why))
    if wrong:
        raise found.damaged(path, *min(wrong))
    if found.damage is not None:
        raise DamagedEvents(path, found.damage[0], len(t), found.damage[1])
    events = np.empty(len(t), EVENT)
    for name in ("t", "x", "y", "p"):
        events[name] = getattr(found, name)
    return events[np.argsort(t, kind="stable")] if behind.any() else events


# AEDAT 2


def _read_aedat2(path: Path, raw: bytes) -> Columns:
    start = 0
    while raw[start : start + 1] == b"#":
        start = raw.find(b"\n", start) + 1
        if not start:
            raise DamagedEvents(path, len(raw), 0, "the file is cut short within its text")
    words, at, damage = records(raw, start, [("address", ">u4"), ("stamp", ">u4")])
    strange = words["address"] > 0xFFFF
    if strange.any():
        count = int(np.argmax(strange))
        why = f"the address {words['address'][count]:#010x} is not one of a DVS128"
        words, at, damage = words[:count], at[:count], (start + 8 * count, why)
    address = words["address"].astype(np.uint16)
    found = Columns(
        t=_unwrapped(words["stamp"].astype(np.uint32)),
        x=127 - (address >> 8 & 127).astype(np.int16),
        y=127 - (address >> 1 & 127).astype(np.int16),
        p=(address & 1 ^ 1).astype(np.uint8),
        at=at,
        damage=damage,
    )
    return found.only(address & 0x8000 == 0)  # without external signals


def _unwrapped(stamp: np.ndarray) -> np.ndarray:
    """uint32 microseconds that wrap around every 71 minutes -> int64, from the first on."""
    steps = np.empty(len(stamp), np.int64)
    steps[:1] = stamp[:1]
    steps[1:] = np.diff(stamp).view(np.int32)  # modulo 2^32: the nearer way, forward or backward
    return np.cumsum(steps, out=steps)


# AEDAT 3.1

_PACKET = struct.Struct("<hhiiiiii")
_POLARITY, _EVENT_BYTES = 1, 8
_END_OF_TEXT = b"#!END-HEADER\r\n"


def _read_aedat3(path: Path, raw: bytes) -> Columns:
    at = raw.find(_END_OF_TEXT) + len(_END_OF_TEXT)
    if at < len(_END_OF_TEXT):
        raise DamagedEvents(path, len(raw), 0, "its text has no line #!END-HEADER")
    nothing = np.empty(0, np.int64)
    data, times, places = [nothing.astype(np.uint32)], [nothing], [nothing]
    damage: tuple[int, str] | None = None
    while at < len(raw) and damage is None:
        held = len(raw) - at - _PACKET.size
        if held < 0:
            why = f"{held + _PACKET.size} of the {_PACKET.size} bytes of a packet's header"
            damage = at, f"the file is cut short: {why}"
            break
        kind, _, size, stamp, overflow, capacity, number, _ = _PACKET.unpack_from(raw, at)
        if why := _impossible_packet(kind, size, stamp, overflow, capacity, number):
            damage = at, why
            break
        at += _PACKET.size
        whole = min(number, held // size)
        if size * capacity > held:
            promise = f"a packet promises {size * capacity:,} bytes, the file holds {held:,}"
            damage = at + whole * size, promise
        if kind == _POLARITY:
            words = np.frombuffer(raw, "<u4", 2 * whole, at).reshape(-1, 2)
            place = np.arange(at, at + _EVENT_BYTES * whole, _EVENT_BYTES)
            if len(late := np.flatnonzero(words[:, 1] >> 31)):
                stop = late[0]
                damage = (
                    int(place[stop]),
                    f"the time stamp {words[stop, 1]:#010x} has more than 31 bits",
                )
                words, place = words[:stop], place[:stop]
            data.append(words[:, 0])
            times.append(overflow << 31 | words[:, 1].astype(np.int64))
            places.append(place)
        at += size * capacity
    word = np.concatenate(data)
    found = Columns(
        t=np.concatenate(times),
        x=word >> 17,
        y=word >> 2 & 0x7FFF,
        p=(word >> 1 & 1).astype(np.uint8),
        at=np.concatenate(places),
        damage=damage,
    )
    return found.only(word & 1 != 0)


def _impossible_packet(
    kind: int, size: int, stamp: int, overflow: int, capacity: int, number: int
) -> str:
    """What cannot be in the header of a packet, in words."""
    if size < 1 or capacity < 0 or not 0 <= number <= capacity or overflow < 0 or kind < 0:
        return (
            f"a packet of type {kind} has {number} of {capacity} events of {size} bytes, "
            f"overflow {overflow}"
        )
    if kind == _POLARITY and (size, stamp) != (_EVENT_BYTES, 4):
        return f"polarity events of {size} bytes with the time at byte {stamp}; known: 8 and 4"
    return ""


# ATIS, 5 bytes an event


def _read_bin(path: Path, raw: bytes) -> Columns:
    rows, at, damage = records(raw, 0, [("x", "u1"), ("y", "u1"), ("high", "u1"), ("low", ">u2")])
    overflows = rows["y"] == ATIS_OVERFLOW_ROW
    t = (rows["high"] & 127).astype(np.int64) << 16 | rows["low"]
    t += np.cumsum(overflows) * ATIS_OVERFLOW_US
    return Columns(t, rows["x"], rows["y"], rows["high"] >> 7, at, damage).only(~overflows)


def write_bin(events: np.ndarray) -> bytes:
    """The file of an array of `EVENT`, ordered by time."""
    late = np.maximum(events["t"] - (1 << 23) + ATIS_OVERFLOW_US, 0) // ATIS_OVERFLOW_US
    before = np.diff(late, prepend=0)  # overflows that must precede each event
    t = events["t"] - late * ATIS_OVERFLOW_US
    rows = np.zeros((len(events), 5), np.uint8)
    rows[:, 0], rows[:, 1] = events["x"], events["y"]
    rows[:, 2] = events["p"] << 7 | (t >> 16).astype(np.uint8)
    rows[:, 3], rows[:, 4] = t >> 8 & 255, t & 255
    marks = np.repeat(np.arange(len(events)), before)
    mark = np.array([0, ATIS_OVERFLOW_ROW, 0, 0, 0], np.uint8)
    return np.insert(rows, marks, mark, axis=0).tobytes()


@dataclass(frozen=True)
class Format:
    """A file format: how it is read."""

    read: Callable[[Path, bytes], Columns]
    ending: str
    mark: bytes = b""  # how every file of it begins
    sensor: Sensor | None = None  # where a file of this format is always of one camera


FORMATS = {
    "aedat2": Format(_read_aedat2, ".aedat", b"#!AER-DAT2.", DVS128),
    "aedat3": Format(_read_aedat3, ".aedat", b"#!AER-DAT3."),
    "bin": Format(_read_bin, ".bin"),
    "npy": Format(read_npy, ".npy"),
    "npz": Format(read_npz, ".npz"),
    "dat": Format(read_dat, ".dat"),
    "evt2": Format(read_evt2, ".raw"),
    "evt3": Format(read_evt3, ".raw"),
    "aedat4": Format(read_aedat4, ".aedat4", MARK),
}
