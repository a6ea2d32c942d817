"""The random generators of a process: seeded, saved and restored together."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

# numpy's global generator is what transforms of other packages draw from
# ruff: noqa: NPY002
import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds the generators of torch (all devices), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds all generators for one step of one rank, so that a resumed run draws what the run drew."""
    seed_everything(
        int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
    )


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process, as plain data."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What is drawn in the block is drawn again after it."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def set_random_state(state: dict[str, Any]) -> None:
    """Sets what `random_state` returned; GPUs only where their number is the same."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate(state["python"])
