"""The data sets by name: what they hold, where to find it, and how images are normalised.

Mean and deviation are those of the training images in 0..1: ImageNet's and CIFAR's are in common use, others were
computed from the files; synthetic images are uniform noise.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torchvision import datasets

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.config.words import some
from spiketriton.data.digits import packaged
from spiketriton.data.download import (
    FAILURES,
    RemoteFile,
    data_root,
    describe_missing,
    obtain,
    one_process_at_a_time,
    unpacked,
)
from spiketriton.data.splits import (
    ArraySplit,
    FileSplit,
    RepeatedSplit,
    Split,
    as_tensor,
    drawn_of_each,
    folders_of_splits,
    in_bytes,
)
from spiketriton.system.errors import UserError, one_line

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
FASHION_STATISTICS = ((0.2860,), (0.3530,))
CLUTTERED_STATISTICS = ((0.2069,), (0.3319,))
DIGITS_STATISTICS = ((0.3054,), (0.3760,))
SYNTHETIC_STATISTICS = ((0.5,) * 3, (0.2887,) * 3)

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

_AMAZON = "https://s3.amazonaws.com/fast-ai-imageclas/"
IMAGENETTE_ARCHIVES = {
    "full": RemoteFile(_AMAZON + "imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612"),
    "320px": RemoteFile(_AMAZON + "imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),
    "160px": RemoteFile(_AMAZON + "imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),
}


Move = Literal["photo", "crop", "affine", "events"]
Held = ArraySplit | FileSplit | Split


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: its two splits and what the transforms need to know."""

    train: Held
    test: Held
    validation: Held | None = None  # of its own, beside the training images
    classes: tuple[str, ...]
    channels: int
    image_size: int  # default side of the square images that the network sees
    statistics: tuple[tuple[float, ...], tuple[float, ...]]  # mean, std by channel
    move: Move  # kind of augmentation, see transforms.py
    # in place of it: uint8 [C, S, S] to the same, with torch's generator seeded by image and epoch
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None
    synthetic: bool = False
    mirrors: bool = True  # of events: whether a mirrored recording is still of its class
    split: str = ""  # of events: which recordings are tested on
    bin_ms: np.ndarray | None = None  # of events in bins of time: of each test recording
    place: Path | None = None  # where its files are, if that is not where data.root says
    note: str = ""  # how its images differ from those that everybody has, for the run's first lines

    def refuse_unsound(self, name: str) -> None:
        """UserError: what no network can be trained and tested on, or only with wrong numbers."""
        for why in self._unsound():
            raise UserError(f'data.name = "{name}": {why}')

    def _unsound(self) -> Iterator[str]:
        if self.move not in get_args(Move):
            yield f"move {self.move!r}; accepted: {', '.join(get_args(Move))}"
        splits = self.train, self.test, self.validation
        if self.move == "photo" and any(isinstance(split, ArraySplit) for split in splits):
            yield 'move "photo" of images in memory (ArraySplit); accepted: "crop", "affine", or files (FileSplit)'
        if self.image_size < 1:
            yield f"image_size {self.image_size}; accepted: 1 or more"
        if len({*self.classes}) < len(self.classes):
            twice = max(self.classes, key=self.classes.count)
            yield f"two classes are named {twice!r}; accepted: names that differ"
        for name in ("train", "test", "validation"):
            split = getattr(self, name)
            if split is not None:
                yield from self._unsound_images(name, split)
        if self.move == "events":
            if self.augment is not None:
                yield "augment of recordings of events; accepted: none, of images alone"
            return
        mean, std = (np.asarray(values, float) for values in self.statistics)
        shaped = mean.shape == std.shape == (self.channels,)
        if not (shaped and np.isfinite([mean, std]).all() and (std > 0).all()):
            yield (
                f"statistics {self.statistics}; accepted: a mean and a standard deviation above 0 for each of "
                f"{self.channels} channels"
            )

    def _unsound_images(self, name: str, split: Held) -> Iterator[str]:
        count, labels = len(split), as_tensor(split.labels)
        if count == 0:
            yield f"{name} holds no images; accepted: one or more"
        if labels.is_floating_point() or labels.shape != (count,):
            yield (
                f"{name}.labels of shape {list(labels.shape)} and {labels.dtype} for {count:,} images; "
                f"accepted: integers [{count}]"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            yield (
                f"{name} has labels from {low} to {high}; accepted with {len(self.classes)} classes: "
                f"0 to {len(self.classes) - 1}"
            )
        images: Any = split.images if type(split) is ArraySplit else None
        if images is not None and len(images) != count:
            yield f"{name} holds {len(images):,} images and {count:,} labels; accepted: as many"
        if images is None and self.move in ("crop", "affine"):
            images = split.read(np.zeros(1, np.int64))
        if images is None:
            return
        if images.ndim != 4 or images.shape[1] != self.channels:
            yield (
                f"{name} holds images of shape {list(images.shape)}; accepted: [N, {self.channels}, "
                "height, width]"
            )
        try:
            in_bytes(images)
        except UserError as error:
            yield f"{name}: {error}"


class Recorded(ABC):
    """Data that are a `Source` once the time steps are known: recordings of event cameras, see `events.cache`."""

    @abstractmethod
    def source(self, config: DataConfig, steps: int) -> Source:
        """As `steps` frames each."""


@plugins.data("imagenette")
def imagenette(config: DataConfig) -> Source:
    """Ten easy classes of ImageNet, 9,469 + 3,925 photographs (github.com/fastai/imagenette), from the archive's folder
    or, where data.root has none, from class folders: see `_class_folders`."""
    root, archive = data_root(config), IMAGENETTE_ARCHIVES[config.variant]
    own = root / archive.name.removesuffix(".tgz")
    given = None if own.is_dir() else _class_folders(config)
    if given is None:
        folder, names = unpacked(archive, own.name, config), ["train", "val"]
    else:
        folder, names = given, folders_of_splits(given, config, "Imagenette's photographs")

    source = _photographs(folder, names, config)
    unknown = [name for name in source.classes if name not in _IMAGENETTE_CLASSES]
    if unknown:
        raise UserError(
            f"imagenette: {folder / names[0]} holds the folder {unknown[0]!r}, which is not one of "
            "Imagenette's ten classes"
        )
    classes = tuple(_IMAGENETTE_CLASSES[name] for name in source.classes)
    for split in filter(None, (source.train, source.test, source.validation)):
        assert isinstance(split, FileSplit)
        split.classes = classes
    return replace(source, classes=classes, place=given)


_IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def _class_folders(config: DataConfig) -> Path | None:
    """data.root/NAME, or data.root itself, whichever first holds train/<class>/* (and val/ or test/ beside it)."""
    root = data_root(config)
    return next((place for place in (root / config.name, root) if (place / "train").is_dir()), None)


@plugins.data("imagefolder")
def imagefolder(config: DataConfig) -> Source:
    """Your own photographs: root/train/<class>/*, and root/val/<class>/* or root/test/<class>/*; or root/<class>/*.

    Of the latter a fifth of each class is tested, drawn by the files' names: the same ones for every seed.
    """
    root = data_root(config)
    if isinstance(config.validation, str) or not _holds_classes(root):
        return _photographs(root, folders_of_splits(root, config, "images"), config)
    whole = _files(root, config)
    start = len(os.fsencode(root)) + 1
    names = (blake2b(path[start:], digest_size=8).digest() for path in whole.paths)
    draws = np.frombuffer(b"".join(names), np.uint64)
    tested = drawn_of_each(whole.labels.numpy(), draws, lambda count: max(1, round(count / 5)))
    train, test = whole.only(~tested), whole.only(tested)
    alone = sorted({*range(len(whole.classes))} - {*train.labels.tolist()})
    if alone:
        raise UserError(
            f"{config.name}: {root / whole.classes[alone[0]]} has one image; accepted: two or more, one of them to test"
        )
    note = f"{root} has no train folder: a fifth of each class is tested, drawn by the files' names"
    return _of_files(train, test, note=note)


def _holds_classes(root: Path) -> bool:
    """Whether it has folders, and none of them is of a split."""
    try:
        names = {path.name for path in root.iterdir() if path.is_dir()}
    except OSError:
        return False
    return not names & {"train", "val", "test"} and any(name[0] != "." for name in names)


IMAGE_ENDINGS = (*datasets.folder.IMG_EXTENSIONS, ".gif")


def _is_image(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.endswith(IMAGE_ENDINGS) and not name.startswith(".")


class _VisibleFolders(datasets.ImageFolder):
    """Class folders whose names begin with a dot, as .ipynb_checkpoints, are none."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes, _ = super().find_classes(directory)
        shown = [name for name in classes if not name.startswith(".")]
        if not shown:
            raise FileNotFoundError(f"no class folder in {directory}")
        return shown, {name: index for index, name in enumerate(shown)}


def _photographs(folder: Path, names: Sequence[str], config: DataConfig) -> Source:
    """Splits of a tree of class folders, which must have the same classes: train, test, validation."""
    train, test, *more = others = [_files(folder / name, config) for name in names]
    for name, other in zip(names, others, strict=True):
        if train.classes != other.classes:
            raise UserError(
                f"{config.name}: {folder} has different classes in {names[0]} and {name}: "
                f"only in {names[0]}: {some(sorted({*train.classes} - {*other.classes})) or 'none'}; "
                f"only in {name}: {some(sorted({*other.classes} - {*train.classes})) or 'none'}"
            )
    return _of_files(train, test, more[0] if more else None)


def _files(folder: Path, config: DataConfig) -> FileSplit:
    """The images of class folders. UserError: no folder, no class folder, no images, no permission."""
    try:
        found = _VisibleFolders(folder, loader=str, is_valid_file=_is_image)
    except OSError as error:
        raise UserError(f"{config.name}: {folder}: {one_line(error)}") from error
    return FileSplit(found.samples, found.classes)


def _of_files(
    train: FileSplit, test: FileSplit, validation: FileSplit | None = None, note: str = ""
) -> Source:
    return Source(
        train=train,
        test=test,
        validation=validation,
        note=note,
        classes=train.classes,
        channels=3,
        image_size=224,
        statistics=IMAGENET_STATISTICS,
        move="photo",
    )


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
    """CIFAR-10 from its archive or, where data.root has none, from class folders: see `_class_folders`.

    Of these the run says that they are not the original pixels.
    """
    root, archive = data_root(config), datasets.CIFAR10
    whole = (root / archive.base_folder).is_dir() or (root / archive.filename).exists()
    folder = None if whole else _class_folders(config)
    if folder is None:
        return _cifar(archive, CIFAR10_STATISTICS, config)
    source = _photographs(folder, folders_of_splits(folder, config, "small images"), config)
    files = [split for split in (source.train, source.test) if isinstance(split, FileSplit)]
    from spiketriton.data.decoded import decoded

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


@plugins.data("fashion_mnist")
def fashion_mnist(config: DataConfig) -> Source:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 + 10,000 grey images of 28 x 28, as idx files, gzipped or not."""
    from spiketriton.data import idx

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
    from spiketriton.data.clutter import SIDE, cluttered

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
    from spiketriton.data import idx

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
