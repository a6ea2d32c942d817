"""The cache of frames: right, complete, the same whoever builds it, and safe from kills and full disks."""

import os
import pickle
import resource
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketriton.events import cache, read_events, recordings
from spiketriton.events.cache import frames_of
from spiketriton.events.frames import to_bytes, to_frames
from spiketriton.system.errors import UserError
from tests.event_files import write_events
from tests.small_data import data_recipe
from tests.small_events import make_events

FOLDER = 'sensor = "50x40"'


def build(root: Path, name="eventfolder", data=FOLDER, steps=3, size=8, workers=0):
    config = data_recipe(name, root, data=data).data
    return frames_of(
        getattr(recordings, name)(config), config, steps=steps, size=size, workers=workers
    )


def cache_of(root: Path) -> Path:
    (folder,) = (root / "event_frames").iterdir()
    return folder


@pytest.fixture
def root(tmp_path):
    return make_events(tmp_path / "data", "eventfolder", per_class=4)


@pytest.mark.parametrize("bins", ["number", "time"])
def test_frames_are_those_of_the_files(root, bins):
    data = f'{FOLDER}\nbins = "{bins}"'
    train, test = build(root, data=data)
    found = recordings.eventfolder(data_recipe("eventfolder", root, data=data).data)
    for split, known in ((train, found.train), (test, found.test)):
        assert len(split) == len(known) == 12
        assert split.labels.tolist() == [r.label for r in known]
        indices = np.random.default_rng(0).permutation(12)
        read = split.read(indices)
        assert read.dtype == torch.uint8
        for frames, index in zip(read, indices, strict=True):
            events = read_events(known[index].path)
            counts = to_frames(events, (40, 50), steps=3, bins=bins, size=8)
            assert np.array_equal(frames, to_bytes(counts)[0])
            facts = split.facts[index]
            assert facts["events"] == len(events) == counts.sum()
            assert facts["duration_us"] == np.ptp(events["t"])
            assert facts["lost"] == 0


def test_parts_of_a_file_are_recordings_of_their_own(tmp_path):
    folder = make_events(tmp_path, "dvs_gesture")
    train, _ = build(tmp_path, "dvs_gesture", "", steps=2, size=128)
    events = read_events(folder / "user01_led.aedat")
    for label in (0, 4, 10):
        start = 10_000_000 + 1_000_000 * label
        within = events[(events["t"] >= start) & (events["t"] < start + 200_000)]
        assert 0 < len(within) < 400
        expected = to_frames(within, (128, 128), steps=2, bins="number", size=128)
        assert np.array_equal(train.read(np.array([label]))[0], expected)


def test_a_second_build_reads_what_is_there(root, capsys):
    train, _ = build(root)
    said = capsys.readouterr().err
    assert 24 * 3 * 2 * 8 * 8 == 9216
    assert f"frames of eventfolder: 9.2 kB in {cache_of(root)}, built once" in said
    assert "no event" not in said
    stamp = (cache_of(root) / "frames.npy").stat().st_mtime_ns
    again, _ = build(root)
    assert capsys.readouterr().err == ""
    assert (cache_of(root) / "frames.npy").stat().st_mtime_ns == stamp
    everything = np.arange(12)
    assert torch.equal(train.read(everything), again.read(everything))
    copy = pickle.loads(pickle.dumps(train))  # for a worker, without the frames
    assert copy._frames is None
    assert torch.equal(copy.read(everything), train.read(everything))


def test_every_setting_and_every_change_of_a_file_has_frames_of_its_own(root):
    build(root)
    build(root, steps=4)
    build(root, size=9)
    build(root, data=f'{FOLDER}\nbins = "time"')
    build(root, data='sensor = "51x40"')
    path = root / "train" / "ape" / "3.npy"
    events = read_events(path)
    events["p"] = 1
    write_events(path, events, "npy")
    train, _ = build(root)
    assert len(list((root / "event_frames").iterdir())) == 6
    assert train.read(np.array([3]))[0, :, 0].sum() == 0


def test_seeds_of_a_split_share_their_frames(tmp_path):
    folder = make_events(tmp_path / "data", "eventfolder", per_class=20) / "train"
    parts = [
        build(folder, data=f'{FOLDER}\nsplit = "random90"\nsplit_seed = {seed}') for seed in (0, 1)
    ]
    assert len(list((folder / "event_frames").iterdir())) == 1
    assert [len(part) for pair in parts for part in pair] == [54, 6, 54, 6]
    tested = [pair[1].read(np.arange(6)) for pair in parts]
    assert not torch.equal(*tested)


def test_a_recording_that_is_damaged_or_outside_the_sensor_is_named(root):
    with pytest.raises(UserError, match=r"x = \d+ is outside the sensor of 40 x 40"):
        build(root, data='sensor = "40x40"')
    path = root / "val" / "cow" / "2.bin"
    path.write_bytes(path.read_bytes()[:-2])
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"val/cow/2\.bin is damaged at byte .*399 events"):
            build(root, workers=workers)


def slow_build(root, pause, workers):
    read = cache.read_events
    cache.read_events = lambda *a, **o: time.sleep(pause) or read(*a, **o)
    build(root, workers=workers)


def start(root, pause, workers=0):
    """Builds in a process of its own, with a pause before each file."""
    process = get_context("fork").Process(target=slow_build, args=(root, pause, workers))
    process.start()
    return process


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def done_in(root):
    try:
        return int(np.load(cache_of(root) / "facts.npy")["done"].sum())
    except (OSError, EOFError, ValueError):  # half written
        return 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_build_continues_with_the_same_bytes(root, workers, capsys, monkeypatch):
    process = start(root, 0.2, workers)
    wait_until(lambda: done_in(root) >= 2)
    process.kill()
    process.join()
    done, read = done_in(root), []
    assert 2 <= done < 24
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_events", lambda *a, **o: read.append(a) or read_events(*a, **o))
        build(root)
    assert len(read) == 24 - done
    assert f"; {done} of 24 recordings are there" in capsys.readouterr().err
    found = (cache_of(root) / "frames.npy").read_bytes()
    shutil.rmtree(cache_of(root))
    build(root)
    assert (cache_of(root) / "frames.npy").read_bytes() == found


def test_a_second_process_waits_for_the_first_and_builds_nothing(root, capfd):
    first = start(root, 0.1)
    wait_until(lambda: done_in(root) >= 1)
    second = start(root, 0)
    for process in (first, second):
        process.join()
        assert process.exitcode == 0
    said = capfd.readouterr().err
    assert f"another process builds the frames in {cache_of(root)}: waiting for it" in said
    assert said.count("built once") == 1
    assert done_in(root) == 24


def test_a_disk_that_fills_up_is_an_error_and_not_a_crash(root):
    """The size of files is limited, as on a full disk: the space is taken before the work."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"frames of 9\.2 kB cannot be written to .*data\.cache names"
        ):
            build(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not (cache_of(root) / "frames.npy").exists()
    build(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_finished_cache_may_be_read_only(root):
    build(root)
    folders = [root / "event_frames", cache_of(root)]
    for folder in folders:
        folder.chmod(0o555)
    try:
        build(root)
        with pytest.raises(UserError, match=r"frames of .* cannot be written"):
            build(root, steps=4)
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize("name", ["frames.npy", "facts.npy", "settings.json"])
def test_a_damaged_cache_is_built_again(root, name):
    build(root)
    expected = {path: path.read_bytes() for path in cache_of(root).iterdir()}
    path = cache_of(root) / name
    path.write_bytes(path.read_bytes()[:-10])
    build(root)
    assert {path: path.read_bytes() for path in cache_of(root).iterdir()} == expected


def test_counts_above_255_are_reported(root, capsys):
    path = root / "train" / "ape" / "3.npy"
    events = np.sort(np.concatenate([read_events(path)] * 9), order="t")
    events["x"] = events["y"] = events["p"] = 0
    write_events(path, events, "npy")
    train, _ = build(root)
    assert train.facts["lost"].tolist() == [0, 0, 0, 3600 - 3 * 255] + [0] * 8
    assert train.read(np.array([3])).max() == 255
    assert "2,835 of " in capsys.readouterr().err


def test_recordings_without_an_event_are_told(root, capsys):
    for path in (root / "train" / "bee" / "2.bin", root / "val" / "cow" / "2.bin"):
        path.write_bytes(b"")  # what a download leaves that failed
    train, _ = build(root)
    first = root / "train" / "bee" / "2.bin"
    assert f"2 of 24 recordings hold no event, {first} the first" in capsys.readouterr().err
    assert not train.read(np.array([6])).any()
