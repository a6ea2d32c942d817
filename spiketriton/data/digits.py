"""Images that need no files of yours: `digits` come with this package (digits.LICENSE.txt), `synthetic` is noise.

Mean and deviation are those of the training images in 0..1; of noise, those of uniform noise.
"""

from importlib import resources

import numpy as np
import torch

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit, RepeatedSplit

DIGITS_STATISTICS = ((0.3054,), (0.3760,))
SYNTHETIC_STATISTICS = ((0.5,) * 3, (0.2887,) * 3)


@plugins.data("digits")
def digits(config: DataConfig) -> Source:
    """UCI optical digits, 8 x 8, in the package (see digits.LICENSE.txt): 1,437 training and 360 test images.

    Enlarged to 16 x 16 (bilinear) unless data.image_size is set.
    """

    def split(name: str) -> ArraySplit:
        images, labels = packaged(name)
        # 0..16 to 0..255 by rounding: off by at most half a level of 255.
        pixels = (images.astype(np.int64) * 255 + 8) // 16
        return ArraySplit(pixels.astype(np.uint8)[:, None], labels)

    return Source(
        train=split("train"),
        test=split("test"),
        classes=tuple("0123456789"),
        channels=1,
        image_size=16,
        statistics=DIGITS_STATISTICS,
        move="affine",
    )


def packaged(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of "train" or "test": brightness 0..16 [N, 8, 8], labels [N]."""
    file = resources.files("spiketriton.data") / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as stored:
        return stored[f"{split}_images"], stored[f"{split}_labels"]


@plugins.data("synthetic")
def synthetic(config: DataConfig) -> Source:
    """Uniform noise with random labels, the same on every machine: for benchmarks, not learning. 64 images repeat."""
    size = config.image_size or 32
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (64, 3, size, size), dtype=torch.uint8, generator=generator)

    def split(count: int) -> ArraySplit:
        return RepeatedSplit(noise, torch.randint(config.classes, (count,), generator=generator))

    return Source(
        train=split(config.train_images or 1024),
        test=split(config.test_images or 256),
        classes=tuple(f"synthetic {index}" for index in range(config.classes)),
        channels=3,
        image_size=32,
        statistics=SYNTHETIC_STATISTICS,
        move="crop",
        synthetic=True,
    )
