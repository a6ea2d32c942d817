"""Output streams that stay usable after their reader has gone, on a full disk, and in any encoding."""

import codecs
import errno
import io
import os
import sys
from typing import Any

_PLAIN = {"─": "-", "━": "-", "→": "->", "≤": "<=", "≥": ">=", "×": "x", "µ": "u", "±": "+-"}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks, as those of a pipe on Windows do."""
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lost), error.end


codecs.register_error("spiketriton.plainly", _plainly)


class DroppingFile(io.FileIO):
    """A file that never fails to be written: once its pipe or terminal is closed, output is dropped.

    Where there is no room for it, `lost` is the reason, and later output is tried again.
    """

    lost: OSError | None = None

    def write(self, text: Any) -> int:
        try:
            return super().write(text)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self.fileno())
                os.close(nothing)
            else:
                self.lost = error
            return len(text)


def survive_closed_output() -> None:
    """A command continues, and ends as ever, when nobody can read what it prints.

    Streams that are closed from the start (`>&-`) become the null device, so that no file takes their number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        try:
            number = number if old is None else old.fileno()
        except (OSError, ValueError):
            continue
        encoding = "utf-8" if old is None else old.encoding
        errors = "strict" if old is None else old.errors
        errors = "spiketriton.plainly" if errors == "strict" else errors
        raw = io.BufferedWriter(DroppingFile(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, encoding, errors, line_buffering=True))


def lost_output() -> OSError | None:
    """Why some of stdout is missing; None: all of it is written, or its reader did not want it."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, DroppingFile) else None
