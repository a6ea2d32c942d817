import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.small_data import (
    accept_checksums,
    make_cifar10,
    make_cifar100,
    make_fashion_mnist,
    make_imagenette,
)


@pytest.fixture
def imagenette_root(tmp_path: Path) -> Path:
    make_imagenette(tmp_path)
    return tmp_path


@pytest.fixture
def cifar_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    archives = {"cifar10": make_cifar10(tmp_path), "cifar100": make_cifar100(tmp_path)}
    for archive in archives.values():
        accept_checksums(archive, monkeypatch.setattr)
    return archives


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    return make_fashion_mnist(tmp_path)


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
