"""Work on all files of a data set that is done once, before a run has a display, and kept on the disk."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from spiketriton.config import DataConfig
from spiketriton.data.download import data_root
from spiketriton.machine import shared_memory, usable


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
