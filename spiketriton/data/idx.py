"""The idx format of MNIST and Fashion-MNIST: two zero bytes, a type (8: bytes), a rank, sizes (big-endian), data."""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from torchvision import datasets

from spiketriton.config import DataConfig
from spiketriton.data.download import (
    FAILURES,
    RemoteFile,
    data_root,
    describe_missing,
    obtain,
    one_process_at_a_time,
)
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit
from spiketriton.system.errors import UserError

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_NOWHERE: Mapping[Path, str] = MappingProxyType({})


def of_files(
    dataset: type[datasets.MNIST], config: DataConfig, places: Mapping[Path, str] = _NOWHERE
) -> Source:
    """The grey 28 x 28 images of `dataset`, downloaded if no folder has its four files. UserError.

    places: where the files may lie beside data.root, and what each is.
    """
    files = _found(dataset, config, places)
    folder = files[_FILES[0]].parent

    def split(prefix: str) -> ArraySplit:
        image_path, label_path = (files[name] for name in _FILES if name.startswith(prefix))
        images, labels = read(image_path, rank=3), read(label_path, rank=1)
        if images.shape[1:] != (28, 28):
            raise UserError(
                f"{config.name}: {image_path} holds an array of {images.shape}, not images of 28x28"
            )
        return ArraySplit(images[:, None].copy(), labels.copy())

    return Source(
        train=split("train"),
        test=split("t10k"),
        classes=tuple(dataset.classes),
        place=folder if folder in places else None,
    )


def _found(
    dataset: type[datasets.MNIST], config: DataConfig, places: Mapping[Path, str]
) -> dict[str, Path]:
    """The four files in the first folder that has them all, downloaded if there is none."""
    root = data_root(config)
    folder = root / dataset.__name__ / "raw"
    for place in (root, folder, *places):
        found = {name: path for name in _FILES if (path := find(place, name))}
        if len(found) == len(_FILES):
            return found
    remote = [RemoteFile(dataset.mirrors[0] + name, md5) for name, md5 in dataset.resources]
    try:
        if not config.download:
            why = "its files are missing and data.download is false"
            raise describe_missing(config, remote[0], folder, why)
        with one_process_at_a_time(folder):
            return {file.name.removesuffix(".gz"): obtain(file, folder, config) for file in remote}
    except FAILURES as error:
        raise describe_missing(config, remote[0], folder, f"cannot write ({error})") from error
    except UserError as error:
        searched = [str(root), str(folder), *(f"{path} ({what})" for path, what in places.items())]
        raise UserError(
            f"{error}; searched for all of {', '.join(_FILES)}, gzipped or not, in {', '.join(searched)}"
        ) from error


def find(folder: Path, name: str) -> Path | None:
    """`name` or `name.gz` in `folder`, or None."""
    for candidate in (name, name + ".gz"):
        path = folder / candidate
        if path.is_file():
            return path
    return None


def read(path: Path, rank: int) -> np.ndarray:
    """The unsigned bytes of an idx file, gzipped or not, in its own shape (`rank` dimensions). UserError."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error or type(error).__name__}") from error
    magic = bytes([0, 0, 0x08, rank])
    if raw[:4] != magic:
        raise UserError(
            f"{path} is not an idx file of {rank}-dimensional unsigned bytes: it starts with "
            f"{raw[:4].hex() or 'nothing'}, not {magic.hex()}"
        )
    header = 4 + 4 * rank
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, header, 4))
    held, promised = len(raw) - header, math.prod(shape)
    if held != promised:
        raise UserError(
            f"{path} is damaged or cut short: its header promises {promised:,} bytes of data, "
            f"it holds {max(held, 0):,}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
