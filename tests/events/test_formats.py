import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from spiketriton.events import EVENT, FORMATS, read_events
from spiketriton.system.errors import UserError
from tests.event_files import FILES, write_events
from tests.events.support import spikingjelly, stream

NAMES = sorted(FORMATS)


def file_of(folder: Path, format: str, events: np.ndarray) -> Path:
    path = folder / f"recording{FORMATS[format].ending}"
    write_events(path, events, format)
    return path


def refused(path: Path, *args: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_events(path, *args, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def place(message: str) -> tuple[int, int]:
    """Byte and number of events that a message about damage names."""
    found = re.search(r"damaged at byte ([\d,]+), after ([\d,]+) events", message)
    assert found, message
    byte, events = (int(number.replace(",", "")) for number in found.groups())
    return byte, events


@pytest.mark.parametrize("format", NAMES)
def test_what_is_written_is_read_back(format, tmp_path):
    _, (height, width, end) = FILES[format]
    largest = np.zeros(3, EVENT)
    largest["t"], largest["x"], largest["y"] = [0, end // 2 - 1, end - 1], width - 1, height - 1
    if format == "bin":
        largest["t"] = [0, 2**23 - 1, 2**23 + 5 * 8192]
    if format == "aedat2":
        largest["t"] = [2**31 + 5, 2**32 - 2, 2**32 - 1]
    for events in (stream(0), stream(1), stream(20_000), largest):
        path = file_of(tmp_path, format, events)
        for read in (read_events(path), read_events(str(path), format)):
            assert read.dtype == EVENT
            assert np.array_equal(read, events)


@pytest.mark.parametrize("format", NAMES)
def test_a_file_cut_anywhere_is_named_or_holds_a_prefix(format, tmp_path):
    count = 12
    events = stream(count)
    path = file_of(tmp_path, format, events)
    whole = path.read_bytes()
    silent = 0
    # of npz, which is long and stored as one thing, at a prime distance
    for size in range(0, len(whole), 13 if format == "npz" else 1):
        path.write_bytes(whole[:size])
        try:
            read = read_events(path, format)
        except UserError as error:
            message = str(error)
        else:
            silent += 1
            assert len(read) < count
            assert np.array_equal(read, events[: len(read)])
            continue
        if format == "npz":  # its index is at the end: nothing is found without it
            assert "is damaged, after 0 events: " in message
        else:
            byte, before = place(message)
            assert byte <= size
            assert before <= min(count, size // 4)  # no format stores an event in fewer bytes
    # formats without a count of their events end after any of them
    known = {"bin": count, "aedat2": count + 1, "aedat3": 1, "aedat4": 1, "dat": count}
    # 16 bytes of text, and words of which several make an event
    known |= {"evt2": 16 + (len(whole) - 16) // 4, "evt3": 16 + 4 * count}
    assert silent == known.get(format, 0)


def test_huge_counts_are_refused_without_their_memory(tmp_path):
    path = file_of(tmp_path, "aedat3", stream(10))
    raw = bytearray(path.read_bytes())
    header = raw.index(b"#!END-HEADER\r\n") + 14
    for capacity, number in ((2**31 - 1, 2**31 - 1), (5, 10), (-1, -1)):
        raw[header + 16 : header + 24] = struct.pack("<ii", capacity, number)
        path.write_bytes(raw)
        message = refused(path)
        assert ("promises" if capacity > 10 else "a packet of type 1") in message
        assert place(message)[1] == (10 if capacity > 10 else 0)


@pytest.mark.parametrize("format", NAMES)
def test_an_event_outside_the_sensor_is_named(format, tmp_path):
    events = stream(50, side=30)
    events["x"][20], events["y"][31] = 30, 33
    path = file_of(tmp_path, format, events)
    message = refused(path, sensor=(34, 30))
    assert "x = 30 is outside the sensor of 30 x 34" in message
    assert ", after 20 events: " in message
    if format not in ("npz", "evt2", "evt3", "aedat4"):
        byte, _ = place(message)
        each = {"bin": 5, "npy": EVENT.itemsize}.get(format, 8)
        assert byte == path.stat().st_size - each * 30
    assert "y = 33 is outside the sensor of 31 x 33" in refused(path, sensor=(33, 31))
    assert len(read_events(path, sensor=(34, 31))) == 50


@pytest.mark.parametrize("format", ["aedat2", "npz"])
def test_time_that_runs_backward_is_refused_or_sorted(format, tmp_path):
    events = stream(50, end=9000)
    events["t"] = np.arange(50) * 100
    events["t"][30:32] = 7, 9
    path = tmp_path / f"backward{FORMATS[format].ending}"
    write_events(path, events, format)
    message = refused(path)
    assert "time runs backward, from 2900 to 7" in message
    assert ", after 30 events: " in message
    assert 'backward = "sort"' in message
    read = read_events(path, backward="sort")
    assert np.array_equal(read, events[np.argsort(events["t"], kind="stable")])


@pytest.mark.parametrize(
    ("format", "module", "reader"),
    [
        ("aedat2", "cifar10_dvs", "_load_origin_data"),
        ("aedat3", "utils", "load_aedat_v3"),
        ("bin", "utils", "load_ATIS_bin"),
    ],
)
def test_files_are_read_as_spikingjelly_reads_them(format, module, reader, tmp_path):
    events = stream(20_000, side=128)
    if format == "aedat3":
        events["t"] += 2**31 - 150_000  # the 31 bits overflow on the way
    path = file_of(tmp_path, format, events)
    ours, theirs = read_events(path), getattr(spikingjelly(module), reader)(path)
    for field in "txyp":
        assert np.array_equal(ours[field], theirs[field].astype(np.int64)), field


def test_aedat2_unwraps_time_and_leaves_out_external_signals(tmp_path):
    words = np.array([[0, 2**32 - 2], [0x8000, 2**32 - 1], [1, 3]], ">u4")
    path = tmp_path / "wraps.aedat"
    path.write_bytes(b"#!AER-DAT2.0\r\n" + words.tobytes())
    read = read_events(path)
    assert read["t"].tolist() == [2**32 - 2, 2**32 + 3]
    assert read["p"].tolist() == [1, 0]
    words[2, 0] = 0x10001
    path.write_bytes(b"#!AER-DAT2.0\r\n" + words.tobytes())
    message = refused(path)
    assert place(message) == (14 + 16, 1)
    assert "0x00010001" in message


def test_aedat3_leaves_out_other_packets_and_invalid_events(tmp_path):
    events = stream(10)
    path = file_of(tmp_path, "aedat3", events)
    raw = bytearray(path.read_bytes())
    header = raw.index(b"#!END-HEADER\r\n") + 14
    special = struct.pack("<hhiiiiii", 0, 1, 12, 4, 0, 2, 2, 2) + bytes(24)
    raw[header + 28 + 8 * 4] &= 0xFE
    raw[header:header] = special
    path.write_bytes(raw)
    assert np.array_equal(read_events(path), np.delete(events, 4))
    raw[header + len(special) + 28 + 8 * 6 + 7] |= 0x80
    path.write_bytes(raw)
    message = refused(path)
    assert place(message) == (header + len(special) + 28 + 8 * 6, 5)
    assert "more than 31 bits" in message


@pytest.mark.parametrize("dtype", [">i8", "<u2", "<f8", "<f2"])
@pytest.mark.filterwarnings("error")
def test_numbers_of_any_type_are_read(dtype, tmp_path):
    events = stream(100, end=2_000)  # whole numbers up to 2048 fit into half precision
    table = np.stack([events[name].astype(np.int64) for name in "txyp"], axis=1).astype(dtype)
    npy, npz = tmp_path / "table.npy", tmp_path / "table.npz"
    for order in "CF":
        np.save(npy, np.asarray(table, order=order))
        assert np.array_equal(read_events(npy), events)
    columns = dict(zip("txyp", table.T, strict=True))
    for p in (table[:, 3], events["p"].astype(bool), 2 * events["p"].astype(np.int8) - 1):
        np.savez(npz, **columns | {"p": p})
        assert np.array_equal(read_events(npz), events)
    np.savez(npz, **columns | {"p": events["p"] + np.uint8(1)})
    assert "p = 2 is no polarity" in refused(npz)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.5, "t = 0.5"), (np.nan, "t = nan"), (np.inf, "t = inf"), (1e19, "t = 1e+19")],
)
def test_times_that_are_no_whole_numbers_are_refused(value, words, tmp_path):
    columns = {name: np.zeros(3) for name in "txyp"}
    columns["t"][1] = value
    np.savez(tmp_path / "odd.npz", **columns)
    message = refused(tmp_path / "odd.npz")
    assert words in message
    assert "after 1 events" in message


def test_other_contents_are_named(tmp_path):
    npy, npz = tmp_path / "a.npy", tmp_path / "a.npz"
    for array, words in (
        (np.zeros((5, 3)), "[5, 3]"),
        (np.zeros(5, [("t", "i8"), ("x", "i8")]), "the fields t, x"),
        (np.array(["text"]), "<U4"),
        (np.zeros(()), "shape []"),
    ):
        np.save(npy, array)
        assert words in refused(npy)
    np.save(npy, np.array([{}], dtype=object), allow_pickle=True)
    assert "object" in refused(npy)
    np.savez(npz, t=np.zeros(3), x=np.zeros(3), y=np.zeros(3))
    assert "without p" in refused(npz)
    np.savez(npz, t=np.zeros(3), x=np.zeros(3), y=np.zeros(3), p=np.zeros(2))
    assert "other lengths" in refused(npz)
    for name, content, words in (
        ("a.txt", b"1 2 3", "accepted: .aedat, .aedat4, .bin, .dat"),
        ("a.aedat", b"#!AER-DAT5.0\r\n", "accepted of .aedat"),
        ("empty.aedat", b"", "empty.aedat is empty; accepted of .aedat"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in refused(tmp_path / name)
    assert "No such file" in refused(tmp_path / "missing.bin")
    assert "begins with b'1 2 3', not with b'#!AER-DAT2.'" in refused(tmp_path / "a.txt", "aedat2")
    with pytest.raises(UserError, match='format "avi": accepted: auto, aedat2'):
        read_events(npz, "avi")
    with pytest.raises(UserError, match='backward = "drop": accepted: refuse, sort'):
        read_events(npz, backward="drop")


def test_without_a_sensor_a_pixel_is_below_65536(tmp_path):
    path = tmp_path / "wide.npy"
    np.save(path, np.array([[0, 65535, 65535, 1], [1, 65536, 0, 0]]))
    assert "x = 65536 is outside 0 to 65535" in refused(path)
    np.save(path, np.array([[0, 65535, 65535, 1]]))
    assert read_events(path)["x"] == 65535


@pytest.mark.parametrize("sensor", ["346x260", (260,), (0, 346), (260.0, 346.0)])
def test_a_sensor_is_height_and_width(sensor, tmp_path):
    path = file_of(tmp_path, "npy", stream(3))
    with pytest.raises(UserError, match=r"^sensor = .*: accepted: height and width in pixels"):
        read_events(path, sensor=sensor)
    assert len(read_events(path, sensor=[np.int64(34), 34])) == 3


def test_dat_and_evt2_are_read_as_prophesee_describes_them(tmp_path):
    dat = tmp_path / "a.dat"
    text = b"% Data file containing CD events.\n% Width 1280\n\x0c\x08"
    dat.write_bytes(text + bytes([16, 39, 0, 0, 5, 0x80, 1, 0x10]))  # t 10000, x 5, y 6, p 1
    assert read_events(dat).tolist() == [(10000, 5, 6, 1)]
    evt2 = tmp_path / "a.raw"
    words = [0x10002803, 0x80000002, 0x14C0280A, 0xA0000000, 0x00400003]
    evt2.write_bytes(b"% evt 2.0\n% end\n" + np.array(words, "<u4").tobytes())
    # what comes before the first time is left out, a trigger is no event
    assert read_events(evt2, backward="sort").tolist() == [(129, 0, 3, 0), (147, 5, 10, 1)]
    with pytest.raises(UserError, match="time runs backward, from 147 to 129"):
        read_events(evt2)


def test_evt3_is_read_as_prophesee_describes_it(tmp_path):
    path = tmp_path / "a.raw"
    words = [
        *(0x2001, 0x8FFF, 0x6010, 0x0007),  # an event before any time; time, then y = 7
        *(0x2805, 0x3064, 0x4803, 0x5081, 0x5001),  # x = 5 on; vectors from x = 100, off
        *(0xE123, 0x8000, 0x6001, 0x0FFF & 0x0803, 0x2002),  # the time wraps around; y = 3
    ]
    path.write_bytes(b"% format EVT3;height=720\n% end\n" + np.array(words, "<u2").tobytes())
    late = 0xFFF010
    found = read_events(path).tolist()
    assert found[0] == (late, 5, 7, 1)
    assert found[1:4] == [(late, x, 7, 0) for x in (100, 101, 111)]
    assert found[4:6] == [(late, x, 7, 0) for x in (112, 119)]
    assert found[6:] == [(late, 120, 7, 0), (0x1000001, 2, 3, 0)]
    path.write_bytes(b"% evt 2.1\n% end\n")
    assert "begins with b'% evt 2.1" in refused(path)


# AEDAT 4, by the library that the format is described in


def flat(identifier: bytes, *fields: tuple[str, object]) -> bytes:
    """A size-prefixed FlatBuffer of one table: (kind, value) of each field in order."""
    flatbuffers = pytest.importorskip("flatbuffers")
    builder = flatbuffers.Builder(0)
    places = {}
    for number, (kind, value) in enumerate(fields):
        if kind == "string":
            places[number] = builder.CreateString(value)
        if kind == "events":
            builder.StartVector(16, len(value), 8)
            for t, x, y, p in reversed(value):
                builder.Prep(8, 16)
                builder.Pad(3)
                builder.PrependBool(p)
                builder.PrependInt16(y)
                builder.PrependInt16(x)
                builder.PrependInt64(t)
            places[number] = builder.EndVector()
    builder.StartObject(len(fields))
    for number, (kind, value) in enumerate(fields):
        if number in places:
            builder.PrependUOffsetTRelativeSlot(number, places[number], 0)
        else:
            getattr(builder, f"Prepend{kind}Slot")(number, value, 0)
    builder.FinishSizePrefixed(builder.EndObject(), identifier)
    return bytes(builder.Output())


def aedat4(compression: int, *packets: tuple[int, bytes], table: bool = True) -> bytes:
    def header(table: int) -> bytes:
        fields = (("Int32", compression), ("Int64", table), ("string", "<dv></dv>"))
        return b"#!AER-DAT4.0\r\n" + flat(b"IOHE", *fields)

    body = b"".join(struct.pack("<ii", stream, len(held)) + held for stream, held in packets)
    end = len(header(1)) + len(body)
    return header(end if table else -1) + body + (flat(b"FTAB") if table else b"")


@pytest.mark.parametrize(
    ("compression", "package"), [(0, None), (2, "lz4.frame"), (3, "zstandard")]
)
def test_aedat4_is_read_as_inivation_describes_it(compression, package, tmp_path):
    module = pytest.importorskip(package) if package else None
    pack = {0: bytes, 2: getattr(module, "compress", None), 3: getattr(module, "compress", None)}
    late = 1_700_000_000_000_000  # Unix time
    first, second = [(late, 345, 0, True), (late + 7, 0, 259, False)], [(late + 9, 1, 2, True)]
    other = [(late, 5, 5, True)]
    packets = [
        (1, flat(b"IMUS", ("Int32", 3))),
        (4, flat(b"EVTS", ("events", first))),
        (7, flat(b"EVTS", ("events", other))),  # a second camera's
        (4, flat(b"EVTS")),
        (4, flat(b"EVTS", ("events", second))),
    ]
    packed = [(stream, pack[compression](held)) for stream, held in packets]
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4(compression, *packed))
    expected = [tuple(map(int, event)) for event in first + second]
    assert read_events(path).tolist() == expected
    path.write_bytes(aedat4(compression, *packed, table=False))  # an interrupted recording
    assert read_events(path, sensor=(260, 346)).tolist() == expected
    whole = aedat4(compression, *packed)
    path.write_bytes(whole[: -len(flat(b"FTAB")) - 3])
    assert "after 2 events: a packet promises" in refused(path)
    path.write_bytes(whole[: -len(flat(b"FTAB")) - len(packed[-1][1]) - 8])  # between two packets
    assert "after 2 events: the file is cut short: its table of packets" in refused(path)
    path.write_bytes(aedat4(compression, *packed[:2], (4, packed[1][1][:-5])))
    assert "after 2 events: a packet of stream 4: " in refused(path)


@pytest.mark.parametrize("package", ["lz4.frame", "zstandard"])
def test_a_missing_decompressor_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4(1 if package == "lz4.frame" else 4, (0, b"12345678")))
    assert "pip install 'spiketriton[events]'" in refused(path)


def test_aedat4_is_read_as_another_library_reads_it(tmp_path):
    aedat = pytest.importorskip("aedat", reason="the extra suites is not installed")
    path = file_of(tmp_path, "aedat4", stream(20_000))
    theirs = [packet["events"] for packet in aedat.Decoder(path) if "events" in packet]
    for field, name in zip("txyp", ("t", "x", "y", "on"), strict=True):
        assert np.array_equal(read_events(path)[field], np.concatenate(theirs)[name])
