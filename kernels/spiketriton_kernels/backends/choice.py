"""Which code runs a call: Triton, the compiled C++ pass, or eager PyTorch. The device decides; the log says so once."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from ..steps.step import Step
from . import native

log = logging.getLogger("spiketriton_kernels")

Backend = Literal["auto", "triton", "native", "torch"]
BACKENDS = get_args(Backend)
HAVE_TRITON = find_spec("triton") is not None
_TRITON = f"{__package__.rpartition('.')[0]}.triton_import"


class Later:
    """A module of this folder, imported when something of it is first asked for: a process that calls no Triton kernel
    does not wait for Triton, which takes longer than all else here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: Any = None

    def __getattr__(self, attribute: str) -> Any:
        if self.module is None:
            self.module = importlib.import_module(f".{self.name}", __package__)
        return getattr(self.module, attribute)


_forced = os.environ.get("SPIKETRITON_BACKEND", "auto")
if _forced not in BACKENDS:
    raise ValueError(f"SPIKETRITON_BACKEND={_forced!r} is unknown; accepted: {', '.join(BACKENDS)}")
_said: set[str] = set()


def interpreting() -> bool:
    """Whether Triton kernels run on CPU tensors: TRITON_INTERPRET=1, which triton reads when it is imported.

    Raises RuntimeError where it was set later: only some of the code would be interpreted.
    """
    wanted = os.environ.get("TRITON_INTERPRET", "0") not in ("0", "")
    if wanted and HAVE_TRITON and not importlib.import_module(_TRITON).INTERPRETED:
        raise RuntimeError(
            "TRITON_INTERPRET is set, but was not when triton was imported; accepted: set before, or unset"
        )
    return wanted


def _interpreted() -> bool:
    """Whether Triton was imported, and to be interpreted."""
    triton = sys.modules.get(_TRITON)
    return triton is not None and triton.INTERPRETED


@contextlib.contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Force one backend inside a with-block: "auto" (the default), "triton", "native" or "torch".

    Raises ValueError for another name. A backend that cannot serve a tensor raises where it is called.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; accepted: {', '.join(BACKENDS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def say_once(message: str, level: int = logging.INFO) -> None:
    if message not in _said:
        _said.add(message)
        log.log(level, message)


def backend_for(x: torch.Tensor, step: Step | None = None, compiled: Any = native) -> str:
    """The backend that serves tensors like x: its device and dtype decide, unless one is forced.

    ``step``: the neuron's; None: a pass without one. ``compiled``: the module whose C++ it would be.
    """
    on_gpu = x.is_cuda
    if _forced != "auto":
        return _forced_backend(x, step, on_gpu, compiled)
    if on_gpu and HAVE_TRITON:
        return "torch" if x.dtype == torch.float64 else "triton"
    if not x.is_cpu:
        say_once(
            f"spiketriton kernels on {x.device.type}: eager PyTorch (no fused kernel for this device)"
        )
        return "torch"
    # Where Triton compiles, the variable is looked at once: reading it costs as much as the rest.
    if (
        (_interpreted() or not _said)
        and interpreting()
        and HAVE_TRITON
        and x.dtype != torch.float64
    ):
        return "triton"
    reason = compiled.failure(x.dtype, step)
    if reason is None:
        say_once(_NATIVE)
        return "native"
    # a step of one's own, whose author would look for the slowness elsewhere
    own = step is not None and step.form is None
    said = f"spiketriton kernels on cpu: eager PyTorch, several times slower, because {reason}"
    say_once(said, logging.WARNING if own else logging.INFO)
    return "torch"


_NATIVE = "spiketriton kernels on cpu: compiled C++"


def _forced_backend(x: torch.Tensor, step: Step | None, on_gpu: bool, compiled: Any) -> str:
    if _forced == "triton" and not (HAVE_TRITON and (on_gpu or interpreting())):
        raise RuntimeError(
            f"the triton backend needs a CUDA tensor (or TRITON_INTERPRET=1), got {x.device}"
        )
    if _forced == "native":
        if x.device.type != "cpu":
            raise RuntimeError(f"the native backend needs a CPU tensor, got {x.device}")
        compiled.library(
            x.dtype, step
        )  # raises with the compiler's message when it cannot be built
    return "torch" if _forced == "triton" and x.dtype == torch.float64 else _forced
