"""Scenes of garments among pieces of others."""

import hashlib

import numpy as np
import torch

from spiketriton.data.clutter import PIECE, PIECES, SIDE, cluttered
from spiketriton.data.splits import ArraySplit


def garments(count: int, value: int) -> ArraySplit:
    pixels = np.full((count, 1, 28, 28), value, np.uint8)
    return ArraySplit(pixels, np.arange(count) % 10)


def test_scenes_are_the_same_on_every_machine():
    split = garments(7, value=0)
    split.images[:, 0] = torch.from_numpy(np.random.RandomState(0).randint(1, 256, (7, 28, 28)))
    scenes = cluttered(split, seed=0)
    digest = hashlib.sha256(scenes.images.numpy().tobytes()).hexdigest()
    assert digest[:16] == "d3139e3be78517ec"
    assert torch.equal(scenes.labels, torch.arange(7))
    assert not torch.equal(scenes.images, cluttered(split, seed=1).images)


def test_a_scene_holds_its_whole_garment_and_pieces_of_others():
    bright = garments(600, value=200)
    bright.images[0] = 255  # one garment outshines the others' pieces
    scenes = cluttered(bright, seed=0).images[:, 0]
    assert scenes.shape == (600, SIDE, SIDE)
    rows, columns = (scenes[0] == 255).nonzero().unbind(1)
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == (27, 27)
    assert int((scenes[0] == 255).sum()) == 28 * 28
    outside = (scenes[1:] > 0).sum((1, 2)) - 28 * 28
    assert outside.min() >= 0
    assert 0 < outside.float().mean() <= PIECES * PIECE**2
    seen = (scenes > 0).any(0)
    assert seen.all(), "garments and pieces come to lie everywhere"
    assert (scenes[1:] == 255).any(), "pieces of the first garment lie in other scenes"
