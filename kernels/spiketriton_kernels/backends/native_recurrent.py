"""Neurons whose spikes come back by a matrix (recurrent.py) on a CPU: recurrent.cpp, compiled once per machine, dtype
and step when a call first needs it, and found as native.py finds its own."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from typing import Any

import torch
from torch import Tensor

from ..cache import cache_folder
from ..neuron import Neuron, membrane_dtype
from ..steps.step import Step, written
from . import call, native
from .call import RECURRENT

_SOURCE = native._SOURCE.with_name("recurrent.cpp")
_SOURCES = [_SOURCE, *(_SOURCE.with_name(name) for name in ("steps.h", "vectors.h"))]
GRAIN = 8192
"""Elements worth a thread: of each there is a row of the matrix to add, or to multiply by."""


def _build(dtype: torch.dtype, step: Step) -> str:
    """The library's path."""
    compiler = native._compiler()
    texts = [source.read_text("utf-8") for source in _SOURCES]
    flags = repr((native._FLAGS, native._EXTRAS, native._in_haste(), dtype, torch.__version__))
    told = [*texts, step.cpp, call.RETURNED.header, native._version(compiler), native._machine()]
    key = hashlib.sha256("\n".join([*told, flags]).encode()).hexdigest()[:16]
    name = f"recurrent-{step.name}-{native._word(dtype)}-{key}.so"
    chosen = [
        f'-DSPIKETRITON_STEP="{written(step.name, step.cpp, "h")}"',
        f'-DSPIKETRITON_CALL="{written("returned", call.RETURNED.header, "h")}"',
        *native._in_haste(),
    ]
    target, kind = cache_folder() / name, f"recurrent_{step.name}"
    return str(native._compiled(target, compiler, dtype, kind, chosen, _SOURCE))


@functools.cache
def load(dtype: torch.dtype, step: Step) -> ctypes.CDLL | native.CompilerError:
    """The compiled step of a dtype, or why there is none."""
    try:
        loaded = ctypes.CDLL(_build(dtype, step))
    except (native.CompilerError, OSError) as error:
        return native.CompilerError(str(error))
    loaded.spiketriton_recurrent.argtypes = [ctypes.c_void_p, ctypes.c_int]
    loaded.spiketriton_recurrent.restype = None
    loaded.spiketriton_call_digest.restype = ctypes.c_int64
    found = loaded.spiketriton_call_digest(), loaded.spiketriton_call_size()
    if found != (call.RETURNED.digest, call.RETURNED.size(len(step.states), len(step.constants))):
        raise AssertionError(f"{_SOURCE.name} and {call.__name__} disagree on the fields of a call")
    return loaded


def library(dtype: torch.dtype, step: Step) -> ctypes.CDLL:
    """CompilerError: there is none."""
    found = load(dtype, step)
    if isinstance(found, native.CompilerError):
        raise found
    return found


def failure(dtype: torch.dtype, step: Step) -> native.CompilerError | None:
    """Why ``library`` has none; None where it has."""
    found = load(dtype, step)
    return found if isinstance(found, native.CompilerError) else None


def forward(x: Tensor, matrix: Tensor, first: Tensor | None, neuron: Neuron, out: Any) -> None:
    """Fill what ``out``, a ``Window``, holds tensors for."""
    transposed = matrix.to(membrane_dtype(x.dtype)).t().contiguous()
    places = dict(
        x=x, matrix=transposed, first=first, spikes=out.spikes, last=out.states, trace=out.trace, kept=out.kept
    )  # fmt: skip
    _run(x, neuron, places, 0)


def backward(upstream: Any, kept: Tensor, matrix: Tensor, neuron: Neuron, out: Any) -> None:
    """Fill what ``out``, ``Found``, holds tensors for."""
    by_spikes, by_states, by_trace = upstream
    places = dict(
        matrix=matrix.to(membrane_dtype(matrix.dtype)), kept=kept, grad_spikes=by_spikes, grad_states=by_states,
        grad_trace=by_trace, out_dx=out.dx, out_states=out.states, out_constants=out.constants, out_probe=out.probe,
    )  # fmt: skip
    _run(by_spikes, neuron, places, 1)


def _run(x: Tensor, neuron: Neuron, tensors: dict[str, Tensor | None], way: int) -> None:
    steps, samples, neurons = x.shape
    threads = max(1, min(torch.get_num_threads(), x.numel() // GRAIN))
    places = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    sizes = dict(steps=steps, samples=samples, neurons=neurons, threads=threads)
    parts = [
        RECURRENT.of(**sizes, **places),
        native.neuron_part(neuron, neuron.constants, neuron.step.rows),
    ]
    library(x.dtype, neuron.step).spiketriton_recurrent(b"".join(parts), way)
