"""`mnist`: handwritten digits, 60,000 + 10,000 grey images of 28 x 28 (LeCun et al. 1998).

Mean and deviation are those of the training images in 0..1, in common use.
"""

from dataclasses import replace

from torchvision import datasets

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.data import idx
from spiketriton.data.decoded import decoded
from spiketriton.data.photographs import class_folders, of_folders
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit, FileSplit, folders_of_splits
from spiketriton.system.errors import UserError

MNIST_STATISTICS = ((0.1307,), (0.3081,))


@plugins.data("mnist")
def mnist(config: DataConfig) -> Source:
    """From class folders of grey images, root/train/<digit>/* and root/test/<digit>/* in data.root or data.root/mnist,
    or from the four idx files."""
    folder = class_folders(config)
    if folder is None:
        source = idx.of_files(datasets.MNIST, config)
        digits = tuple(name.partition(" ")[0] for name in source.classes)  # "0 - zero"
        return replace(source, statistics=MNIST_STATISTICS, move="affine", classes=digits)
    source = of_folders(folder, folders_of_splits(folder, config, "MNIST's digits"), config)
    if source.classes != tuple("0123456789"):
        raise UserError(
            f"mnist: {folder / 'train'} holds the folders {', '.join(source.classes)}; accepted: 0 to 9"
        )
    splits = []
    for split in (source.train, source.test):
        assert isinstance(split, FileSplit)
        images = decoded(config, split)
        if images.shape[2:] != (28, 28):
            side = "x".join(map(str, images.shape[2:]))
            raise UserError(f"mnist: {split.path(0)} has {side} pixels; accepted: 28x28")
        splits.append(ArraySplit(images[:, :1].copy(), split.labels))
    return Source(
        train=splits[0],
        test=splits[1],
        classes=source.classes,
        statistics=MNIST_STATISTICS,
        move="affine",
        place=folder,
    )
