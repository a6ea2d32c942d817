"""Both sides are trained on the same images for the same steps, and the numbers of both come out."""

import pytest

pytest.importorskip("spikingjelly")
from studies.beside_others.run import beside

KEYS = {
    "data.name": "digits",
    "data.image_size": 28,
    "data.train_images": 64,
    "data.test_images": 32,
    "train.batch_size": 32,
    "train.epochs": 1,
}


def test_both_sides_take_the_same_steps():
    found = beside("csnn", 0, KEYS, same=False)
    assert (found["case"], found["seed"], found["steps"]) == ("csnn", 0, 2)
    ((step, ours, theirs),) = found["curve"]
    assert step == 2
    assert 0 <= min(ours, theirs) <= max(ours, theirs) <= 1
    for pair in (found["seconds a step, without"], found["peak MB"]):
        assert len(pair) == 2
        assert min(pair) > 0
