"""The idx format of MNIST and Fashion-MNIST: two zero bytes, a type (8: bytes), a rank, sizes (big-endian), data."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from spiketriton.system.errors import UserError


def find(folder: Path, name: str) -> Path | None:
    """`name` or `name.gz` in `folder`, or None."""
    for candidate in (name, name + ".gz"):
        path = folder / candidate
        if path.is_file():
            return path
    return None


def read(path: Path, rank: int) -> np.ndarray:
    """The unsigned bytes of an idx file, gzipped or not, in its own shape (`rank` dimensions). UserError."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error or type(error).__name__}") from error
    magic = bytes([0, 0, 0x08, rank])
    if raw[:4] != magic:
        raise UserError(
            f"{path} is not an idx file of {rank}-dimensional unsigned bytes: it starts with "
            f"{raw[:4].hex() or 'nothing'}, not {magic.hex()}"
        )
    header = 4 + 4 * rank
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, header, 4))
    held, promised = len(raw) - header, math.prod(shape)
    if held != promised:
        raise UserError(
            f"{path} is damaged or cut short: its header promises {promised:,} bytes of data, "
            f"it holds {max(held, 0):,}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
