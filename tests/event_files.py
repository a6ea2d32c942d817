"""Files of events in each format, as cameras and programs write them."""

import io
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from spiketriton.events.aedat4 import _EVENT, MARK
from spiketriton.events.formats import (
    _END_OF_TEXT,
    _EVENT_BYTES,
    _PACKET,
    _POLARITY,
    ATIS_OVERFLOW_ROW,
    write_bin,
)

EVENTS_A_PACKET = 8192


def write_aedat2(events: np.ndarray) -> bytes:
    words = np.empty((len(events), 2), ">u4")
    column, row = 127 - events["x"].astype(np.uint32), 127 - events["y"].astype(np.uint32)
    words[:, 0] = column << 8 | row << 1 | (events["p"] ^ 1)
    words[:, 1] = events["t"]
    return b"#!AER-DAT2.0\r\n# written by spiketriton\r\n" + words.tobytes()


def write_aedat3(events: np.ndarray) -> bytes:
    text = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n" + _END_OF_TEXT
    parts = [text]
    words = np.empty((len(events), 2), "<u4")
    x, y, p = (events[name].astype(np.uint32) for name in ("x", "y", "p"))
    words[:, 0] = x << 17 | y << 2 | p << 1 | 1
    words[:, 1] = events["t"] & 0x7FFFFFFF
    overflow = events["t"] >> 31
    cuts = {*range(0, len(events), EVENTS_A_PACKET), *(np.flatnonzero(np.diff(overflow)) + 1)}
    for start, end in pairwise([*sorted(int(cut) for cut in cuts), len(events)]):
        n, high = end - start, int(overflow[start])
        parts.append(_PACKET.pack(_POLARITY, 1, _EVENT_BYTES, 4, high, n, n, n))
        parts.append(words[start:end].tobytes())
    return b"".join(parts)


def write_npy(events: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, events, allow_pickle=False)
    return buffer.getvalue()


def write_npz(events: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: events[name] for name in "txyp"})
    return buffer.getvalue()


def write_dat(events: np.ndarray) -> bytes:
    words = np.empty((len(events), 2), "<u4")
    x, y, p = (events[name].astype(np.uint32) for name in ("x", "y", "p"))
    words[:, 0], words[:, 1] = events["t"], x | y << 14 | p << 28
    return b"% Data file containing CD events.\n% Version 2\n\x0c\x08" + words.tobytes()


def write_evt2(events: np.ndarray) -> bytes:
    t, x, y, p = (events[name].astype(np.uint64) for name in ("t", "x", "y", "p"))
    words = (p << 28 | (t & 0x3F) << 22 | x << 11 | y).astype("<u4")
    changes = np.flatnonzero(np.diff(t >> 6, prepend=np.uint64(1 << 63)))
    highs = (8 << 28 | (t[changes] >> 6)).astype("<u4")
    return b"% evt 2.0\n% end\n" + np.insert(words, changes, highs).tobytes()


def write_evt3(events: np.ndarray) -> bytes:
    t, x, y, p = (events[name].astype(np.int64) for name in ("t", "x", "y", "p"))
    words = np.stack([8 << 12 | t >> 12, 6 << 12 | t & 0xFFF, y, 2 << 12 | p << 11 | x], axis=1)
    return b"% evt 3.0\n% end\n" + words.astype("<u2").tobytes()


def write_aedat4(events: np.ndarray) -> bytes:
    """Not compressed, without a table of packets."""
    width, height = (int(events[side].max(initial=0)) + 1 for side in "xy")
    attribute = '<attr key="{}" type="{}">{}</attr>'.format
    said = (
        '<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        '<node name="0" path="/mainloop/Recorder/outInfo/0/">'
        + attribute("compression", "string", "NONE")
        + attribute("originalModuleName", "string", "spiketriton")
        + attribute("originalOutputName", "string", "events")
        + attribute("typeIdentifier", "string", "EVTS")
        + '<node name="info" path="/mainloop/Recorder/outInfo/0/info/">'
        + attribute("sizeX", "int", width)
        + attribute("sizeY", "int", height)
        + "</node></node></node></dv>"
    ).encode()
    # root table at byte 20, its layout at 8: compression, table of packets, streams
    header = struct.pack("<I4s5H2xiiqII", 20, b"IOHE", 10, 20, 4, 8, 16, 12, 0, -1, 4, len(said))
    header += said + b"\0"
    parts = [MARK, struct.pack("<I", len(header)), header]
    rows = np.zeros(len(events), _EVENT)
    for name in "txyp":
        rows[name] = events[name]
    for start in range(0, len(rows), EVENTS_A_PACKET):
        body = rows[start : start + EVENTS_A_PACKET]
        # root table at byte 16, its layout at 8: the vector right behind it
        front = struct.pack("<I4s3H2xiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(body))
        size = len(front) + body.nbytes
        parts += [struct.pack("<iiI", 0, size + 4, size), front, body.tobytes()]
    return b"".join(parts)


FILES: dict[str, tuple[Callable[[np.ndarray], bytes], tuple[int, int, int]]] = {
    "aedat2": (write_aedat2, (128, 128, 1 << 32)),
    "aedat3": (write_aedat3, (1 << 15, 1 << 15, 1 << 62)),
    "bin": (write_bin, (ATIS_OVERFLOW_ROW, 256, 1 << 40)),
    "npy": (write_npy, (1 << 16, 1 << 16, 1 << 62)),
    "npz": (write_npz, (1 << 16, 1 << 16, 1 << 62)),
    "dat": (write_dat, (1 << 14, 1 << 14, 1 << 32)),
    "evt2": (write_evt2, (1 << 11, 1 << 11, 1 << 34)),
    "evt3": (write_evt3, (1 << 11, 1 << 11, 1 << 24)),
    "aedat4": (write_aedat4, (1 << 15, 1 << 15, 1 << 62)),
}
"""How each format is written; its height, width and microseconds."""


def write_events(path: Path, events: np.ndarray, format: str) -> None:
    """An array of `EVENT`, ordered by time and within the limits, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FILES[format][0](events))
