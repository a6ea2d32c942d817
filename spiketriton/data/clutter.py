"""Scenes of one garment among pieces of others, from Fashion-MNIST's files: a task on which depth pays.

On Fashion-MNIST itself a linear classifier comes within a few points of a deep net: docs/gradient_flow.md.
"""

import numpy as np

from spiketriton.data.counter_rng import mix
from spiketriton.data.splits import ArraySplit

SIDE = 40  # pixels of a scene
PIECES, PIECE = 6, 8  # pieces of other garments in it, and their side
_CLUTTER = 17  # keeps these draws apart from others


def cluttered(split: ArraySplit, seed: int) -> ArraySplit:
    """One scene for each image of `split` [N, 1, 28, 28], with its label: uint8 [N, 1, 40, 40].

    The garment and six 8x8 pieces, each of a random place of another image, lie at random places; the brighter pixel
    is seen. A function of the images and the seed.
    """
    images = split.images.numpy()[:, 0]
    count, side = len(images), images.shape[1]
    scenes = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    every = np.arange(count)

    def draw(below: int, *words: int) -> np.ndarray:
        keys = mix(seed, _CLUTTER, *words, every)
        return (keys % np.uint64(below)).astype(np.int64)

    def put(pieces: np.ndarray, which: int) -> None:
        top, left = (draw(SIDE - pieces.shape[1] + 1, which, axis) for axis in (0, 1))
        rows = (top[:, None] + np.arange(pieces.shape[1]))[:, :, None]
        columns = (left[:, None] + np.arange(pieces.shape[2]))[:, None, :]
        at = (every[:, None, None], rows, columns)
        scenes[at] = np.maximum(scenes[at], pieces)

    put(images, 0)
    inside = np.arange(PIECE)
    for piece in range(1, PIECES + 1):
        other = (every + 1 + draw(max(count - 1, 1), piece, 2)) % count
        top, left = (draw(side - PIECE + 1, piece, axis) for axis in (3, 4))
        rows = (top[:, None] + inside)[:, :, None]
        columns = (left[:, None] + inside)[:, None, :]
        put(images[other[:, None, None], rows, columns], piece)
    return ArraySplit(scenes[:, None], split.labels)
