"""The simulated camera: events where brightness moves, the same each time, in every format."""

import numpy as np
import pytest

from spiketriton.data.counter_rng import mix
from spiketriton.events import read_events, recordings, simulated
from spiketriton.events.simulated import DURATION_US, REFRACTORY_US, SENSOR, record
from spiketriton.system.errors import UserError
from tests.small_data import data_recipe

KEYS = mix(3, np.arange(4))


def images(count=4):
    return np.random.default_rng(0).random((count, 8, 8)).round(1)


def test_a_recording_is_in_order_and_depends_on_its_image_and_key_alone():
    pictures = images()
    together = record(pictures, KEYS)
    for at, events in enumerate(together):
        assert len(events) > 1000
        assert (np.diff(events["t"]) >= 0).all()
        assert events["t"].max() < DURATION_US
        assert max(events["x"].max(), events["y"].max()) < SENSOR[0]
        assert {*events["p"]} == {0, 1}
        (alone,) = record(pictures[at : at + 1], KEYS[at : at + 1])
        assert np.array_equal(alone, events)
    (other,) = record(pictures[:1], KEYS[1:2])
    assert not np.array_equal(other, together[0])


def test_a_black_image_gives_noise_alone_at_the_rate_that_is_promised():
    keys = mix(1, np.arange(20))
    counts = [len(events) for events in record(np.zeros((20, 8, 8)), keys)]
    expected = 2.0 * 32 * 32 * 0.3
    assert np.mean(counts) == pytest.approx(expected, rel=0.02)
    assert np.std(counts) == pytest.approx(np.sqrt(expected), rel=0.5)


def test_an_edge_gives_the_events_of_its_step_in_brightness(monkeypatch):
    """ON where the bar arrives, OFF where it leaves, as many as thresholds fit in the step."""
    monkeypatch.setattr(simulated, "NOISE_HZ", 0.0)
    monkeypatch.setattr(simulated, "THRESHOLD_SPREAD", 0.0)
    monkeypatch.setattr(simulated, "REFRACTORY_US", 0)
    monkeypatch.setattr(simulated, "CORNERS", ((0.0, 0.0), (4.0, 0.0), (4.0, 0.0), (4.0, 0.0)))
    bar = np.zeros((1, 8, 8))
    bar[:, :, 2:4] = 1.0
    (events,) = record(bar, KEYS[:1])
    assert events["t"].max() < 100_000
    row = events[events["y"] == 16]
    before = simulated._brightness(simulated._enlarged(bar), 0.0)[0, 16]
    after = simulated._brightness(simulated._enlarged(bar), 1.0)[0, 16]
    for x in range(32):
        there = row[row["x"] == x]
        net = int((there["p"] == 1).sum()) - int((there["p"] == 0).sum())
        assert abs(net - (after[x] - before[x]) / 0.25) < 1
    first = row[row["p"] == 1]["x"]
    assert first.min() > row[row["p"] == 0]["x"].min()


def test_no_pixel_fires_within_its_refractory_time(monkeypatch):
    monkeypatch.setattr(simulated, "NOISE_HZ", 0.0)
    monkeypatch.setattr(simulated, "THRESHOLD", 0.03)  # or hardly any would fire so soon again
    (events,) = record(images(1), KEYS[:1])
    pixel = events["y"].astype(int) * 32 + events["x"]
    order = np.lexsort((events["t"], pixel))
    gaps = np.diff(events["t"][order])[np.diff(pixel[order]) == 0]
    assert len(gaps) > 100
    assert gaps.min() >= REFRACTORY_US


@pytest.fixture
def few(monkeypatch):
    """Ten digits of each set, one of each class, instead of 1,797."""
    found = {}
    for split in ("train", "test"):
        images, labels = simulated.packaged(split)
        firsts = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
        found[split] = images[firsts], labels[firsts]
    monkeypatch.setattr(simulated, "packaged", found.__getitem__)
    return found


def test_the_same_events_are_written_and_read(few, tmp_path):
    found = recordings.digits_dvs(data_recipe("digits_dvs", tmp_path).data)
    assert (len(found.train), len(found.test), found.sensor) == (10, 10, (32, 32))
    for split, (name, part) in enumerate((("train", found.train), ("test", found.test))):
        images, labels = few[name]
        expected = record(images / 16, mix(split, np.arange(10)))
        for one in part:
            number = int(one.path.stem)
            assert np.array_equal(read_events(one.path, sensor=(32, 32)), expected[number])
            assert one.label == labels[number]
    with pytest.raises(UserError, match=r'data.format = "npy": digits_dvs is written as .bin'):
        recordings.digits_dvs(data_recipe("digits_dvs", tmp_path, data='format = "npy"').data)


def test_recordings_are_made_once_and_never_half(few, tmp_path, monkeypatch):
    folder = simulated.digits(tmp_path)
    assert folder == tmp_path / "digits_dvs_bin_v1"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(simulated, "write_bin", full)
    assert simulated.digits(tmp_path) == folder
    other = tmp_path / "other"
    with pytest.raises(UserError, match=r"digits_dvs_bin_v1 cannot be written: No space left"):
        simulated.digits(other)
    assert [path.name for path in other.iterdir() if path.is_dir()] == []
