"""Missing, damaged and contradictory data: one line that names the file and what to do."""

import gzip
import os
import pickle
import socket
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from spiketriton.data import build_data, download, sources
from spiketriton.data.download import RemoteFile
from spiketriton.errors import UserError
from tests.small_data import (
    WNIDS,
    accept_checksums,
    data_recipe,
    make_cifar100,
    make_class_tree,
    make_fashion_mnist,
    make_imagenette,
)


def mistake(recipe, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        build_data(recipe, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def mentions(message: str, *words: object) -> None:
    for word in words:
        assert str(word) in message, f"{word!r} not in: {message}"


# --- missing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "archive", "md5"),
    [
        ("imagenette", "imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),
        ("cifar10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        ("cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ],
)
def test_missing_and_not_to_be_downloaded(tmp_path, monkeypatch, name, archive, md5):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path)
    root = tmp_path / "nowhere"
    message = mistake(data_recipe(name, root, data="download = false"))
    mentions(message, name, archive, f"/{archive}, md5 {md5}", f"into {root}", "data.root")
    mentions(message, "data.download is false")
    assert not root.exists()  # nothing is made where nothing was asked for


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def address(monkeypatch, tmp_path):
    """`address(url_prefix)`: every data set is downloaded from there."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "no debian")

    def point(prefix: str, md5: str | None = None) -> None:
        archives = {
            key: RemoteFile(prefix + file.name, md5 or file.md5)
            for key, file in sources.IMAGENETTE_ARCHIVES.items()
        }
        monkeypatch.setattr(sources, "IMAGENETTE_ARCHIVES", archives)
        for dataset in (datasets.CIFAR10, datasets.CIFAR100):
            monkeypatch.setattr(dataset, "url", prefix + dataset.filename)
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [prefix])

    return point


@pytest.mark.parametrize("name", ["imagenette", "cifar10", "cifar100", "fashion_mnist"])
def test_no_network(tmp_path, address, name):
    address(f"http://127.0.0.1:{unused_port()}/")
    message = mistake(data_recipe(name, tmp_path / "data"))
    mentions(message, name, "the download failed", "Connection refused", "md5", "data.root")
    mentions(message, f"into {tmp_path / 'data'}")
    if name == "fashion_mnist":  # all four files at once, not one after the other
        mentions(message, "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte", "dataset-fashion")
    assert [path for path in (tmp_path / "data").rglob("*.part")] == []


def test_a_server_that_never_answers(tmp_path, address, monkeypatch):
    monkeypatch.setattr(download, "NETWORK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        message = mistake(data_recipe("cifar100", tmp_path))
    mentions(message, "timed out", "cifar-100-python.tar.gz")
    assert socket.getdefaulttimeout() is None


def test_an_archive_that_is_not_on_the_server(tmp_path, address, serve):
    address(serve(tmp_path))
    mentions(mistake(data_recipe("imagenette", tmp_path / "data")), "404", "imagenette2-320.tgz")


def test_a_download_is_unpacked_and_used(tmp_path, address, serve, monkeypatch):
    archive = make_cifar100(tmp_path / "server")
    accept_checksums(archive, monkeypatch.setattr)
    address(serve(archive.parent))
    assert build_data(data_recipe("cifar100", tmp_path / "data")).train.images == 40
    # the second time nothing is asked of the network
    address(f"http://127.0.0.1:{unused_port()}/")
    assert build_data(data_recipe("cifar100", tmp_path / "data")).train.images == 40


def test_fashion_mnist_is_downloaded_file_by_file(tmp_path, address, serve, monkeypatch):
    server = make_fashion_mnist(tmp_path / "server")
    known = [(name, calculate_md5(server / name)) for name, _ in datasets.FashionMNIST.resources]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", known)
    address(serve(server))
    data = tmp_path / "data"
    assert build_data(data_recipe("fashion_mnist", data)).train.images == 40
    assert (data / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz").exists()


def test_a_download_with_another_checksum_is_not_kept(tmp_path, address, serve):
    server = tmp_path / "server"
    server.mkdir()
    (server / "imagenette2-320.tgz").write_bytes(b"something else")
    address(serve(server))
    message = mistake(data_recipe("imagenette", tmp_path / "data"))
    mentions(message, "the download failed", "corrupted", "imagenette2-320.tgz")
    assert sorted(os.listdir(tmp_path / "data")) == [".download.lock"]


def test_a_damaged_archive_is_replaced_by_a_download(tmp_path, address, serve, monkeypatch):
    archive = make_cifar100(tmp_path / "server")
    accept_checksums(archive, monkeypatch.setattr)
    address(serve(archive.parent))
    data = tmp_path / "data"
    data.mkdir()
    (data / archive.name).write_bytes(archive.read_bytes()[:1000])
    assert build_data(data_recipe("cifar100", data)).train.images == 40


def test_disk_full(tmp_path, address, serve, monkeypatch):
    """A limit on the size of files stands in for the full disk: the write itself fails."""
    resource = pytest.importorskip("resource")
    archive = make_cifar100(tmp_path / "server")
    accept_checksums(archive, monkeypatch.setattr)
    address(serve(archive.parent))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = mistake(data_recipe("cifar100", tmp_path / "data"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    mentions(message, "File too large", archive.name, "data.root")
    assert not (tmp_path / "data" / (archive.name + ".part")).exists()


def test_a_root_that_cannot_be_made(tmp_path, address):
    (tmp_path / "file").write_text("")
    address(f"http://127.0.0.1:{unused_port()}/")
    for name in ("cifar10", "imagenette", "fashion_mnist"):
        message = mistake(data_recipe(name, tmp_path / "file" / "data"))
        mentions(message, name, "Not a directory", tmp_path / "file" / "data", "data.root")


def test_an_interrupted_unpacking_leaves_no_half_data_set(tmp_path, monkeypatch):
    accept_checksums(make_cifar100(tmp_path), monkeypatch.setattr)

    def interrupted(archive, folder):
        extract(archive, folder)
        raise KeyboardInterrupt

    extract = download.extract_archive
    with monkeypatch.context() as patch:
        patch.setattr(download, "extract_archive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_data(data_recipe("cifar100", tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".download.lock", "cifar-100-python.tar.gz"]
    assert build_data(data_recipe("cifar100", tmp_path)).train.images == 40


def test_imagefolder_without_folders(tmp_path):
    mentions(mistake(data_recipe("imagefolder", tmp_path)), tmp_path / "train", "data.root")
    (tmp_path / "train").mkdir()
    mentions(mistake(data_recipe("imagefolder", tmp_path)), tmp_path / "test", "val/<class>/")


# --- damaged --------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no image":
        path.write_text("<html>404</html>")
    else:
        path.unlink()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["empty", "cut short", "no image", "gone"])
def test_an_unreadable_photograph_names_its_file_and_class(tmp_path, how, workers):
    folder = make_imagenette(tmp_path, per_class=1)
    data = build_data(
        data_recipe("imagenette", tmp_path, data=f"image_size = 32\nworkers = {workers}")
    )
    for split in ("train", "val"):
        path = folder / split / WNIDS[3] / f"{WNIDS[3]}_{split}_0.JPEG"
        damage(path, how)
        with pytest.raises(UserError) as caught:
            list(data.test if split == "val" else islice(data.train.from_step(0), 2))
        mentions(str(caught.value), path, "n03000684 (chain saw)")
        if how == "empty":
            mentions(str(caught.value), "empty")
        assert "\n" not in str(caught.value)


def test_images_before_the_damaged_one_are_delivered(tmp_path):
    folder = make_imagenette(tmp_path, per_class=1)
    damage(folder / "val" / WNIDS[9] / f"{WNIDS[9]}_val_0.JPEG", "empty")
    recipe = data_recipe("imagenette", tmp_path, data="image_size = 32\nworkers = 2")
    batches = iter(build_data(recipe).test)
    assert next(batches)[1].tolist() == [0, 1, 2, 3]
    assert next(batches)[1].tolist() == [4, 5, 6, 7]
    with pytest.raises(UserError, match="parachute"):
        next(batches)


def test_a_class_without_images(tmp_path):
    folder = make_imagenette(tmp_path)
    for path in (folder / "val" / WNIDS[2]).iterdir():
        path.unlink()
    mentions(mistake(data_recipe("imagenette", tmp_path)), folder / "val", WNIDS[2])
    make_class_tree(tmp_path, ("train", "val"), ("ape",), 1)
    (tmp_path / "train" / "bee").mkdir()
    (tmp_path / "train" / "bee" / "notes.txt").write_text("")
    mentions(mistake(data_recipe("imagefolder", tmp_path)), tmp_path / "train", "bee")


def test_a_single_class(tmp_path):
    make_class_tree(tmp_path, ("train", "val"), ("cat",), 1)
    mentions(mistake(data_recipe("imagefolder", tmp_path)), "one class only, cat")


def test_no_class_folders(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    mentions(mistake(data_recipe("imagefolder", tmp_path)), "class folder", tmp_path / "train")


def test_imagenette_without_a_split_or_with_a_stranger(tmp_path):
    folder = make_imagenette(tmp_path)
    (folder / "train" / "n00000000").mkdir()
    mentions(mistake(data_recipe("imagenette", tmp_path)), folder / "train", "n00000000")
    (folder / "val").rename(folder / "test")
    (folder / "train" / "n00000000").rmdir()
    mentions(mistake(data_recipe("imagenette", tmp_path)), folder / "val", "No such file")


def test_other_classes_in_the_test_split(tmp_path):
    make_class_tree(tmp_path, ("train",), ("ape", "bee", "cat"), 1)
    make_class_tree(tmp_path, ("val",), ("ape", "bee", "dog"), 1)
    message = mistake(data_recipe("imagefolder", tmp_path))
    mentions(message, "only in train: cat", "only in val: dog")


def test_a_cut_short_archive(tmp_path, monkeypatch):
    archive = make_cifar100(tmp_path)
    accept_checksums(archive, monkeypatch.setattr)
    damage(archive, "cut short")
    message = mistake(data_recipe("cifar100", tmp_path, data="download = false"))
    mentions(message, f"{archive} is damaged or cut short", "data.download is false")


@pytest.mark.parametrize("how", ["cut short", "gone"])
@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_a_damaged_cifar_file(cifar_archives, file, how):
    root = cifar_archives["cifar100"].parent
    build_data(data_recipe("cifar100", root))
    path = root / "cifar-100-python" / file
    damage(path, how)
    message = mistake(data_recipe("cifar100", root))
    mentions(message, path, "missing" if how == "gone" else "cut short", "remove", root)


def test_a_hostile_pickle_is_not_opened(cifar_archives, tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was here",)

    root = cifar_archives["cifar10"].parent
    build_data(data_recipe("cifar10", root))
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Hostile()))
    mentions(mistake(data_recipe("cifar10", root)), "data_batch_3", "damaged")
    assert not (tmp_path / "was here").exists()


def idx_bytes(*shape: int, kind: int = 8, data: int | None = None) -> bytes:
    size = 1
    for side in shape:
        size *= side
    header = bytes([0, 0, kind, len(shape)]) + b"".join(side.to_bytes(4, "big") for side in shape)
    return header + bytes(size if data is None else data)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "it starts with nothing"),
        (b"<html>", "it starts with 3c68746d"),
        (idx_bytes(40, 28, 28, kind=13), "it starts with 00000d03, not 00000803"),
        (idx_bytes(40), "it starts with 00000801, not 00000803"),
        (idx_bytes(40, 28, 28)[:7], "cut short"),
        (idx_bytes(40, 28, 28, data=31_000), "promises 31,360 bytes of data, it holds 31,000"),
        (idx_bytes(40, 28, 28, data=31_361), "promises 31,360 bytes of data, it holds 31,361"),
        (idx_bytes(2**32 - 1, 2**32 - 1, 2**32 - 1, data=5), "it holds 5"),
        (idx_bytes(39, 28, 28), "holds 39 images, but"),
        (idx_bytes(40, 32, 32), "not images of 28x28"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_idx_file(fashion_root, raw, words, zipped):
    path = fashion_root / "train-images-idx3-ubyte.gz"
    if zipped:
        path.write_bytes(gzip.compress(raw))
    else:
        path.unlink()
        path = path.with_suffix("")
        path.write_bytes(raw)
    mentions(mistake(data_recipe("fashion_mnist", fashion_root)), path, words)


def test_a_damaged_gzip_and_a_wrong_label(fashion_root):
    path = fashion_root / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    raw = bytearray(gzip.decompress(whole))
    raw[-1] = 10
    for content, words in [
        (whole[:-10], "end-of-stream"),
        (b"no gzip", "Not a gzipped file"),
        (whole[:20] + b"\xff\xff" + whole[22:], "cannot read"),
        (gzip.compress(bytes(raw)), "the label 10"),
    ]:
        path.write_bytes(content)
        mentions(mistake(data_recipe("fashion_mnist", fashion_root)), path, words)


# --- contradictory --------------------------------------------------------------------------


def test_fewer_images_than_a_batch():
    message = mistake(data_recipe("digits", train="batch_size = 2000"))
    mentions(message, "train.batch_size = 2,000", "1,437 training images")
    extra = "train_images = 100"
    message = mistake(data_recipe("digits", data=extra, train="batch_size = 128"))
    mentions(message, "128", "100 training images", "data.train_images = 100")


@pytest.mark.parametrize(("key", "most"), [("train_images", "1,437"), ("test_images", "360")])
def test_a_subset_larger_than_the_data_set(key, most):
    message = mistake(data_recipe("digits", data=f"{key} = 5000"))
    mentions(message, f"data.{key} = 5,000", f"only {most}")


def test_a_batch_that_does_not_divide_among_processes():
    message = mistake(data_recipe("digits", train="batch_size = 6"), rank=0, world_size=4)
    mentions(message, "train.batch_size = 6", "4 ranks")


def test_one_lock_serves_all_ranks(tmp_path, monkeypatch):
    """Ranks that start together unpack one after the other, and only the first has work."""
    from concurrent.futures import ThreadPoolExecutor

    accept_checksums(make_cifar100(tmp_path), monkeypatch.setattr)
    unpackings = []

    def slow(archive, folder):
        unpackings.append(archive)
        time.sleep(0.1)
        extract(archive, folder)

    extract = download.extract_archive
    monkeypatch.setattr(download, "extract_archive", slow)
    config = data_recipe("cifar100", tmp_path).data
    remote = RemoteFile(datasets.CIFAR100.url, datasets.CIFAR100.tgz_md5)
    with ThreadPoolExecutor(4) as pool:
        work = [
            pool.submit(download.unpacked, remote, "cifar-100-python", replace(config))
            for _ in range(4)
        ]
        folders = {item.result() for item in work}
    assert folders == {tmp_path / "cifar-100-python"}
    assert len(unpackings) == 1
