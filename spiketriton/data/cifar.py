"""`cifar10` and `cifar100`.

Mean and deviation are those of the training images in 0..1, in common use.
"""

from dataclasses import replace

import numpy as np
from torchvision import datasets

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.data.decoded import decoded
from spiketriton.data.download import RemoteFile, data_root, describe_missing, unpacked
from spiketriton.data.photographs import class_folders, of_folders
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit, FileSplit, folders_of_splits
from spiketriton.system.errors import UserError

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


@plugins.data("cifar10")
def cifar10(config: DataConfig) -> Source:
    """CIFAR-10 from its archive or, where data.root has none, from class folders: see `class_folders`.

    Of these the run says that they are not the original pixels.
    """
    root, archive = data_root(config), datasets.CIFAR10
    whole = (root / archive.base_folder).is_dir() or (root / archive.filename).exists()
    folder = None if whole else class_folders(config)
    if folder is None:
        return _cifar(archive, CIFAR10_STATISTICS, config)
    source = of_folders(folder, folders_of_splits(folder, config, "small images"), config)
    files = [split for split in (source.train, source.test) if isinstance(split, FileSplit)]
    train, test = (decoded(config, split) for split in files)
    if train.shape[1:] != test.shape[1:]:
        side, other = ("x".join(map(str, images.shape[2:])) for images in (train, test))
        raise UserError(
            f"{config.name}: {files[1].path(0)} is {other} pixels, the training images {side}; accepted: "
            "one size"
        )
    lossy = any(
        path.lower().endswith((b".jpg", b".jpeg")) for split in files for path in split.paths
    )
    note = f"images of class folders in {folder}, not CIFAR-10's archive"
    if lossy:
        note += "; JPEG has changed their pixels, which costs accuracy: say so beside a result"
    return replace(
        source,
        train=ArraySplit(train, source.train.labels),
        test=ArraySplit(test, source.test.labels),
        image_size=32,
        statistics=CIFAR10_STATISTICS,
        move="crop",
        note=note,
    )


@plugins.data("cifar100")
def cifar100(config: DataConfig) -> Source:
    return _cifar(datasets.CIFAR100, CIFAR100_STATISTICS, config)
