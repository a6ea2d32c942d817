"""Random numbers as a function of integers: the same words give the same draw, in any order.

With a stateful generator a sample's augmentation depends on everything drawn before it, and so on
the number of workers and on where a run was resumed. A hash of (seed, epoch, index) does not.
"""

from typing import TypeAlias

import numpy as np

Words: TypeAlias = "int | np.ndarray"

_GOLDEN = 0x9E3779B97F4A7C15
_TWO_64 = 1 << 64


def _scramble(word: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def mix(*words: Words) -> np.ndarray:
    """Hash of integer words: uint64, in the shape to which the words broadcast (at least 1-d)."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        if isinstance(word, int):
            word = np.full(1, word % _TWO_64, dtype=np.uint64)
        state = _scramble((state + np.uint64(_GOLDEN)) ^ _scramble(word.astype(np.uint64)))
    return state


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """`count` draws from [0, 1) for each key: keys uint64 [b] -> float64 [b, count]."""
    words = mix(keys[:, None], np.arange(count, dtype=np.uint64))
    return (words >> np.uint64(11)) * 2.0**-53
