"""Random generators: seeded, saved and restored together."""

import io
import random

import numpy as np
import torch

from spiketriton.training.randomness import (
    random_state,
    seed_everything,
    seed_step,
    set_random_state,
)


def test_random_states_come_back():
    # numpy's legacy generator, which transforms of other packages use
    def draws() -> list[float]:
        normal = float(np.random.standard_normal())  # noqa: NPY002
        return [torch.rand(()).item(), normal, random.random(), random.gauss(0, 1)]

    draws()  # numpy and Python keep the second of a pair of normal draws: that is state too
    before = random_state()
    first = draws()
    assert draws() != first
    set_random_state(before)
    assert draws() == first
    buffer = io.BytesIO()
    torch.save(before, buffer)
    buffer.seek(0)
    set_random_state(torch.load(buffer, weights_only=True))
    assert draws() == first


def test_a_seed_sets_every_generator():
    def draws(seed: int) -> list[float]:
        seed_everything(seed)
        return [torch.rand(()).item(), float(np.random.random()), random.random()]  # noqa: NPY002

    assert draws(3) == draws(3)
    assert all(a != b for a, b in zip(draws(3), draws(4), strict=True))
    large = draws(2**32 + 3)  # numpy takes 32 bits, Python takes all
    assert large[1] == draws(3)[1]
    assert large[2] != draws(3)[2]


def test_each_step_of_each_rank_has_draws_of_its_own():
    drawn = []
    for at in ((3, 0, 0), (3, 0, 1), (3, 1, 0), (4, 0, 0), (3, 0, 0)):
        seed_step(*at)
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[-1]
    assert len(set(drawn)) == 4
