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
from spiketriton.data.download import (
    FAILURES,
    RemoteFile,
    data_root,
    describe_missing,
    obtain,
    one_process_at_a_time,
)
from spiketriton.data.sources import Source
from spiketriton.data.splits import (
    ArraySplit,
)
from spiketriton.system.errors import UserError

FASHION_STATISTICS = ((0.2860,), (0.3530,))
CLUTTERED_STATISTICS = ((0.2069,), (0.3319,))
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist


@plugins.data("fashion_mnist")
def fashion_mnist(config: DataConfig) -> Source:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 + 10,000 grey images of 28 x 28, as idx files, gzipped or not."""
    files = _fashion_files(config)
    folder = files[_FASHION_FILES[0]].parent

    def split(prefix: str) -> ArraySplit:
        image_path, label_path = (files[name] for name in _FASHION_FILES if name.startswith(prefix))
        images, labels = idx.read(image_path, rank=3), idx.read(label_path, rank=1)
        if images.shape[1:] != (28, 28):
            raise UserError(
                f"fashion_mnist: {image_path} holds an array of {images.shape}, not images of 28x28"
            )
        return ArraySplit(images[:, None].copy(), labels.copy())

    return Source(
        train=split("train"),
        test=split("t10k"),
        classes=tuple(datasets.FashionMNIST.classes),
        channels=1,
        image_size=28,
        statistics=FASHION_STATISTICS,
        move="crop",
        place=folder if folder == DEBIAN_FASHION_MNIST else None,
    )


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


_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _fashion_files(config: DataConfig) -> dict[str, Path]:
    """The four files in the first folder that has them all, downloaded if there is none."""
    root = data_root(config)
    folder = root / "FashionMNIST" / "raw"
    for place in (root, folder, DEBIAN_FASHION_MNIST):
        found = {name: path for name in _FASHION_FILES if (path := idx.find(place, name))}
        if len(found) == len(_FASHION_FILES):
            return found
    remote = [
        RemoteFile(datasets.FashionMNIST.mirrors[0] + name, md5)
        for name, md5 in datasets.FashionMNIST.resources
    ]
    try:
        if not config.download:
            why = "its files are missing and data.download is false"
            raise describe_missing(config, remote[0], folder, why)
        with one_process_at_a_time(folder):
            return {file.name.removesuffix(".gz"): obtain(file, folder, config) for file in remote}
    except FAILURES as error:
        raise describe_missing(config, remote[0], folder, f"cannot write ({error})") from error
    except UserError as error:
        raise UserError(
            f"{error}; searched for all of {', '.join(_FASHION_FILES)}, gzipped or not, in {root}, "
            f"{folder} and {DEBIAN_FASHION_MNIST} (Debian's package dataset-fashion-mnist)"
        ) from error
