"""`fashion_mnist`, and its garments among pieces of others, `cluttered_fashion_mnist`.

Mean and deviation are those of the training images in 0..1, computed from the files.
"""

from dataclasses import replace
from pathlib import Path

from torchvision import datasets

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.data import idx
from spiketriton.data.clutter import SIDE, cluttered
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit

FASHION_STATISTICS = ((0.2860,), (0.3530,))
CLUTTERED_STATISTICS = ((0.2069,), (0.3319,))
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist


@plugins.data("fashion_mnist")
def fashion_mnist(config: DataConfig) -> Source:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 + 10,000 grey images of 28 x 28, as idx files, gzipped or not."""
    debian = {DEBIAN_FASHION_MNIST: "Debian's package dataset-fashion-mnist"}
    source = idx.of_files(datasets.FashionMNIST, config, debian)
    return replace(source, statistics=FASHION_STATISTICS)


@plugins.data("cluttered_fashion_mnist")
def cluttered_fashion_mnist(config: DataConfig) -> Source:
    """Fashion-MNIST's garments at random places among pieces of others, 40 x 40: see `clutter.py`."""
    source = fashion_mnist(config)
    assert isinstance(source.train, ArraySplit)
    assert isinstance(source.test, ArraySplit)
    return replace(
        source,
        train=cluttered(source.train, seed=0),
        test=cluttered(source.test, seed=1),
        image_size=SIDE,
        statistics=CLUTTERED_STATISTICS,
    )
