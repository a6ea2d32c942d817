"""Kernels are launched here: straight from the compiled kernel where Triton would choose the same one again.

``JITFunction.run`` takes a processor 7 to 25 us a launch, of which choosing the kernel is a part: the rest looks again
at options, environment variables and globals. What is chosen stays Triton's business: its own binder says what a
launch specialises on (dtypes, alignment, divisibility, constants), and the first launch of each goes through
``JITFunction.run``. TRITON_DEBUG and other variables of the compiler are heeded as they are at that first launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor
from contextvars import Context, copy_context
from functools import partial
from typing import Any

import torch

from ..triton_import import triton

WARPS = 4

_compiled: dict[Any, Any] = {}
"""Compiled kernels by what their launch specialises on."""

_known: dict[int, Any] = {}
"""Kernels that have run and are launched the short way, by their ids, because their hash is dear: not where they are
interpreted, or Triton is another. Held here, they live on, so that no other kernel gets an id of theirs."""

_ahead: tuple[Context, set[Any]] | None = None
"""Where kernels are compiled only: in which context, because backward passes run in threads of their own, and what has
been asked for."""


@contextlib.contextmanager
def compiling(pool: Executor) -> Iterator[None]:
    """Within the block launches run nothing: their kernels are compiled in the pool, for which its end waits."""
    global _ahead
    with triton.AsyncCompileMode(pool):
        _ahead = copy_context(), set()
        try:
            yield
        finally:
            _ahead = None


def launch(
    kernel: Any, programs: tuple[int, ...], x: torch.Tensor, /, *args: Any, maxnreg: int | None = None, **named: Any
) -> None:  # fmt: skip
    """Run so many programs of a kernel on the device of x.

    Multiply-adds are never contracted: forward and replay must round alike.
    """
    named["num_warps"], named["enable_fp_fusion"] = WARPS, False
    if maxnreg is not None:
        named["maxnreg"] = maxnreg
    with torch.cuda.device_of(x):
        if _ahead is not None:
            _compile(kernel, programs, args, named, *_ahead)
            return
        if id(kernel) not in _known or _watched(kernel):
            ran = kernel[programs](*args, **named)
            if _is_known(kernel, ran):
                _known[id(kernel)] = kernel
            return
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        given, chosen, _ = kernel.device_caches[device][_BINDER](*args, **named)
        key = id(kernel), device, maxnreg, triton.knobs.compilation.instrumentation_mode, *chosen
        ran = _compiled.get(key)
        if ran is None:
            _compiled[key] = kernel[programs](*args, **named)
            return
        grid, stream = (*programs, 1, 1)[:3], driver.get_current_stream(device)
        ran.run(*grid, stream, ran.function, ran.packed_metadata, *_NO_HOOKS, *given.values())


def _compile(
    kernel: Any, programs: Any, args: Any, named: dict[str, Any], context: Context, asked: set[Any]
) -> None:  # fmt: skip
    """Hand the kernel to the pool, unless it has been compiled or asked for."""
    device = triton.runtime.driver.active.get_current_device()
    _, chosen, _ = kernel.device_caches[device][_BINDER](*args, **named)
    key = id(kernel), device, named.get("maxnreg"), *chosen
    if key not in asked:
        asked.add(key)
        context.run(partial(kernel.run, *args, grid=programs, warmup=True, **named))


_BINDER = 4
"""Where ``JITFunction.device_caches`` has, for a device, the function that binds arguments."""

_NO_HOOKS = None, None, None
"""What a launch tells its hooks; the hooks before and after it."""

_HOOKS = "launch_enter_hook", "launch_exit_hook", "add_stages_inspection_hook"


def _watched(kernel: Any) -> bool:
    """Whether somebody asks to be told of launches, as profilers do."""
    hooks = [getattr(triton.knobs.runtime, name, None) for name in _HOOKS]
    return bool(kernel.pre_run_hooks) or any([getattr(hook, "calls", hook) for hook in hooks])


def _is_known(kernel: Any, ran: Any) -> bool:
    """Whether the kernel and what ran have what the short way takes: Triton 3.6 to 3.9 have."""
    try:
        short = callable(ran.run) and ran.function is not None and ran.packed_metadata is not None
        device = triton.runtime.driver.active.get_current_device()
        watched = (
            kernel.pre_run_hooks,
            triton.knobs.runtime,
            triton.knobs.compilation.instrumentation_mode,
        )
        return short and None not in watched and callable(kernel.device_caches[device][_BINDER])
    except (AttributeError, IndexError):
        return False
