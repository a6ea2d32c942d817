"""Named splits of data sets that come without one: which recordings are tested on.

first100   recordings 0 to 99 of each class, by the number in their file's name, as in TEBN (Duan et
           al. 2022) and SpikingJelly's CIFAR10DVSTEBNSplit; scores higher than a random split
random90   a tenth of each class (rounded down), drawn by a seed and the recordings' numbers
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spiketriton.data.counter_rng import mix
from spiketriton.data.splits import drawn_of_each
from spiketriton.errors import UserError

FIRST = 100


def number_of(path: Path) -> int:
    """The last number in a file's name. UserError: there is none."""
    digits = re.findall(r"\d+", path.stem)
    if not digits:
        raise UserError(f"{path}: its file name has no number, which the named splits need")
    return int(digits[-1])


def held_out(name: str, of: Sequence[int], within: Sequence[int], seed: int) -> np.ndarray:
    """Whether each recording belongs to the test set, bool [N]: `of` a class, with a number `within` it."""
    labels, numbers = np.asarray(of), np.asarray(within)
    if name == "first100":
        return numbers < FIRST
    return drawn_of_each(labels, mix(seed, labels, numbers), lambda members: members // 10)
