"""The one place that imports Triton, so that machines without it (macOS, Windows) still run on PyTorch.

Without Triton the kernels cannot be called (``HAVE_TRITON`` is False), but the modules that hold them import.
"""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl

    HAVE_TRITON = True
    INTERPRETED = not isinstance(tl.cdiv, triton.JITFunction)
    jit = triton.jit
    if INTERPRETED:  # also where TRITON_INTERPRET has been taken away since
        from triton.runtime.interpreter import InterpretedFunction as jit  # type: ignore[no-redef]
except ModuleNotFoundError as missing:
    if missing.name != "triton":
        raise

    class _Absent:
        """A stand-in for triton: decorators return the function unchanged, constants stay plain values."""

        @staticmethod
        def constexpr(value: Any) -> Any:
            return value

        @staticmethod
        def jit(function: Any = None, **_: Any) -> Any:
            return function if function is not None else (lambda f: f)

    triton = tl = _Absent()
    jit = triton.jit
    HAVE_TRITON = INTERPRETED = False

__all__ = ["HAVE_TRITON", "INTERPRETED", "jit", "tl", "triton"]
