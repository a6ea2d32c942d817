"""Small data sets of noise in the exact layouts of the real ones, and what refusals must say.

from tests.small_data import make_imagenette, make_cifar100, accept_checksums
"""

import contextlib
import gzip
import hashlib
import itertools
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from spiketriton.config import Recipe, recipe_from_toml
from spiketriton.data import Data, build_data
from spiketriton.system.errors import UserError

WNIDS = sorted(datasets.Imagenette._WNID_TO_CLASS)


def data_recipe(
    name: str, root: Path | str = "data", *, data: str = "", train: str = "", seed: int = 0
) -> Recipe:
    """A recipe for `name` in `root`: no workers, batches of 4, unless the TOML lines differ."""
    workers = "" if "workers" in data else "workers = 0"
    batch_size = "" if "batch_size" in train else "batch_size = 4"
    return recipe_from_toml(
        f'seed = {seed}\n[data]\nname = "{name}"\nroot = "{root}"\n{workers}\n{data}\n'
        f'[model]\nname = "resnet20"\n[train]\n{batch_size}\n{train}\n',
        name="test",
    )


def noise_image(rng: np.random.Generator, mode: str, size: tuple[int, int]) -> Image.Image:
    """Noise of `size` (width, height) in one of Pillow's 8-bit modes."""
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image.convert(mode)


def make_imagenette(root: Path, variant: str = "320px", per_class: int = 3) -> Path:
    """Imagenette's tree, `per_class` JPEGs in each class of both splits; returns its folder."""
    suffix = {"full": "", "320px": "-320", "160px": "-160"}[variant]
    folder = Path(root) / f"imagenette2{suffix}"
    make_class_tree(folder, ("train", "val"), WNIDS, per_class)
    return folder


def make_class_tree(
    folder: Path, splits: Sequence[str], classes: Sequence[str], per_class: int
) -> None:
    """`folder/<split>/<class>/*.JPEG` of odd sizes, the second of a class grey, the third CMYK."""
    rng = np.random.default_rng(0)
    sizes = [(43, 37), (31, 64), (57, 32), (1, 90), (40, 3)]
    for split in splits:
        for name in classes:
            place = folder / split / name
            place.mkdir(parents=True)
            for at in range(per_class):
                mode = ("RGB", "L", "CMYK")[at % 3]
                image = noise_image(rng, mode, sizes[at % len(sizes)])
                image.save(place / f"{name}_{split}_{at}.JPEG", "JPEG")


def make_cifar100(root: Path, n: int = 40) -> Path:
    """CIFAR-100's archive in `root`, `n` training and `n` test images; returns its path.

    torchvision knows the real archive's checksums: call `accept_checksums` too.
    """
    return _make_cifar(root, datasets.CIFAR100, n, 100, "fine_labels")


def make_cifar10(root: Path, n: int = 40) -> Path:
    """CIFAR-10's archive in `root`, `n` (a multiple of 5) training and `n` test images."""
    return _make_cifar(root, datasets.CIFAR10, n, 10, "labels")


def _make_cifar(
    root: Path, dataset: type[datasets.CIFAR10], n: int, classes: int, key: str
) -> Path:
    rng = np.random.default_rng(0)
    names = [f"label {at}" for at in range(classes)]
    files: dict[str, dict[str, object]] = {dataset.meta["filename"]: {dataset.meta["key"]: names}}
    for parts in (dataset.train_list, dataset.test_list):
        for name, _ in parts:
            count = n // len(parts)
            labels = rng.integers(0, classes, count).tolist()
            data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            files[name] = {key: labels, "data": data}
    Path(root).mkdir(parents=True, exist_ok=True)
    archive = Path(root) / dataset.filename
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            raw = pickle.dumps(content, protocol=2)
            entry = tarfile.TarInfo(f"{dataset.base_folder}/{name}")
            entry.size = len(raw)
            tar.addfile(entry, BytesIO(raw))
    return archive


def accept_checksums(
    archive: Path, set_attribute: Callable[[object, str, object], None] = setattr
) -> None:
    """Makes torchvision's CIFAR class expect this archive's checksums instead of the real ones.

    In a test hand in `monkeypatch.setattr`; the plain `setattr` lasts as long as the process.
    """
    dataset = datasets.CIFAR100 if "100" in archive.name else datasets.CIFAR10
    with tarfile.open(archive) as tar:
        md5 = {
            Path(entry.name).name: _md5(tar.extractfile(entry).read()) for entry in tar.getmembers()
        }
    set_attribute(dataset, "tgz_md5", _md5(archive.read_bytes()))
    for field in ("train_list", "test_list"):
        set_attribute(dataset, field, [[name, md5[name]] for name, _ in getattr(dataset, field)])
    set_attribute(dataset, "meta", dataset.meta | {"md5": md5[dataset.meta["filename"]]})


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


def make_fashion_mnist(folder: Path, n: int = 40, *, zipped: bool = True) -> Path:
    """Fashion-MNIST's four idx files in `folder`, `n` training and `n` test images."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            raw = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            raw += array.tobytes()
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


Batch = tuple[torch.Tensor, torch.Tensor]


def all_of(batches: Iterable[Batch]) -> Batch:
    """All images and all labels of some batches."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def take(data: Data, count: int, step: int = 0) -> list[Batch]:
    """The first training batches from a step on."""
    with contextlib.closing(data.train.from_step(step)) as stream:
        return list(itertools.islice(stream, count))


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def mistake(recipe: Recipe, **kwargs: int) -> str:
    """What `build_data` says when it refuses the recipe: one line."""
    with pytest.raises(UserError) as caught:
        build_data(recipe, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def mentions(message: str, *words: object) -> None:
    for word in words:
        assert str(word) in message, f"{word!r} not in: {message}"


def damage(path: Path, how: str) -> None:
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no image":
        path.write_text("<html>404</html>")
    else:
        path.unlink()
