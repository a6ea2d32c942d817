"""The named splits: SpikingJelly's for CIFAR10-DVS, and a tenth of each class at random."""

from pathlib import Path

import numpy as np
import pytest

from spiketriton.data.events.partition import held_out, number_of
from spiketriton.errors import UserError
from tests.data.events.support import spikingjelly

LABELS = np.repeat([0, 1, 2], [1000, 300, 9])
NUMBERS = np.concatenate([np.arange(n) for n in (1000, 300, 9)])


def test_first100_is_spikingjellys_split_of_tebn(tmp_path, monkeypatch):
    """What its code links into test/ and train/ of a tree of files, named as the real ones."""
    theirs = spikingjelly("cifar10_dvs")
    monkeypatch.setattr(theirs, "CIFAR10DVS_CLASS_NAMES", ["bird", "ship"])
    names = {name: [f"cifar10_{name}_{i}" for i in range(1000)] for name in ("bird", "ship")}
    theirs._move_data(tmp_path)
    for label, (name, stems) in enumerate(names.items()):
        numbers = [number_of(Path(f"{stem}.aedat")) for stem in stems]
        ours = held_out("first100", [label] * 1000, numbers, 0)
        for part, wanted in (("test", True), ("train", False)):
            linked = {path.stem for path in (tmp_path / part / name).iterdir()}
            assert linked == {s for s, t in zip(stems, ours, strict=True) if t == wanted}


def test_random90_is_as_large_as_spikingjellys():
    by_class = [list(np.flatnonzero(label == LABELS)) for label in range(3)]
    train, test = spikingjelly("utils")._split_class_indices(by_class, 0.9, True)
    ours = held_out("random90", LABELS, NUMBERS, 0)
    assert (int(ours.sum()), int((~ours).sum())) == (len(test), len(train))
    assert np.bincount(LABELS[ours]).tolist() == [100, 30]


def test_random90_depends_on_the_seed_and_on_nothing_else():
    one, again, other = (held_out("random90", LABELS, NUMBERS, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    shuffled = np.random.default_rng(0).permutation(len(LABELS))
    assert np.array_equal(
        held_out("random90", LABELS[shuffled], NUMBERS[shuffled], 0), one[shuffled]
    )


def test_the_number_of_a_recording_is_the_last_in_its_name():
    names = ("cifar10_bird_17.aedat", "00003.bin", "image_0042.bin", "a1b2c.npy")
    assert [number_of(Path(name)) for name in names] == [17, 3, 42, 2]
    with pytest.raises(UserError, match=r"wave\.npy: its file name has no number"):
        number_of(Path("wave.npy"))
