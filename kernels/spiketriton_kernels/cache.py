"""The user's cache folder: compiled libraries, and the sources that are printed of a neuron's step."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path


def cache_folder() -> Path:
    """``SPIKETRITON_CACHE``, else ``$XDG_CACHE_HOME/spiketriton``, or ``~/.cache/spiketriton``."""
    if "SPIKETRITON_CACHE" in os.environ:
        return Path(os.environ["SPIKETRITON_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spiketriton"


def write_once(path: Path, text: str) -> Path:
    """The file of this text, whose name says what is in it; where the folder cannot be written, another one."""
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        part.write_text(text)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="spiketriton-")) / path.name
        part = path.with_suffix(".part")
        part.write_text(text)
    os.replace(part, path)  # of several processes the last one wins, with the same content
    return path
