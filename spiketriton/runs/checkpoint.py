"""Checkpoints: written completely or not at all, verified before use, and free of code.

A checkpoint is an archive of `torch.save` that holds only tensors, numbers, strings and containers of
these, so `torch.load(path, weights_only=True)` reads it anywhere. The archive's zip comment is the
SHA-256 of all bytes before it: data and checksum are one file, so they can never disagree after a
crash.

    checkpoints/last.pt     where --resume continues
    checkpoints/last.1.pt   the one before it, should last.pt be damaged
    checkpoints/best.pt     at the best validation accuracy so far, if the recipe holds images out for it
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from spiketriton.system.errors import UserError, one_line
from spiketriton.system.plain import of_plain

State = dict[str, Any]

_MARK = b"sha256:"
_COMMENT_BYTES = len(_MARK) + 64
_END_OF_ARCHIVE = b"PK\x05\x06"  # the last record of a zip file: 22 bytes, then the comment


class DamagedCheckpoint(UserError):
    """A file that is not a valid checkpoint; the message names it and the reason."""


class Checkpoints:
    """The checkpoints of one run in `folder`: the last two and the best.

    `warn` is called with what goes wrong without ending the run.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        names = "last.pt", "last.1.pt", "best.pt"
        self._last, self._before, self._best = map(folder.joinpath, names)
        self.loaded: Path | None = None  # the file that `load` took
        self._newest_step: int | None = None  # in last.pt, if this process has saved or loaded it
        self._failed: object = None  # file and step of the last that was not written

    def save_last(self, state: State) -> bool:
        """Writes last.pt, after renaming the one before; in place of one of the same step. See `save_as`."""
        again = self._newest_step == state["step"]
        saved = self.save_as(self._last, state, keeps=not again)
        if saved:
            self._newest_step = state["step"]
        return saved

    def save_best(self, state: State) -> bool:
        """Writes best.pt; see `save_as`."""
        return self.save_as(self._best, state)

    def save_as(self, path: Path, state: State, keeps: bool = False) -> bool:
        """Writes a state to a file. keeps: last.pt, as it was, becomes last.1.pt.

        Whether the file could be written; if not (disk full), all earlier ones are intact.
        """
        try:
            part = _write_part(path, state)
            if keeps and self._last.exists():
                os.replace(self._last, self._before)
            _rename(part, path)
        except OSError as error:
            if self._failed != (path, state["step"]):  # a step is tried again, after its test
                intact = any(self._newest_first())
                self.warn(
                    f"{path} of step {state['step']} could not be written: {error.strerror}. "
                    f"{'Earlier checkpoints are intact' if intact else 'There is no earlier checkpoint'}, "
                    "and the run continues."
                )
            self._failed = (path, state["step"])
            return False
        if self._failed is not None and self._failed == (path, state["step"]):
            self.warn(f"{path} of step {state['step']} is written now, at the second attempt")
        self._failed = None
        return True

    def load(self) -> State | None:
        """The newest valid checkpoint, with warnings of damaged ones; None if the run was stopped before its first one.

        UserError: all checkpoints are damaged.
        """
        valid: dict[Path, State] = {}
        damaged = []
        for path in self._newest_first():
            try:
                valid[path] = read_checkpoint(path)
            except DamagedCheckpoint as error:
                damaged.append(path.name)
                self.warn(str(error))
            if not damaged:
                break
        if damaged and not valid:
            raise UserError(
                f"all checkpoints in {self.folder} are damaged: {', '.join(damaged)}; start the recipe again in "
                "another run folder"
            )
        if not valid:
            return None
        self.loaded = max(valid, key=lambda path: valid[path]["step"])
        state = valid[self.loaded]
        if damaged:
            self.warn(f"{self.loaded} of step {state['step']} is used instead")
        elif self.loaded == self._last:  # a resumed run may save its step again, too
            self._newest_step = state["step"]
        return state

    def _newest_first(self) -> Iterator[Path]:
        return filter(Path.exists, (self._last, self._before, self._best))


def read_checkpoint(path: str | Path) -> State:
    """The state in a checkpoint, its tensors on the CPU. Runs no code from the file. DamagedCheckpoint."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error.strerror}") from None
    archive, comment = content[:-_COMMENT_BYTES], content[-_COMMENT_BYTES:]
    if not comment.startswith(_MARK):
        raise DamagedCheckpoint(
            f"{path} is damaged: it ends without a checksum ({len(content)} bytes), so it was cut "
            "short or is not a checkpoint of spiketriton"
        )
    if comment != _checksum(archive):
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its checksum")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = one_line(error).split(". ")[0]
        raise DamagedCheckpoint(
            f"{path} is refused: it holds more than tensors, numbers and strings ({reason})"
        ) from None
    except Exception as error:  # torch's unpickler raises anything on other input
        raise DamagedCheckpoint(f"{path} is damaged: {type(error).__name__}") from None
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise DamagedCheckpoint(f"{path} is not a checkpoint of a training run")
    try:
        facts = of_plain(dict[str, Any] | None, state.get("data"), "data") or {}
        of_plain(list[int], facts.get("class_counts", []), "data.class_counts")
    except ValueError as error:
        raise DamagedCheckpoint(f"{path} is not a checkpoint of a training run: {error}") from None
    return state


def _write_part(path: Path, state: State) -> Path:
    """Writes `state` to `path`.part and flushes it to the disk. OSError: the file is removed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    archive = buffer.getbuffer()
    assert archive[-22:-18] == _END_OF_ARCHIVE
    assert archive[-2:] == b"\0\0"  # the length of the comment: torch writes none
    archive[-2:] = _COMMENT_BYTES.to_bytes(2, "little")
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(archive)
            file.write(_checksum(archive))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


def _rename(part: Path, path: Path) -> None:
    """Moves a written file to its place, and flushes the folder's entry to the disk, where folders can be opened."""
    os.replace(part, path)
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _checksum(archive: bytes | memoryview) -> bytes:
    return _MARK + hashlib.sha256(archive).hexdigest().encode()
