"""Downloads and unpacks archives; or says in one line what is missing and where it belongs."""

import os
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from spiketriton.config import DataConfig
from spiketriton.system.errors import UserError, one_line
from spiketriton.system.locks import locked

NETWORK_TIMEOUT = 15.0  # seconds without an answer (connecting, or between two packets)

# Raised by torchvision, sockets, the disk and decompressors when a download or unpacking fails.
FAILURES = (OSError, RuntimeError, HTTPException, EOFError, tarfile.TarError, zlib.error)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, with the MD5 checksum of a complete copy.

    `file`: its name, if the address does not end in it. `by_hand`: the address is a page that leads to it.
    """

    url: str
    md5: str
    file: str = ""
    by_hand: bool = False
    mirror: str = ""

    @property
    def name(self) -> str:
        return self.file or self.url.rpartition("/")[2]

    def whole(self, path: Path) -> bool:
        return bool(check_integrity(path, self.md5))


def data_root(config: DataConfig) -> Path:
    """`data.root` as an absolute path, so that errors name a folder that users can find."""
    return Path(config.root).expanduser().absolute()


def describe_missing(config: DataConfig, file: RemoteFile, folder: Path, why: str) -> UserError:
    """The error for missing data: names archive, address, checksum, folder and key."""
    return UserError(
        f"{config.name}: {one_line(why)}; put {file.name} ({file.url}, md5 {file.md5}) into "
        f"{folder}, or set data.root to the folder that holds the data"
    )


def obtain(file: RemoteFile, folder: Path, config: DataConfig) -> Path:
    """A verified copy of `file` in `folder`, downloaded if need be and allowed. UserError: there is none."""
    path = folder / file.name
    state = "is missing"
    if path.exists():
        if file.whole(path):
            return path
        state = "is damaged or cut short (its md5 differs)"
    if not config.download:
        raise describe_missing(config, file, folder, f"{path} {state} and data.download is false")
    if file.by_hand:
        why = f"{path} {state} and can only be downloaded by hand"
        raise describe_missing(config, file, folder, why)
    part = path.with_name(file.name + ".part")
    failures: list[str] = []
    for address in filter(None, (file.url, file.mirror)):
        try:
            with _timeout(NETWORK_TIMEOUT):
                download_url(address, folder, filename=part.name, md5=file.md5)
            os.replace(part, path)
            return path
        except FAILURES as error:
            empty = part.exists() and not part.stat().st_size
            why = "an empty answer: the server answers only browsers" if empty else one_line(error)
            failures.append(f"{why} from {address}" if file.mirror else why)
        finally:
            part.unlink(missing_ok=True)
    why = f"{path} {state} and the download failed ({'; '.join(failures)})"
    raise describe_missing(config, file, folder, why)


def unpacked(archive: RemoteFile, name: str, config: DataConfig) -> Path:
    """The folder `name` in data.root, unpacked from `archive` (downloaded if need be) by one process of a machine.

    It is renamed when it is complete. UserError: it is missing and cannot be made.
    """
    root = data_root(config)
    folder = root / name
    if folder.is_dir():
        return folder
    if not config.download and not (root / archive.name).exists():
        why = f"no folder {folder} and data.download is false"
        raise describe_missing(config, archive, root, why)
    try:
        return made_once(folder, lambda into: extract_archive(obtain(archive, root, config), into))
    except FAILURES as error:
        why = f"cannot prepare {folder} ({error})"
        raise describe_missing(config, archive, root, why) from error


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, which `make(into)` makes in another one by one process of a machine; whole or not there. OSError."""
    if not folder.is_dir():
        with one_process_at_a_time(folder.parent) as root:
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as temporary:
                    make(Path(temporary))
                    os.replace(Path(temporary, folder.name), folder)
    return folder


@contextmanager
def one_process_at_a_time(folder: Path) -> Iterator[Path]:
    """Makes `folder` and holds a lock in it, so that the ranks of a job share one download. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".download.lock", wait=True):
        yield folder


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Gives new sockets a timeout within the block: torchvision opens connections without one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
