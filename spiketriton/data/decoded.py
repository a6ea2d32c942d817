"""Small image files, decoded once: all images of a split as an array of uint8 in the cache, as the files have them.

    <data.cache>/<data set>-<digest>.npy    uint8 [N, 3, H, W]: np.load(path, mmap_mode="r") reads it

The digest is of every file's path, size and time of change, in order: what is changed, added or removed makes another
array. The file appears whole or not at all. One process writes it, others wait and map it.
"""

import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from spiketriton.config import DataConfig
from spiketriton.data.download import one_process_at_a_time
from spiketriton.data.photographs import of_folders
from spiketriton.data.preparing import file_keys, in_chunks, in_processes, kept_in, say, workers_of
from spiketriton.data.sources import Held, Source
from spiketriton.data.splits import ArraySplit, FileSplit, folders_of_splits
from spiketriton.system.errors import UserError

JPEG = (b".jpg", b".jpeg")
FOLDER = ".decoded_images"  # in data.root
VERSION = 1  # of the pixels: another one for the same files if they are decoded otherwise


def of_small_images(
    folder: Path,
    config: DataConfig,
    *,
    image_size: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
) -> Source:
    """A data set of images of one size in class folders: train, and val or test. The run says where they lie, and
    whether they are JPEGs, whose pixels are not the original ones.

    UserError: a folder is missing or has other classes than the other; an image is damaged or of another size.
    """
    names = folders_of_splits(folder, config, "small images")
    source = of_folders(folder, names, config)
    lossy = any(path.lower().endswith(JPEG) for path in _files_of(source.train).paths)
    note = f"images of class folders in {folder}, not {config.name}'s archive"
    if lossy:
        note += "; JPEG has changed their pixels, which costs accuracy: say so beside a result"
    return in_memory(source, config, image_size=image_size, statistics=statistics, note=note)


def in_memory(
    source: Source,
    config: DataConfig,
    *,
    image_size: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    note: str = "",
) -> Source:
    """The source of files with its images decoded: arrays that are moved as small images are.

    UserError: an image is damaged or of another size than the first training image.
    """
    train_files, test_files = _files_of(source.train), _files_of(source.test)
    train, test = decoded(config, train_files), decoded(config, test_files)
    if train.shape[1:] != test.shape[1:]:
        side, other = ("x".join(map(str, images.shape[2:])) for images in (train, test))
        raise UserError(
            f"{config.name}: {test_files.path(0)} is {other} pixels, the training images {side}; "
            "accepted: one size"
        )
    return replace(
        source,
        train=ArraySplit(train, source.train.labels),
        test=ArraySplit(test, source.test.labels),
        image_size=image_size,
        statistics=statistics,
        move="crop",
        note=note,
    )


def _files_of(split: Held) -> FileSplit:
    assert isinstance(split, FileSplit)
    return split


def decoded(config: DataConfig, split: FileSplit) -> np.ndarray:
    """All images of a split, uint8 [N, 3, H, W], read-only from the cache or, where that cannot be written, in memory.

    UserError: an image is damaged, or has another size than the first.
    """
    keys = file_keys([split.path(at) for at in range(len(split))])
    digest = hashlib.sha256(f"{VERSION}\0".encode() + keys.tobytes()).hexdigest()[:16]
    path = kept_in(config, FOLDER) / f"{config.name}-{digest}.npy"
    if (kept := _whole(path, len(split))) is not None:
        return kept
    shape = (len(split), *_sides(split, 0))
    try:
        with one_process_at_a_time(path.parent):
            if (kept := _whole(path, len(split))) is not None:
                return kept
            say(f"{config.name}: {len(split):,} images are decoded once into {path}")
            _write(config, split, path, shape)
        return np.load(path, mmap_mode="r")
    except OSError as error:
        say(
            f"{config.name}: {decimal(int(np.prod(shape)))} of decoded images cannot be kept in {path.parent} "
            f"({error.strerror}) and are decoded at every start; data.cache names another folder"
        )
    images = np.empty(shape, np.uint8)
    _decode(config, split, images)
    return images


def _whole(path: Path, count: int) -> np.ndarray | None:
    """The array of a file; None: it is missing, or damaged."""
    try:
        found = np.load(path, mmap_mode="r")  # ValueError: it is cut short
    except Exception:  # on a damaged header numpy raises anything: the file is made anew
        return None
    fits = found.dtype == np.uint8 and found.ndim == 4 and found.shape[:2] == (count, 3)
    return found if fits else None


def _write(config: DataConfig, split: FileSplit, path: Path, shape: tuple[int, ...]) -> None:
    """UserError; OSError: there is no room."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of a process that was killed
    try:
        images = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        with part.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, no crash later
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            _decode(config, split, images)
            images.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _decode(config: DataConfig, split: FileSplit, images: np.ndarray) -> None:
    """Fills the array, by several processes if the images are many."""
    chunks = in_chunks(range(len(split)))
    processes = min(workers_of(config), len(chunks)) if len(chunks) > 2 else 0
    work = partial(_pixels, config.name, split)
    answers = in_processes(work, chunks, f"images of {config.name}", processes)
    for chunk, answer in zip(chunks, answers, strict=True):
        if isinstance(answer, str):
            raise UserError(answer)
        images[chunk.start : chunk.stop] = answer


def _pixels(name: str, split: FileSplit, chunk: range) -> np.ndarray | str:
    """The images of a chunk, uint8 [n, 3, H, W], or why there are none."""
    try:
        first = _sides(split, 0)
        found = np.empty((len(chunk), *first), np.uint8)
        for place, photo in enumerate(split.read(np.arange(chunk.start, chunk.stop))):
            pixels = np.asarray(photo.decode()).transpose(2, 0, 1)
            if pixels.shape != first:
                this, other = ("x".join(map(str, shape[1:])) for shape in (pixels.shape, first))
                return (
                    f"{name}: {photo.path} is {this} pixels, the first image {other}; accepted: one size"
                    ' (data.name = "imagefolder" takes images of any)'
                )
            found[place] = pixels
    except UserError as error:
        return str(error)
    return found


def _sides(split: FileSplit, at: int) -> tuple[int, ...]:
    """3, height and width of an image. UserError: it is damaged."""
    (photo,) = split.read(np.array([at]))
    width, height = photo.size
    return 3, height, width
