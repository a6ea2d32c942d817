"""The handwritten digits that come with this package (digits.LICENSE.txt)."""

from importlib import resources

import numpy as np


def packaged(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of "train" or "test": brightness 0..16 [N, 8, 8], labels [N]."""
    file = resources.files("spiketriton.data") / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as stored:
        return stored[f"{split}_images"], stored[f"{split}_labels"]
