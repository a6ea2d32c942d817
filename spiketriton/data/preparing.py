"""Work on all files of a data set that is done once, before a run has a display, and kept on the disk."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from spiketriton.config import DataConfig
from spiketriton.data.download import data_root
from spiketriton.system.machine import shared_memory, usable

CHUNK = 128  # files that a process takes at a time
_AT_ONCE = 16  # threads that ask for sizes and times, for network disks


def file_keys(paths: Sequence[Path]) -> np.ndarray:
    """A number for path, size and time of change of each file; uint64 [N]."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        chunks = pool.map(lambda some: [_key(path) for path in some], in_chunks(paths))
        return np.array([key for keys in chunks for key in keys], np.uint64)


def _key(path: Path) -> int:
    try:
        found = path.stat()
        state = f"{found.st_size} {found.st_mtime_ns}"
    except OSError:  # a link to nothing; opening it says why
        state = "missing"
    name = hashlib.blake2b(os.fsencode(path) + f"\0{state}".encode(), digest_size=8)
    return int.from_bytes(name.digest(), "little")


def in_chunks(of: Sequence[Any]) -> list[Any]:
    return [of[at : at + CHUNK] for at in range(0, len(of), CHUNK)]


def kept_in(config: DataConfig, usual: str) -> Path:
    """The folder for what is kept: `data.cache`, or the usual one in `data.root`."""
    root = data_root(config) / usual if config.cache == "auto" else Path(config.cache).expanduser()
    return root.absolute()


def workers_of(config: DataConfig) -> int:
    """Processes for such work: `data.workers`, or one for each processor; 0 without shared memory to speak through."""
    if shared_memory() == 0:
        return 0
    return usable() if config.workers == "auto" else int(config.workers)


def in_processes(
    work: Callable[[Any], Any], items: Sequence[Any], title: str, workers: int
) -> Iterator[Any]:
    """`work(item)` of each in order, by `workers` processes (0: this one), with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    loader: DataLoader[Any] = DataLoader(
        items,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        collate_fn=work,
        worker_init_fn=_leave_ctrl_c_to_the_parent,
        generator=torch.Generator(),  # or it would draw a seed from the global one
    )
    quiet, console = not sys.stderr.isatty(), Console(stderr=True)
    yield from track(loader, title, console=console, transient=True, disable=quiet)


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
