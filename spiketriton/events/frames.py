"""Events as frames: bins of time or of equal number, two polarities, any number of pixels.

Bins are those of SpikingJelly's `integrate_events_by_fixed_frames_number`, so that results compare:

    number   N events make bins of N // T events each; the last takes what is left
    time     bins of (t[N-1] - t[0]) // T microseconds from the first event on; the last is open

A bin without an event is a frame of zeros (SpikingJelly's time bins fail there).
"""

from typing import Literal

import numpy as np

from spiketriton.events.formats import Sensor

Bins = Literal["number", "time"]

_BITS = 16
_ALONG_X, _ALONG_Y = 49471, 37357
"""Steps of the R2 sequence (Roberts 2018), 0.7549 and 0.5698 in units of 2^-16: points that fill a
pixel evenly, whichever of them are taken in a row."""


def bin_edges(t: np.ndarray, steps: int, bins: Bins) -> np.ndarray:
    """The first event of each bin, and the number of events: int64 [steps + 1]. t: int64 [N], ordered."""
    edges = np.zeros(steps + 1, np.int64)
    edges[-1] = len(t)
    if len(t):
        if bins == "number":
            edges[:-1] = np.arange(steps) * (len(t) // steps)
        else:
            starts = t[0] + np.arange(steps) * ((t[-1] - t[0]) // steps)
            edges[:-1] = np.searchsorted(t, starts)
    return edges


def to_frames(
    events: np.ndarray, sensor: Sensor, *, steps: int, bins: Bins, size: int
) -> np.ndarray:
    """Counts of events, int64 [steps, 2, size, size]: polarity 0, then 1. Every event counts once.

    A sensor that is not square lies in the middle of a square one. Pixels are binned by area: a pixel's events lie at
    points that fill it evenly, so that a cell gets as many of them as it covers of its area.
    events: an array of `EVENT`, ordered by time, within the sensor.
    """
    height, width = sensor
    side = max(sensor)
    edges = bin_edges(events["t"], steps, bins)
    cell = np.repeat(np.arange(steps, dtype=np.int64), np.diff(edges)) * 2 + events["p"]
    for field, margin, along in (
        ("y", side - height, _ALONG_Y),
        ("x", side - width, _ALONG_X),
    ):
        cell = cell * size + _cells(events[field], margin // 2, side, size, along)
    counts = np.bincount(cell, minlength=steps * 2 * size * size)
    return counts.reshape(steps, 2, size, size)


def _cells(pixel: np.ndarray, margin: int, side: int, size: int, along: int) -> np.ndarray:
    """The row or column of a frame in which each event lies."""
    place = pixel.astype(np.int64) + margin
    if side == size:
        return place
    if side % size == 0:
        return place // (side // size)
    within = (np.arange(len(pixel)) * along) & ((1 << _BITS) - 1)
    return (((place << _BITS) | within) * size) // (side << _BITS)


def to_bytes(counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Counts as uint8, and how many events that leaves out: a count above 255 becomes 255."""
    kept = np.minimum(counts, 255)
    return kept.astype(np.uint8), int(counts.sum() - kept.sum())
