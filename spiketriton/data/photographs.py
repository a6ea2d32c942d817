"""Photographs in class folders: `imagenette`, and your own as `imagefolder`.

Mean and deviation are those of the training images in 0..1: ImageNet's, in common use.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torchvision import datasets

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.config.words import some
from spiketriton.data.download import RemoteFile, data_root, unpacked
from spiketriton.data.sources import Source
from spiketriton.data.splits import FileSplit, drawn_of_each, folders_of_splits
from spiketriton.system.errors import UserError, one_line

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_AMAZON = "https://s3.amazonaws.com/fast-ai-imageclas/"
IMAGENETTE_ARCHIVES = {
    "full": RemoteFile(_AMAZON + "imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612"),
    "320px": RemoteFile(_AMAZON + "imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),
    "160px": RemoteFile(_AMAZON + "imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),
}


@plugins.data("imagenette")
def imagenette(config: DataConfig) -> Source:
    """Ten easy classes of ImageNet, 9,469 + 3,925 photographs (github.com/fastai/imagenette), from the archive's folder
    or, where data.root has none, from class folders: see `class_folders`."""
    root, archive = data_root(config), IMAGENETTE_ARCHIVES[config.variant]
    own = root / archive.name.removesuffix(".tgz")
    given = None if own.is_dir() else class_folders(config)
    if given is None:
        folder, names = unpacked(archive, own.name, config), ["train", "val"]
    else:
        folder, names = given, folders_of_splits(given, config, "Imagenette's photographs")

    source = of_folders(folder, names, config)
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
    return sized(replace(source, classes=classes, place=given), config)


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


def class_folders(config: DataConfig) -> Path | None:
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
        source = of_folders(root, folders_of_splits(root, config, "images"), config)
        return sized(source, config, own_side=True)
    whole = class_files(root, config)
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
    return sized(of_splits(train, test, note=note), config, own_side=True)


_LOOKED_AT = 64  # images, spread over the training images


def sized(source: Source, config: DataConfig, *, own_side: bool = False) -> Source:
    """The source, which says where images are enlarged to what the network sees.

    own_side: where all that are looked at have one size below that, and data.image_size is not given, their shorter
    side is what the network sees. Files that cannot be read are passed over here: they are named when they are read.
    """
    assert isinstance(source.train, FileSplit)
    sizes = []
    for at in np.unique(np.linspace(0, len(source.train) - 1, _LOOKED_AT, dtype=np.int64)):
        with contextlib.suppress(UserError):
            sizes += [photo.size for photo in source.train.read(np.array([at]))]
    side = config.image_size or source.image_size
    small = [size for size in sizes if min(size) < side]
    if not small:
        return source
    (width, height), alike = small[0], len({*sizes}) == 1
    if own_side and alike and not config.image_size:
        note = f"images of {width}x{height} pixels are seen at {min(small[0])}x{min(small[0])}, not at {side}x{side}"
        source = replace(source, image_size=min(small[0]))
    else:
        share = "" if len(small) == len(sizes) else f"{len(small)} of {len(sizes)} "
        what = f"{width}x{height} pixels" if alike else f"fewer than {side} pixels a side"
        note = f"{share}images of {what} are enlarged to {side}x{side}"
    note += ": data.image_size sets what the network sees"
    return replace(source, note="; ".join(filter(None, (source.note, note))))


def _holds_classes(root: Path) -> bool:
    """Whether it has folders, and none of them is of a split."""
    try:
        names = {path.name for path in root.iterdir() if path.is_dir()}
    except OSError:
        return False
    return not names & {"train", "val", "test"} and any(name[0] != "." for name in names)


IMAGE_ENDINGS = (*datasets.folder.IMG_EXTENSIONS, ".gif")


def is_image(path: str) -> bool:
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


def of_folders(folder: Path, names: Sequence[str], config: DataConfig) -> Source:
    """Splits of a tree of class folders, which must have the same classes: train, test, validation."""
    train, test, *more = others = [class_files(folder / name, config) for name in names]
    for name, other in zip(names, others, strict=True):
        if train.classes != other.classes:
            raise UserError(
                f"{config.name}: {folder} has different classes in {names[0]} and {name}: "
                f"only in {names[0]}: {some(sorted({*train.classes} - {*other.classes})) or 'none'}; "
                f"only in {name}: {some(sorted({*other.classes} - {*train.classes})) or 'none'}"
            )
    return of_splits(train, test, more[0] if more else None)


def class_files(folder: Path, config: DataConfig) -> FileSplit:
    """The images of class folders. UserError: no folder, no class folder, no images, no permission."""
    try:
        found = _VisibleFolders(folder, loader=str, is_valid_file=is_image)
    except OSError as error:
        raise UserError(f"{config.name}: {folder}: {one_line(error)}") from error
    return FileSplit(found.samples, found.classes)


def of_splits(
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
