"""Bins equal SpikingJelly's, pixels are binned by area, and no event is lost."""

import numpy as np
import pytest

from spiketriton.events import EVENT
from spiketriton.events.frames import bin_edges, to_frames
from tests.events.support import spikingjelly, stream


@pytest.mark.parametrize(
    ("bins", "count", "steps"),
    [("number", 2_345, 1), ("number", 19_876, 7), ("number", 11, 20), ("time", 19_876, 7)],
)
def test_bins_equal_spikingjellys(bins, count, steps):
    """Fewer events than bins of equal number all lie in the last one."""
    events = stream(count, seed=steps, end=123_456)
    columns = {name: events[name] for name in "txyp"}
    integrate = spikingjelly("utils").integrate_events_by_fixed_frames_number
    frames = to_frames(events, (34, 34), steps=steps, bins=bins, size=34)
    assert np.array_equal(frames, integrate(columns, bins, steps, 34, 34))


def test_bins_by_time_without_an_event_are_empty():
    events = stream(40)
    events["t"] = np.repeat([0, 100, 900, 1000], 10)
    assert bin_edges(events["t"], 5, "time").tolist() == [0, 20, 20, 20, 20, 40]
    assert bin_edges(np.array([0, 2, 4, 5]), 3, "time").tolist() == [0, 1, 1, 4]  # of 5 // 3
    frames = to_frames(events, (34, 34), steps=5, bins="time", size=34)
    assert frames.sum((1, 2, 3)).tolist() == [20, 0, 0, 0, 20]
    events["t"] = 7
    frames = to_frames(events, (34, 34), steps=4, bins="time", size=34)
    assert frames.sum((1, 2, 3)).tolist() == [0, 0, 0, 40]
    frames = to_frames(events[:0], (34, 34), steps=3, bins="time", size=8)
    assert (frames.shape, frames.any()) == ((3, 2, 8, 8), False)


def test_polarity_row_and_column_have_their_places():
    events = np.array([(0, 5, 2, 1)], EVENT)
    frames = to_frames(events, (8, 8), steps=1, bins="number", size=8)
    assert np.argwhere(frames).tolist() == [[0, 1, 2, 5]]


@pytest.mark.parametrize("size", [1, 17, 33, 50])
def test_every_event_counts_once_at_any_size(size):
    events = stream(5_000)
    frames = to_frames(events, (34, 34), steps=4, bins="number", size=size)
    assert frames.sum((1, 2, 3)).tolist() == [1250] * 4
    if size == 17:  # cells of whole pixels are sums over them
        whole = to_frames(events, (34, 34), steps=4, bins="number", size=34)
        assert np.array_equal(frames, whole.reshape(4, 2, 17, 2, 17, 2).sum((3, 5)))


def test_cells_get_the_share_of_a_pixel_that_they_cover():
    """128 to 48 pixels, as for CIFAR10-DVS: cells of 8/3 x 8/3 pixels, all equally bright."""
    per_pixel = 100
    y, x = np.divmod(np.arange(128 * 128), 128)
    events = np.zeros(per_pixel * len(x), EVENT)
    order = np.random.default_rng(0).permutation(len(events))
    events["x"], events["y"] = (np.tile(v, per_pixel)[order] for v in (x, y))
    frame = to_frames(events, (128, 128), steps=1, bins="number", size=48)[0, 0]
    expected = per_pixel * (128 / 48) ** 2
    # chance alone: 2 % (one standard deviation); by the centres of pixels it would be off by 44 %
    assert abs(frame / expected - 1).max() < 0.1


def test_a_sensor_that_is_not_square_lies_in_the_middle():
    events = np.array([(0, 0, 0, 0), (1, 239, 179, 1)], EVENT)
    frames = to_frames(events, (180, 240), steps=1, bins="number", size=240)
    assert np.argwhere(frames).tolist() == [[0, 0, 30, 0], [0, 1, 209, 239]]
