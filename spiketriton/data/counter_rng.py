"""Random numbers as a function of integers: the same words give the same draw, in any order.

So neither the number of workers nor the step at which a run was resumed changes a sample's augmentation.
"""

import numpy as np
import torch

_GOLDEN = 0x9E3779B97F4A7C15


def _scramble(word: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def mix(*words: int | np.ndarray) -> np.ndarray:
    """Hash of integer words: uint64, in the shape to which the words broadcast (at least 1-d)."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        if isinstance(word, int):
            word = np.full(1, word % (1 << 64), dtype=np.uint64)
        state = _scramble((state + np.uint64(_GOLDEN)) ^ _scramble(word.astype(np.uint64)))
    return state


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """`count` draws from [0, 1) for each key: keys uint64 [b] -> float64 [b, count]."""
    words = mix(keys[:, None], np.arange(count))
    return (words >> np.uint64(11)) * 2.0**-53


def torch_words(keys: np.ndarray, count: int) -> np.ndarray:
    """The first 32-bit words of torch's CPU generator seeded by each key: uint32 [b, count].

    It is the Mersenne twister, as is numpy's legacy generator, whose stream is frozen; the lower half of a key seeds
    it.
    """
    generator = np.random.RandomState()
    words = []
    for seed in (keys & np.uint64(0xFFFFFFFF)).tolist():
        generator.seed(seed)
        words.append(generator.bytes(4 * count))
    return np.frombuffer(b"".join(words), dtype="<u4").reshape(len(keys), count)


def unit(words: np.ndarray) -> np.ndarray:
    """Words as `torch.rand` makes numbers in [0, 1) of them: float32."""
    return (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)


def on_device(draws: np.ndarray, device: torch.device) -> torch.Tensor:
    """Draws as a tensor on the device, which the host does not wait for."""
    return torch.from_numpy(draws).to(device, non_blocking=True)
