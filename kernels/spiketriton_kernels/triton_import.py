"""The one place that imports Triton, for the modules that hold its kernels.

Those are imported when a call first needs them (``backends.choice.Later``): machines without Triton (macOS, Windows)
run on PyTorch, and a process on a CPU does not wait for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = not isinstance(tl.cdiv, triton.JITFunction)
jit = triton.jit
if INTERPRETED:  # also where TRITON_INTERPRET has been taken away since
    from triton.runtime.interpreter import InterpretedFunction as jit  # type: ignore[no-redef]

__all__ = ["INTERPRETED", "jit", "tl", "triton"]
