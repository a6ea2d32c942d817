"""The convolutions' C++, a file of `backends/cpp/` each, compiled once per machine."""

from __future__ import annotations

import ctypes
import functools
import hashlib

import torch

from ..backends import native
from ..cache import cache_folder

_FLAGS = ["-ffp-contract=fast"]
NAMES = {"sparse": torch.float32, "tiles": torch.bfloat16}
"""Files, and the dtype that each computes in."""


@functools.cache
def load(name: str) -> ctypes.CDLL | native.CompilerError:
    """The compiled file, or why there is none."""
    source = native._SOURCE.with_name(f"{name}.cpp")
    try:
        compiler = native._compiler()
        flags = repr((native._FLAGS, native._EXTRAS, _FLAGS))
        made_of = source.read_text("utf-8"), native._version(compiler), native._machine(), flags
        key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
        target = cache_folder() / f"convolutions-{name}-{key}.so"
        kind, dtype = f"convolutions {name}", NAMES[name]
        return ctypes.CDLL(str(native._compiled(target, compiler, dtype, kind, _FLAGS, source)))
    except (native.CompilerError, OSError) as error:
        return native.CompilerError(str(error))


def loaded(name: str) -> ctypes.CDLL:
    """CompilerError: there is none."""
    library = load(name)
    if isinstance(library, native.CompilerError):
        raise library
    return library
