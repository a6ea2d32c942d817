"""Parameters of tests: fewer cases than all combinations, in which each still meets each.

@pytest.mark.parametrize(("name", "block", "kind"), pairwise(NAMES, BLOCKS, KINDS))
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any


def pairwise(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Few cases in which every two values of two axes occur together (greedy, always the same)."""
    lists = [list(axis) for axis in axes]
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(lists)), 2)
        for i in range(len(lists[a]))
        for j in range(len(lists[b]))
    }
    cases: list[tuple[Any, ...]] = []
    while missing:
        chosen = dict(min(missing))
        for axis in range(len(lists)):
            if axis not in chosen:
                gains = [
                    sum(tuple(sorted(((axis, i), at))) in missing for at in chosen.items())
                    for i in range(len(lists[axis]))
                ]
                # Ties rotate, so that values without a pair to win are spread as well.
                tied = [i for i, gain in enumerate(gains) if gain == max(gains)]
                chosen[axis] = tied[len(cases) % len(tied)]
        missing -= set(itertools.combinations(sorted(chosen.items()), 2))
        cases.append(tuple(axis[chosen[at]] for at, axis in enumerate(lists)))
    return cases


def each(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases in which every value occurs: as many as the longest axis has, the others go round."""
    longest = max(map(len, axes))
    return [tuple(axis[at % len(axis)] for axis in axes) for at in range(longest)]
