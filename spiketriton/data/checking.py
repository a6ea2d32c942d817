"""Image files that cannot be read, found before training begins (`data.check`), and named or left out.

Each is checked once, and again when its path, size or time of change differs.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spiketriton.config import DataConfig
from spiketriton.data.download import one_process_at_a_time
from spiketriton.data.preparing import (
    file_keys,
    in_chunks,
    in_processes,
    kept_in,
    say,
    workers_of,
)
from spiketriton.data.sources import Source
from spiketriton.data.splits import FileSplit, check_file
from spiketriton.system.errors import UserError

FOLDER = ".checked_images"  # in data.root
NAMED = 3  # broken files in an error


def checked(config: DataConfig, source: Source) -> tuple[Source, tuple[str, ...]]:
    """The source without its broken image files, and those: "PATH (class NAME): why".

    UserError: files are broken and data.broken is "stop", or a class or a split would have none left.
    """
    splits = {"train": source.train, "test": source.test, "validation": source.validation}
    files = {name: split for name, split in splits.items() if isinstance(split, FileSplit)}
    if config.check == "off" or not files:
        return source, ()
    whys = _found(config, list(files.values()))
    kept: dict[str, Any] = {}
    skipped: list[str] = []
    start = 0
    for name, split in files.items():
        mine, start = whys[start : start + len(split)], start + len(split)
        kept[name] = split.only([not why for why in mine])
        skipped += filter(None, mine)
        _refuse_empty(config, name, split, kept[name], skipped)
    if skipped and config.broken == "stop":
        raise UserError(
            f"{config.name}: {len(skipped):,} of {len(whys):,} image files cannot be read: "
            f'{_some(skipped)}; accepted: whole images, or data.broken = "skip"'
        )
    return replace(source, **kept), tuple(skipped)


def _refuse_empty(
    config: DataConfig, name: str, split: FileSplit, kept: FileSplit, skipped: Sequence[str]
) -> None:
    """Training needs an image of each class that had some, a test any image."""
    had, has = (np.bincount(s.labels, minlength=len(s.classes)) for s in (split, kept))
    gone = [split.classes[at] for at in np.flatnonzero((had > 0) & (has == 0))]
    if gone and (name == "train" or not len(kept)):
        raise UserError(
            f"{config.name}: no {name} image of {gone[0]} can be read: {_some(skipped)}; accepted: "
            "one or more"
        )


def _some(skipped: Sequence[str]) -> str:
    more = len(skipped) - NAMED
    return "; ".join(skipped[:NAMED]) + (f"; and {more:,} more" if more > 0 else "")


def _found(config: DataConfig, splits: Sequence[FileSplit]) -> list[str]:
    """Why each file of the splits is broken; "" if it is whole."""
    cache = kept_in(config, FOLDER) / f"{config.name}-{config.check}.npz"
    files = [(split.path(at), split.class_of(at)) for split in splits for at in range(len(split))]
    keys = file_keys([path for path, _ in files])
    known = _Known.read(cache)
    if known.lacks(keys).any():
        try:
            with one_process_at_a_time(cache.parent):  # ranks and other runs wait for the first
                known = _Known.read(cache)
                _check(config, files, keys, known)
                known.write(cache)
        except OSError as error:
            say(
                f"{config.name}: which images were checked cannot be kept in {cache.parent} "
                f"({error.strerror}); data.cache names another folder"
            )
            _check(config, files, keys, known)
    return [known.broken.get(key, "") for key in keys.tolist()]


@dataclass
class _Known:
    """The files that were checked, by key: uint64 of path, size and time of change."""

    whole: np.ndarray
    broken: dict[int, str]  # and why

    @classmethod
    def read(cls, path: Path) -> "_Known":
        """What a file holds; nothing if it is missing or damaged."""
        try:
            with np.load(path) as stored:
                broken = json.loads(stored["broken"].tobytes())
                return cls(stored["whole"], {int(key): why for key, why in broken.items()})
        except Exception:  # numpy and zipfile raise many kinds on damaged files
            return cls(np.zeros(0, np.uint64), {})

    def write(self, path: Path) -> None:
        """Replaces the file as a whole; one process at a time. OSError."""
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as file:
                text = json.dumps({str(key): why for key, why in self.broken.items()}).encode()
                np.savez(file, whole=self.whole, broken=np.frombuffer(text, np.uint8))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def lacks(self, keys: np.ndarray) -> np.ndarray:
        """Which files were not checked yet."""
        broken = np.fromiter(self.broken, np.uint64, len(self.broken))
        return ~(np.isin(keys, self.whole) | np.isin(keys, broken))


def _check(
    config: DataConfig, files: Sequence[tuple[Path, str]], keys: np.ndarray, known: _Known
) -> None:
    """Checks the files that are not known yet, in several processes if they are many."""
    new = np.flatnonzero(known.lacks(keys))
    chunks = in_chunks([files[at] for at in new.tolist()])
    processes = min(workers_of(config), len(chunks)) if len(chunks) > 2 else 0
    if processes:
        say(
            f"{config.name}: {len(new):,} image files are checked once (data.check = {config.check})"
        )
    work = partial(_whys, pixels=config.check == "full")
    answers = in_processes(work, chunks, f"images of {config.name}", processes)
    whys = [why for answer in answers for why in answer]
    broken = np.array(whys, bool)
    known.broken |= {int(keys[at]): why for at, why in zip(new, whys, strict=True) if why}
    known.whole = np.union1d(known.whole, keys[new][~broken])


def _whys(files: Sequence[tuple[Path, str]], *, pixels: bool) -> list[str]:
    return [why_broken(*file, pixels=pixels) for file in files]


def why_broken(path: Path, class_name: str, *, pixels: bool) -> str:
    """ "PATH (class NAME): why", or "" if the file is whole."""
    try:
        check_file(path, class_name, pixels=pixels)
    except UserError as error:
        return str(error).removeprefix("cannot read image ")
    return ""
