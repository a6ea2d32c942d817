"""Archives are downloaded and unpacked whole; otherwise one line says what is missing and where."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from spiketriton.data import build_data, download, fashion_mnist, photographs
from spiketriton.data.download import RemoteFile
from spiketriton.system.errors import UserError
from tests.small_data import (
    accept_checksums,
    data_recipe,
    make_cifar100,
    mentions,
    mistake,
)


@pytest.mark.parametrize(
    ("name", "archive", "md5"),
    [
        ("imagenette", "imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),
        ("cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("dvs_gesture", "DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1"),
        ("cifar10_dvs", "airplane.zip", "0afd5c4bf9ae06af762a77b180354fdd"),
        ("n_mnist", "Train.zip", "20959b8e626244a1b502305a9e6e2031"),
        ("n_caltech101", "Caltech101.zip", "66201824eabb0239c7ab992480b50ba3"),
    ],
)
def test_missing_and_not_to_be_downloaded(tmp_path, monkeypatch, name, archive, md5):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FASHION_MNIST", tmp_path)
    root = tmp_path / "nowhere"
    split = 'split = "random90"' if name in ("cifar10_dvs", "n_caltech101") else ""
    message = mistake(data_recipe(name, root, data=f"download = false\n{split}"))
    mentions(message, name, f"put {archive} (http", f"md5 {md5}) into {root}", "data.root")
    mentions(message, "data.download is false")
    assert not root.exists()  # nothing is made where nothing was asked for


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serves a folder on this machine: `serve(folder)` gives its address, ending in a slash."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def address(monkeypatch, tmp_path):
    """`address(url_prefix)`: every data set is downloaded from there."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FASHION_MNIST", tmp_path / "no debian")

    def point(prefix: str, md5: str | None = None) -> None:
        archives = {
            key: RemoteFile(prefix + file.name, md5 or file.md5)
            for key, file in photographs.IMAGENETTE_ARCHIVES.items()
        }
        monkeypatch.setattr(photographs, "IMAGENETTE_ARCHIVES", archives)
        for dataset in (datasets.CIFAR10, datasets.CIFAR100):
            monkeypatch.setattr(dataset, "url", prefix + dataset.filename)
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [prefix])

    return point


@pytest.mark.parametrize("name", ["imagenette", "cifar10", "fashion_mnist"])
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


@pytest.fixture
def served(tmp_path, address, serve, monkeypatch):
    """CIFAR-100's archive, which a server has."""
    archive = make_cifar100(tmp_path / "server")
    accept_checksums(archive, monkeypatch.setattr)
    address(serve(archive.parent))
    return archive


def test_a_download_replaces_a_damaged_archive_and_is_used_again(served, tmp_path, address):
    data = tmp_path / "data"
    data.mkdir()
    (data / served.name).write_bytes(served.read_bytes()[:1000])
    message = mistake(data_recipe("cifar100", data, data="download = false"))
    mentions(message, f"{data / served.name} is damaged or cut short", "data.download is false")
    assert build_data(data_recipe("cifar100", data)).train.images == 40
    address(f"http://127.0.0.1:{unused_port()}/")
    assert build_data(data_recipe("cifar100", data)).train.images == 40


def test_a_second_address_is_tried_and_an_empty_answer_is_said(tmp_path, served, serve):
    (served.parent / "empty").touch()
    prefix, config = serve(served.parent), data_recipe("cifar100", tmp_path / "data").data
    one = RemoteFile(prefix + "empty", calculate_md5(served), served.name, mirror=prefix + "none")
    with pytest.raises(UserError) as caught:
        download.obtain(one, tmp_path / "data", config)
    said = f"the server answers only browsers from {prefix}empty; "
    mentions(str(caught.value), said, "404", "none)")
    assert os.listdir(tmp_path / "data") == []
    two = replace(one, mirror=prefix + served.name)
    path = download.obtain(two, tmp_path / "data", config)
    assert path.read_bytes() == served.read_bytes()


def test_a_download_with_another_checksum_is_not_kept(tmp_path, address, serve):
    server = tmp_path / "server"
    server.mkdir()
    (server / "imagenette2-320.tgz").write_bytes(b"something else")
    address(serve(server))
    message = mistake(data_recipe("imagenette", tmp_path / "data"))
    mentions(message, "the download failed", "corrupted", "imagenette2-320.tgz")
    assert sorted(os.listdir(tmp_path / "data")) == [".download.lock"]


def test_disk_full(served, tmp_path):
    """A limit on the size of files stands in for the full disk: the write itself fails."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = mistake(data_recipe("cifar100", tmp_path / "data"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    mentions(message, "File too large", served.name, "data.root")
    assert not (tmp_path / "data" / (served.name + ".part")).exists()


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


def test_one_lock_serves_all_ranks(tmp_path, monkeypatch):
    """Ranks that start together unpack one after the other, and only the first has work."""
    accept_checksums(make_cifar100(tmp_path), monkeypatch.setattr)
    unpackings = []

    def slow(archive, folder):
        unpackings.append(archive)
        time.sleep(0.1)
        extract(archive, folder)

    extract = download.extract_archive
    monkeypatch.setattr(download, "extract_archive", slow)
    recipe = data_recipe("cifar100", tmp_path)
    with ThreadPoolExecutor(4) as pool:
        built = pool.map(lambda rank: build_data(recipe, rank=rank, world_size=4), range(4))
        assert [data.train.images for data in built] == [40] * 4
    assert len(unpackings) == 1
