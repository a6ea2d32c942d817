"""The random generators that a network's own code may draw from: torch's, Python's, and numpy's where it is there."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def drawn() -> tuple[Any, ...]:
    """Where the generators stand: equal before and after a call that drew nothing."""
    name, keys, *rest = _numpy().get_state() if _numpy() else ("", b"")
    return bytes(torch.get_rng_state().tolist()), random.getstate(), name, bytes(keys), *rest


@contextmanager
def undrawn(devices: Sequence[int] | None = None) -> Iterator[None]:
    """After the block the generators are as before: torch's on these GPUs (None: on all), too."""
    python, numpy = random.getstate(), _numpy().get_state() if _numpy() else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        if numpy:
            _numpy().set_state(numpy)


@contextmanager
def seeded(devices: Sequence[int] | None = None) -> Iterator[None]:
    """The same draws in every such block; after it the generators are as before."""
    with undrawn(devices):
        torch.manual_seed(0)
        random.seed(0)
        if _numpy():
            _numpy().seed(0)
        yield


def _numpy() -> Any:
    return getattr(sys.modules.get("numpy"), "random", None)
