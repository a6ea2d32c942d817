"""Output streams that stay usable after their reader has gone."""

import io
import os
import sys
from typing import Any


class DroppingFile(io.FileIO):
    """A file of which output is dropped, without an error, once its pipe or terminal is closed."""

    def write(self, text: Any) -> int:
        try:
            return super().write(text)
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(text)


def survive_closed_output() -> None:
    """Training continues after the reader of stdout or stderr has gone; later output is dropped."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        raw = io.BufferedWriter(DroppingFile(old.fileno(), "w", closefd=False))
        new = io.TextIOWrapper(raw, old.encoding, old.errors, line_buffering=True)
        setattr(sys, name, new)
