"""AEDAT 4.0, the files of iniVation's DV: "#!AER-DAT4.0", a header, then packets of streams.

All buffers are FlatBuffers behind their size (uint32). The header (IOHE) has the compression, the byte of the table of
packets behind the last one (-1: none), and the streams as XML. A packet has its stream and its bytes (int32 each), then
a buffer, perhaps compressed as one frame of LZ4 or Zstandard. Events (EVTS) are 16 bytes: int64 microseconds, int16 x
and y, a byte of polarity. Those of the first stream of events are read; frames, IMU and triggers are passed over.

Source: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-4.0.html and the schemas there.
"""

import struct
from pathlib import Path

import numpy as np

from spiketriton.events.arrays import Columns, DamagedEvents
from spiketriton.system.errors import need, one_line

MARK = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype(
    {"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "u1"], "offsets": [0, 8, 10, 12],
     "itemsize": 16}
)  # fmt: skip
_COMPRESSIONS = ("none", "lz4", "lz4", "zstandard", "zstandard")
_LARGEST = 1 << 28  # bytes of a packet: 16 million events


class _Impossible(Exception):
    """A buffer that does not hold what its offsets say."""


def read_aedat4(path: Path, raw: bytes) -> Columns:
    try:
        header, at = _sized(raw, len(MARK))
        compression = _field(header, 0, "<i", 0)
        table = _field(header, 1, "<q", -1)
        if not 0 <= compression < len(_COMPRESSIONS):
            raise _Impossible(f"compression {compression}; known: 0 to {len(_COMPRESSIONS) - 1}")
    except _Impossible as error:
        raise DamagedEvents(path, len(MARK), 0, f"its header: {error}") from None
    packer = _COMPRESSIONS[compression]
    end = len(raw) if table < at else min(table, len(raw))
    chunks, places = [np.empty(0, _EVENT)], [np.empty(0, np.int64)]
    damage: tuple[int, str] | None = None
    kinds: dict[int, bool] = {}  # of each stream, whether its events are read
    while at < end and damage is None:
        held = end - at - 8
        if held < 0:
            damage = (at, f"the file is cut short: {held + 8} of the 8 bytes in front of a packet")
            break
        stream, size = struct.unpack_from("<ii", raw, at)
        if size < 0 or size > held:
            damage = (at, f"a packet promises {size:,} bytes, the file holds {held:,}")
            break
        if kinds.get(stream, True):
            try:
                buffer, _ = _sized(_unpacked(path, packer, raw[at + 8 : at + 8 + size]), 0)
                if stream not in kinds:
                    kinds[stream] = buffer[4:8] == b"EVTS" and not any(kinds.values())
                if kinds[stream]:
                    chunks.append(_events(buffer))
                    places.append(np.full(len(chunks[-1]), at))
            except _Impossible as error:
                damage = (at, f"a packet of stream {stream}: {error}")
        at += 8 + size
    if damage is None and table > len(raw):
        damage = (len(raw), f"the file is cut short: its table of packets is at byte {table:,}")
    events = np.concatenate(chunks)
    return Columns(
        t=events["t"],
        x=events["x"],
        y=events["y"],
        p=(events["p"] != 0).astype(np.uint8),
        at=np.concatenate(places),
        damage=damage,
    )


def _unpacked(path: Path, packer: str, body: bytes) -> bytes:
    """The content of a packet. UserError: its decompressor is not installed."""
    if packer == "none":
        return body
    module = need("lz4.frame" if packer == "lz4" else packer, "events", f"{path}, compressed,")
    try:
        if packer == "lz4":
            found = module.LZ4FrameDecompressor().decompress(body, max_length=_LARGEST + 1)
        else:
            found = module.ZstdDecompressor().stream_reader(body).read(_LARGEST + 1)
    except (RuntimeError, EOFError, getattr(module, "ZstdError", RuntimeError)) as error:
        raise _Impossible(f"its {packer} frame is damaged ({one_line(error)[:80]})") from None
    if len(found) > _LARGEST:
        raise _Impossible(f"it holds more than {_LARGEST:,} bytes")
    return bytes(found)


def _sized(raw: bytes, at: int) -> tuple[bytes, int]:
    """The FlatBuffer at a byte, and the byte behind it."""
    size = _number(raw, "<I", at)
    end = at + 4 + size
    if end > len(raw):
        raise _Impossible(f"{size:,} bytes are promised, {len(raw) - at - 4:,} are there")
    return raw[at + 4 : end], end


def _number(buffer: bytes, kind: str, at: int) -> int:
    if not 0 <= at <= len(buffer) - struct.calcsize(kind):
        raise _Impossible(f"an offset points to byte {at:,} of {len(buffer):,}")
    return int(struct.unpack_from(kind, buffer, at)[0])


def _place(buffer: bytes, index: int) -> int:
    """Where a field of the root table is; 0 where it is left out."""
    table = _number(buffer, "<I", 0)
    layout = table - _number(buffer, "<i", table)
    if 4 + 2 * index >= _number(buffer, "<H", layout):
        return 0
    offset = _number(buffer, "<H", layout + 4 + 2 * index)
    return table + offset if offset else 0


def _field(buffer: bytes, index: int, kind: str, default: int) -> int:
    place = _place(buffer, index)
    return _number(buffer, kind, place) if place else default


def _events(buffer: bytes) -> np.ndarray:
    place = _place(buffer, 0)
    if not place:
        return np.empty(0, _EVENT)
    vector = place + _number(buffer, "<I", place)
    count = _number(buffer, "<I", vector)
    if vector + 4 + 16 * count > len(buffer):
        raise _Impossible(f"{count:,} events are promised in {len(buffer):,} bytes")
    return np.frombuffer(buffer, _EVENT, count, vector + 4)
