"""Random generators: seeded, saved and restored together."""

import random

import numpy as np
import torch

from spiketriton.training.randomness import (
    seed_everything,
    seed_step,
)


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
