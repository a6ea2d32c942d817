"""Sequences of tones, for tests: the class is a frequency, the lengths differ or not.

from tests.small_sequences import tones, SEQUENCES, sequence_recipe
"""

import wave
from pathlib import Path

import numpy as np

from spiketriton import plugins
from spiketriton.config import Recipe, recipe_from_toml, replace
from spiketriton.data.sources import SequenceSplit, Source

STEPS, CHANNELS, CLASSES = 12, 3, 4

RECIPE = f"""
time_steps = {STEPS}
[plugins]
modules = ["{__name__}"]
[data]
name = "tones"
workers = 0
[model]
name = "sequence"
depth = 2
width = 8
[neuron]
tau = 4.0
[train]
epochs = 2
batch_size = 16
precision = "fp32"
log_every = 2
threads = 1
"""


def tones(count: int, seed: int = 0, *, ragged: bool = True) -> SequenceSplit:
    """`count` sequences of 7 to 12 steps, or of 12, and 3 channels, the last of which never changes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    lengths = rng.integers(7, STEPS + 1, count) if ragged else np.full(count, STEPS)
    values = []
    for label, length in zip(labels, lengths, strict=True):
        time = np.arange(length)[:, None] + np.array([[0.0, 1.5, 0.0]])
        signal = 5 + 2 * np.sin((0.4 + 0.5 * label) * time) + 0.1 * rng.standard_normal((length, 3))
        signal[:, 2] = 7.0
        values.append(signal.astype(np.float32))
    return SequenceSplit(values if ragged else np.stack(values), labels)


def _source(ragged: bool) -> Source:
    parts = tones(64, 0, ragged=ragged), tones(20, 1, ragged=ragged)
    return Source(train=parts[0], test=parts[1], classes=("low", "mid", "high", "top"))


@plugins.data("tones")
def _tones(config):
    return _source(True)


@plugins.data("even_tones")
def _even_tones(config):
    return _source(False)


def sequence_recipe(*overrides: str) -> Recipe:
    return replace(recipe_from_toml(RECIPE, "tones"), *overrides)


def write_wav(
    path: Path, samples: np.ndarray, *, rate: int = 8000, channels: int = 1, width: int = 2
) -> Path:
    """A wav file, of 16 bits or with `width` 1 of 8; `samples` from -1 to 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        levels = (32767 * samples).astype("<i2")
        file.writeframes(levels.tobytes() if width == 2 else (levels // 256 + 128).astype("u1"))
    return path
