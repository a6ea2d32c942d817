"""Parameters of tests: fewer cases than all combinations, in which each still meets each.

@pytest.mark.parametrize(("name", "block", "kind"), pairwise(NAMES, BLOCKS, KINDS))
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any


def pairwise(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Cases in which every two values of two axes occur together: the richest first, always the same."""
    lists = [list(axis) for axis in axes]
    cases = list(itertools.product(*(range(len(axis)) for axis in lists)))
    left = {pair for case in cases for pair in _pairs(case)}
    chosen = []
    while left:
        best = max(cases, key=lambda case: len(left & _pairs(case)))
        left -= _pairs(best)
        chosen.append(tuple(axis[at] for axis, at in zip(lists, best, strict=True)))
    return chosen


def each(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases in which every value occurs: as many as the longest axis has, the others go round."""
    longest = max(map(len, axes))
    return [tuple(axis[at % len(axis)] for axis in axes) for at in range(longest)]


def _pairs(case: Sequence[int]) -> set[tuple[int, int, int, int]]:
    return {(a, case[a], b, case[b]) for a, b in itertools.combinations(range(len(case)), 2)}
