"""`cifar10` and `cifar100`, from their archives or from class folders of the same images.

Mean and deviation are those of the training images in 0..1, in common use.
"""

import numpy as np
from torchvision import datasets

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.data.decoded import of_small_images
from spiketriton.data.download import RemoteFile, data_root, describe_missing, unpacked
from spiketriton.data.photographs import class_folders
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit

CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def _cifar(
    dataset: type[datasets.CIFAR10],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    config: DataConfig,
) -> Source:
    """CIFAR (Krizhevsky 2009), 50,000 + 10,000 images, whose checksums are compared: a pickle can run code."""
    archive = RemoteFile(dataset.url, dataset.tgz_md5)
    folder = unpacked(archive, dataset.base_folder, config)
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    for name, md5 in [*dataset.train_list, *dataset.test_list, meta]:
        path = folder / name
        if not RemoteFile(name, md5).whole(path):
            state = "is damaged or cut short (its md5 differs)" if path.exists() else "is missing"
            why = f"{path} {state}; remove {folder} to unpack it again"
            raise describe_missing(config, archive, data_root(config), why)

    def split(train: bool) -> tuple[ArraySplit, tuple[str, ...]]:
        found = dataset(data_root(config), train=train)
        images = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))
        return ArraySplit(images, np.array(found.targets)), tuple(found.classes)

    train, classes = split(True)
    test, _ = split(False)
    return Source(
        train=train,
        test=test,
        classes=classes,
        channels=3,
        image_size=32,
        statistics=statistics,
        move="crop",
    )


def _archive_or_folders(
    dataset: type[datasets.CIFAR10],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    config: DataConfig,
) -> Source:
    """The archive's images or, where data.root has no archive, those of class folders: see `class_folders`."""
    root = data_root(config)
    whole = (root / dataset.base_folder).is_dir() or (root / dataset.filename).exists()
    folder = None if whole else class_folders(config)
    if folder is None:
        return _cifar(dataset, statistics, config)
    return of_small_images(folder, config, image_size=32, statistics=statistics)


@plugins.data("cifar10")
def cifar10(config: DataConfig) -> Source:
    return _archive_or_folders(datasets.CIFAR10, CIFAR10_STATISTICS, config)


@plugins.data("cifar100")
def cifar100(config: DataConfig) -> Source:
    return _archive_or_folders(datasets.CIFAR100, CIFAR100_STATISTICS, config)
