"""Nothing overwrites another's file silently: what a command about a run may replace.

In its own place in the run folder it replaces what is there; with --out only what the same command wrote about the
same run, which the file itself says, by a mark or as data.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from spiketriton.runs.folder import RunFolder, make_writable
from spiketriton.system.errors import UserError


def mark_of(folder: RunFolder, command: str) -> str:
    """What a file says that `command` wrote about the run; the run's path is not legible in it."""
    run = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    return f"spiketriton {command} {run}"


def marked(mark: str) -> Callable[[Path], bool]:
    return lambda path: mark.encode() in path.read_bytes()


def refuse_foreign(paths: Iterable[Path], own: Callable[[Path], bool]) -> None:
    """UserError: at one of the paths there is a folder, or a file that is not the command's own."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; accepted: the name of a file")
        if path.exists() and not own(path):
            raise UserError(
                f"{path} exists, and is not what this command wrote about this run earlier; accepted by --out: "
                "a new name, or remove it first"
            )


def output_folder(path: str | Path) -> Path:
    """The folder, created if it does not exist. UserError: it cannot be written."""
    folder = Path(path)
    try:
        make_writable(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; give another folder with --out"
        ) from None
    return folder
