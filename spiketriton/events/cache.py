"""Frames of all recordings of a data set, computed once: a memory map of uint8 for each setting.

    <data.cache>/<data set>-<digest>/
        frames.npy      uint8 [N, T, 2, S, S]: np.load(path, mmap_mode="r") reads it
        facts.npy       for each recording: `FACTS`; events above 255 of one pixel and bin are lost
        settings.json   what the frames depend on, in words; the digest is this file's

Several processes bin file by file and mark recordings as done, so that a build that was killed continues where it
stopped. One process builds, others wait. The same files and settings give the same bytes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal

from spiketriton.config import DataConfig
from spiketriton.data.preparing import in_processes, kept_in, say, workers_of
from spiketriton.data.sources import Recorded, Source
from spiketriton.events.formats import Sensor, read_events
from spiketriton.events.frames import to_bytes, to_frames
from spiketriton.system.errors import UserError
from spiketriton.system.locks import locked

CACHE = "event_frames"  # name of the folder in data.root that holds frames
WHOLE = (-(1 << 63), (1 << 63) - 1)
VERSION = 1  # of the frames: another one for the same settings if they come out otherwise

FACTS = np.dtype([("done", "u1"), ("events", "<i8"), ("duration_us", "<i8"), ("lost", "<i8")])


@dataclass(frozen=True)
class Recording:
    """A file of events, or the part of it from `span[0]` to just before `span[1]` microseconds."""

    path: Path
    label: int
    span: tuple[int, int] = WHOLE

    def __str__(self) -> str:
        """Its file, and which part of it."""
        if self.span == WHOLE:
            return str(self.path)
        return f"{self.path} from {self.span[0]:,} to {self.span[1]:,} µs"


@dataclass(frozen=True, kw_only=True)
class Recordings(Recorded):
    """A data set: its recordings, and what is known of the camera."""

    root: Path  # folder to which the files' names are relative
    classes: tuple[str, ...]
    train: Sequence[Recording]
    test: Sequence[Recording]
    validation: Sequence[Recording] = ()  # of a folder of their own
    format: str  # a key of `FORMATS`, or "auto"
    sensor: Sensor
    size: int  # default side in pixels of the frames
    mirrors: bool  # whether a mirrored recording is still of its class

    def source(self, config: DataConfig, steps: int) -> Source:
        """Its recordings as `steps` frames each, which are made now if they are not on the disk. UserError."""
        size = config.image_size or self.size
        train, test, *held_out = frames_of(
            self, config, steps=steps, size=size, workers=workers_of(config)
        )
        return Source(
            train=train,
            test=test,
            validation=held_out[0] if held_out else None,
            classes=self.classes,
            channels=2,
            image_size=size,
            statistics=((), ()),
            move="events",
            mirrors=self.mirrors,
            split=config.split_words,
            bin_ms=test.facts["duration_us"] / steps / 1000 if config.bins == "time" else None,
        )


class FrameSplit:
    """Recordings as frames on the disk. `read` gives uint8 [b, T, 2, S, S]."""

    def __init__(
        self, path: Path, rows: np.ndarray, labels: Sequence[int], facts: np.ndarray
    ) -> None:
        """`rows`: of the recordings in the file, int64 [N]; `facts`: of `FACTS` [N]."""
        self.path, self.rows, self.facts = path, rows, facts
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self._frames: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        if self._frames is None:
            self._frames = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(self._frames[self.rows[indices]])

    def __getstate__(self) -> dict[str, Any]:
        """A worker process opens the file itself; a pickled memory map would be a copy of it."""
        return {**self.__dict__, "_frames": None}


def frames_of(
    recordings: Recordings, config: DataConfig, *, steps: int, size: int, workers: int
) -> list[FrameSplit]:
    """The training, test and, if there are any, validation recordings as `steps` frames of `size` pixels.

    They are built now, by `workers` processes (0: this one), if they are not on the disk yet.
    UserError: a recording is damaged, or the folder cannot be written.
    """
    every = sorted(
        {*recordings.train, *recordings.test, *recordings.validation},
        key=lambda r: (str(r.path), r.span),
    )
    job = Job(recordings, every, config.bins, steps, size)
    folder = kept_in(config, CACHE) / f"{config.name}-{job.digest[:16]}"
    facts = _complete(folder, job)
    if facts is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(folder / ".lock", wait=False))
                except BlockingIOError:
                    say(f"another process builds the frames in {folder}: waiting for it")
                    stack.enter_context(locked(folder / ".lock", wait=True))
                facts = _complete(folder, job)
                if facts is None:
                    facts = _build(folder, job, workers, config.name)
        except OSError as error:
            raise UserError(
                f"{config.name}: frames of {decimal(job.bytes)} cannot be written to {folder} "
                f"({error.strerror}); data.cache names another folder, and a smaller data.image_size "
                "or time_steps needs less"
            ) from None
    row = {recording: index for index, recording in enumerate(every)}
    splits = []
    held_out = [recordings.validation] if recordings.validation else []
    for part in (recordings.train, recordings.test, *held_out):
        rows = np.array([row[recording] for recording in part], np.int64)
        labels = [recording.label for recording in part]
        splits.append(FrameSplit(folder / "frames.npy", rows, labels, facts[rows]))
    return splits


@dataclass(frozen=True)
class Job:
    """What is to be built: recordings, ordered by file, and how they become frames."""

    recordings: Recordings
    every: Sequence[Recording]
    bins: str
    steps: int
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.every), self.steps, 2, self.size, self.size)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape))

    @cached_property
    def settings(self) -> str:
        """What the frames depend on, as JSON. UserError: a file is missing."""
        files: dict[str, list[Any]] = {}
        for one in self.every:
            name = os.path.relpath(one.path, self.recordings.root)
            if name not in files:
                try:
                    found = one.path.stat()
                except OSError as error:
                    raise UserError(f"{one.path} cannot be read: {error.strerror}") from None
                files[name] = [found.st_size, found.st_mtime_ns]
            files[name].append(one.span)
        known = {
            "version": VERSION,
            "format": self.recordings.format,
            "sensor (height, width)": self.recordings.sensor,
            "bins": self.bins,
            "time_steps": self.steps,
            "image_size": self.size,
            "files (bytes, changed, spans in µs)": files,
        }
        return json.dumps(known, indent=0)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.settings.encode()).hexdigest()


def _complete(folder: Path, job: Job) -> np.ndarray | None:
    """The facts of a finished build of exactly this job; None if there is none."""
    facts = _begun(folder, job)
    return facts if facts is not None and facts["done"].all() else None


def _begun(folder: Path, job: Job) -> np.ndarray | None:
    """The facts of a build of exactly this job whose files are whole; None if there is none."""
    try:
        stored = (folder / "settings.json").read_bytes()
        frames = np.load(folder / "frames.npy", mmap_mode="r")  # ValueError: it is cut short
        facts = np.load(folder / "facts.npy")
    except Exception:  # on a damaged header numpy raises anything: the files are made anew
        return None
    same = (
        hashlib.sha256(stored).hexdigest() == job.digest
        and (frames.shape, frames.dtype) == (job.shape, np.uint8)
        and (facts.shape, facts.dtype) == (job.shape[:1], FACTS)
    )
    return facts if same else None


def _build(folder: Path, job: Job, workers: int, name: str) -> np.ndarray:
    """Builds what is missing and returns the facts. UserError, OSError."""
    frames, facts = _opened(folder, job)
    files: dict[Path, list[int]] = {}
    for index in np.flatnonzero(facts["done"] == 0).tolist():
        files.setdefault(job.every[index].path, []).append(index)
    done = int(facts["done"].sum())
    say(
        f"frames of {name}: {decimal(job.bytes)} in {folder}, built once"
        + (f"; {done:,} of {len(job.every):,} recordings are there" if done else "")
    )
    work, processes = partial(_binned, folder, job), min(workers, len(files))
    for answer in in_processes(work, [*files.values()], f"frames of {name}", processes):
        if isinstance(answer, UserError):
            raise answer
        for index, *numbers in answer:
            facts[index] = (1, *numbers)
    frames.flush()
    facts.flush()
    if lost := int(facts["lost"].sum()):
        say(
            f"frames of {name}: {lost:,} of {int(facts['events'].sum()):,} events are left out, "
            "because a pixel had more than 255 of them in one bin; more time_steps or a larger "
            "data.image_size keep them"
        )
    if len(empty := np.flatnonzero(facts["events"] == 0)):
        say(
            f"frames of {name}: {len(empty):,} of {len(facts):,} recordings hold no event, "
            f"{job.every[empty[0]]} the first of them; their frames are empty"
        )
    return np.array(facts)


def _opened(folder: Path, job: Job) -> tuple[np.memmap, np.memmap]:
    """The two files for writing: those of an interrupted build, or new ones with all their space."""
    settings = folder / "settings.json"
    kinds: dict[str, Any] = {
        "frames.npy": (np.uint8, job.shape),
        "facts.npy": (FACTS, job.shape[:1]),
    }
    frames, facts = (folder / name for name in kinds)
    if _begun(folder, job) is None:
        for path in (settings, frames, facts):  # not written over: a run may have mapped them
            path.unlink(missing_ok=True)
        try:
            for name, (dtype, shape) in kinds.items():
                path = folder / name
                np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
                if hasattr(os, "posix_fallocate"):  # a full disk is an error now, no crash later
                    with path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError:
            frames.unlink(missing_ok=True)
            facts.unlink(missing_ok=True)
            raise
        settings.write_text(job.settings, "utf-8")
    return np.load(frames, mmap_mode="r+"), np.load(facts, mmap_mode="r+")


def _binned(
    folder: Path, job: Job, group: list[int]
) -> list[tuple[int, int, int, int]] | UserError:
    """Writes the frames of a file's recordings; index, events, duration and lost events of each."""
    frames, known = np.load(folder / "frames.npy", mmap_mode="r+"), job.recordings
    path = job.every[group[0]].path
    try:
        events = read_events(path, known.format, sensor=known.sensor, backward="sort")
    except UserError as error:
        return UserError(str(error))  # its own kind cannot be pickled for the parent
    answers = []
    for index in group:
        start, end = np.searchsorted(events["t"], job.every[index].span)
        part = events[start:end]
        bins: Any = job.bins
        counts = to_frames(part, known.sensor, steps=job.steps, bins=bins, size=job.size)
        frames[index], lost = to_bytes(counts)
        duration = int(np.ptp(part["t"])) if len(part) else 0
        answers.append((index, len(part), duration, lost))
    return answers
