"""Recordings made from the packaged digits: a simulated event camera that moves by three saccades.

As N-MNIST was made from MNIST (Orchard et al. 2015, arXiv 1507.07629): the camera moves over a still
image along the sides of a triangle, and each pixel reports changes of brightness. The camera
follows ESIM (Rebecq et al. 2018): a pixel with the brightness I(t) fires each time that
log(I + 0.1) has moved by its threshold since its last event, at a moment interpolated within a step.

    sensor       32 x 32 pixels; a digit of 8 x 8 is enlarged to 24 x 24 (bilinear)
    saccades     3 of 100 ms, each 4 pixels long at a constant speed
    threshold    0.25 in log brightness; each pixel's own spreads by 5 % (normal), ON and OFF alike
    noise        events of random polarity, 2 a second and pixel (Poisson)
    refractory   1 ms, in which a pixel that has fired loses its next events

A recording is a function of its digit, its split and its number; nothing is drawn from global state.
"""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from spiketriton.data.counter_rng import mix, uniforms
from spiketriton.data.digits import packaged
from spiketriton.data.download import made_once
from spiketriton.events.formats import EVENT, Sensor, write_bin
from spiketriton.system.errors import UserError

SENSOR: Sensor = (32, 32)
_DIGIT = 24  # side of the enlarged digit
SACCADE_US, STEPS_OF_SACCADE = 100_000, 25
DURATION_US = 3 * SACCADE_US
CORNERS = ((-2.0, -1.0), (2.0, -1.0), (0.0, 2.4641), (-2.0, -1.0))  # (x, y) of the digit, pixels
THRESHOLD, THRESHOLD_SPREAD, DARK = 0.25, 0.05, 0.1
NOISE_HZ, REFRACTORY_US = 2.0, 1_000
VERSION = 1  # of all of this, in the folder's name

_SPREAD, _COUNT, _PLACE = 1, 2, 3  # keep the draws of one key apart
_AT_ONCE = 128  # digits simulated together


def digits(root: Path) -> Path:
    """The folder with the recordings: train/<digit>/00000.bin, ..., made once. UserError."""
    folder = root / f"digits_dvs_bin_v{VERSION}"
    try:
        return made_once(folder, lambda into: _write_all(into / folder.name))
    except OSError as error:
        raise UserError(f"digits_dvs: {folder} cannot be written: {error.strerror}") from None


def _write_all(folder: Path) -> None:
    for split, name in enumerate(("train", "test")):
        images, labels = packaged(name)
        for start in range(0, len(images), _AT_ONCE):
            numbers = np.arange(start, min(start + _AT_ONCE, len(images)))
            recordings = record(images[numbers] / 16, mix(split, numbers))
            for number, events in zip(numbers, recordings, strict=True):
                place = folder / name / str(labels[number]) / f"{number:05d}.bin"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(write_bin(events))


def record(images: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """What the camera reports of images (floats in 0..1 [n, h, w]), an array of `EVENT` for each; keys: uint64 [n]."""
    height, width = SENSOR
    pixels = height * width
    enlarged = _enlarged(images)
    draws = uniforms(mix(keys, _SPREAD), 2 * pixels).reshape(len(images), 2, height, width)
    spread = _normal(draws[:, 0], draws[:, 1])
    threshold = THRESHOLD * np.maximum(1 + THRESHOLD_SPREAD * spread, 0.5)

    before = _brightness(enlarged, 0.0)
    reference = before.copy()
    last = np.full(before.shape, -REFRACTORY_US, np.int64)
    found = [_noise(keys)]
    step_us = SACCADE_US / STEPS_OF_SACCADE
    for step in range(3 * STEPS_OF_SACCADE):
        now = _brightness(enlarged, (step + 1) / STEPS_OF_SACCADE)
        moved = now - reference
        at = np.nonzero(np.abs(moved) >= threshold)
        while len(at[0]):
            up = moved[at] > 0
            reference[at] += np.where(up, threshold[at], -threshold[at])
            share = (reference[at] - before[at]) / (now[at] - before[at])
            t = np.minimum((step + share) * step_us, DURATION_US - 1).astype(np.int64)
            ready = t - last[at] >= REFRACTORY_US
            image, y, x = (places[ready] for places in at)
            last[image, y, x] = t[ready]
            found.append(np.stack([image, t[ready], x, y, up[ready]]))
            moved[at] = now[at] - reference[at]
            more = np.abs(moved[at]) >= threshold[at]
            at = tuple(places[more] for places in at)
        before = now
    every = np.concatenate(found, axis=1)
    every = every[:, np.lexsort((every[2], every[3], every[1], every[0]))]
    ends = np.searchsorted(every[0], np.arange(len(images) + 1))
    recordings = []
    for start, end in pairwise(ends):
        events = np.empty(end - start, EVENT)
        for name, column in zip("txyp", every[1:, start:end], strict=True):
            events[name] = column
        recordings.append(events)
    return recordings


def _enlarged(images: np.ndarray) -> np.ndarray:
    """Bilinear, with a margin of zeros as wide as the sensor allows: [n, 32, 32]."""
    side = images.shape[-1]
    at = np.clip((np.arange(_DIGIT) + 0.5) * side / _DIGIT - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), side - 2)
    weight = np.zeros((_DIGIT, side))
    weight[np.arange(_DIGIT), low] = 1 - (at - low)
    weight[np.arange(_DIGIT), low + 1] = at - low
    margin = (SENSOR[0] - _DIGIT) // 2
    return np.pad(weight @ images @ weight.T, ((0, 0), (margin, margin), (margin, margin)))


def _brightness(images: np.ndarray, saccade: float) -> np.ndarray:
    """log(I + 0.1) of the images, moved to where the camera is after so many saccades: [n, 32, 32]."""
    side = min(int(saccade), 2)
    (x0, y0), (x1, y1) = CORNERS[side : side + 2]
    share = saccade - side
    return np.log(_shifted(images, y0 + share * (y1 - y0), x0 + share * (x1 - x0)) + DARK)


def _shifted(images: np.ndarray, down: float, right: float) -> np.ndarray:
    """Images moved by parts of pixels, bilinear: less than their margin of zeros, so that nothing comes around."""
    for axis, shift in ((1, down), (2, right)):
        whole = math.floor(shift)
        part = shift - whole
        near, far = np.roll(images, whole, axis), np.roll(images, whole + 1, axis)
        images = (1 - part) * near + part * far
    return images


def _normal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Standard normal draws of two uniform ones each (Box and Muller 1958)."""
    return np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * math.pi * second)


def _noise(keys: np.ndarray) -> np.ndarray:
    """Events of no cause: [5, N] of image, t, x, y, p."""
    height, width = SENSOR
    mean = NOISE_HZ * height * width * DURATION_US * 1e-6
    draws = uniforms(mix(keys, _COUNT), 2)
    normal = _normal(draws[:, 0], draws[:, 1])  # of a mean of 600, a Poisson number is normal
    counts = np.maximum(np.rint(mean + math.sqrt(mean) * normal), 0).astype(np.int64)
    image = np.repeat(np.arange(len(keys)), counts)
    numbers = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
    draws = uniforms(mix(keys[image], _PLACE, numbers), 4)
    sides = np.array([DURATION_US, width, height, 2])
    return np.concatenate([image[None], (draws * sides).astype(np.int64).T])
