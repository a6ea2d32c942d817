"""Files of Prophesee's cameras, little-endian behind text lines that begin with %: .dat, and .raw as EVT 2.0 or 3.0.

dat      two bytes (type, and size of an event: 8), then uint32 microseconds and uint32: bits 0-13 x, 14-27 y, 28
         polarity.
evt2     words of 32 bits, the highest 4 a type. 0 and 1 are events of that polarity: 6 low bits of microseconds, then
         11 bits of x and 11 of y; 8 has the 28 high bits. Others (triggers, statistics) are no events.
evt3     words of 16 bits, the highest 4 what they set: 0 y, 6 and 8 the low and high 12 bits of microseconds, 2 an
         event at x, 3 the first x of vectors, 4 and 5 a bit for each of the next 12 or 8 pixels. Bit 11 of 2 and 3
         is the polarity.

Events before the first time are left out: a recording may begin anywhere. Source: docs.prophesee.ai, data encoding
formats.
"""

from pathlib import Path

import numpy as np

from spiketriton.events.arrays import Columns, DamagedEvents, records


def text_of(raw: bytes) -> bytes:
    """The lines in front: to "% end", or to the first that does not begin with %."""
    start = 0
    while raw[start : start + 1] == b"%":
        end = raw.find(b"\n", start) + 1 or len(raw)
        line, start = raw[start:end].strip(), end
        if line == b"% end":
            break
    return raw[:start]


def format_of(raw: bytes) -> str | None:
    """ "evt2", "evt3", or None."""
    text = text_of(raw).lower()
    names = {"evt2": (b"evt 2.0", b"format evt2;"), "evt3": (b"evt 3.0", b"format evt3;")}
    return next((name for name, says in names.items() if any(s in text for s in says)), None)


def read_dat(path: Path, raw: bytes) -> Columns:
    start = len(text_of(raw)) + 2
    if len(raw) < start or raw[start - 1] != 8:
        size = raw[start - 1] if len(raw) >= start else "no"
        raise DamagedEvents(path, min(start - 1, len(raw)), 0, f"events of {size} bytes; known: 8")
    words, at, damage = records(raw, start, [("t", "<u4"), ("place", "<u4")])
    place = words["place"]
    return Columns(
        t=words["t"].astype(np.int64),
        x=(place & 0x3FFF).astype(np.int32),
        y=(place >> 14 & 0x3FFF).astype(np.int32),
        p=(place >> 28 & 1).astype(np.uint8),
        at=at,
        damage=damage,
    )


def read_evt2(path: Path, raw: bytes) -> Columns:
    words, at, damage = records(raw, len(text_of(raw)), "<u4", "a word")
    kind = words >> 28
    high = _last(kind == 8, (words & 0x0FFFFFFF).astype(np.int64))
    place = np.flatnonzero((kind <= 1) & (high >= 0))
    word = words[place]
    return Columns(
        t=high[place] << 6 | word >> 22 & 0x3F,
        x=(word >> 11 & 0x7FF).astype(np.int32),
        y=(word & 0x7FF).astype(np.int32),
        p=kind[place].astype(np.uint8),
        at=at[place],
        damage=damage,
    )


def read_evt3(path: Path, raw: bytes) -> Columns:
    words, at, damage = records(raw, len(text_of(raw)), "<u2", "a word")
    words = words.astype(np.int64)
    kind, low12, x11 = words >> 12, words & 0xFFF, words & 0x7FF
    highs = low12[kind == 8]
    wraps = np.zeros(len(words), np.int64)  # of 24 bits, 16.8 s
    wraps[kind == 8] = np.cumsum(np.diff(highs, prepend=highs[:1]) < -2048) << 24
    high = _last(kind == 8, wraps | low12 << 12)
    t = high | _last(kind == 6, low12)
    y, first = _last(kind == 0, x11), _last(kind == 3, np.arange(len(words)))
    known = (high >= 0) & (y >= 0) & (_last(kind == 6, low12) >= 0)
    width = np.select([kind == 4, kind == 5], [12, 8], 0)
    before = np.cumsum(width) - width
    vector = np.flatnonzero((width > 0) & known & (first >= 0))
    bits = words[vector, None] >> np.arange(12) & 1
    row, bit = np.nonzero(bits & (np.arange(12) < width[vector, None]))
    single = np.flatnonzero((kind == 2) & known)
    place = np.concatenate([single, vector[row]])
    base = first[vector[row]]
    x = np.concatenate([x11[single], x11[base] + before[vector[row]] - before[base] + bit])
    p = np.concatenate([words[single], words[base]]) >> 11 & 1
    order = np.argsort(place, kind="stable")
    place = place[order]
    return Columns(
        t=t[place],
        x=x[order],
        y=y[place],
        p=p[order].astype(np.uint8),
        at=at[place],
        damage=damage,
    )


def _last(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """At each word the value of the last chosen one up to it; -1 before the first."""
    at = np.maximum.accumulate(np.where(chosen, np.arange(len(chosen)), -1))
    return np.where(at >= 0, values[at], -1) if len(values) else np.empty(0, np.int64)
