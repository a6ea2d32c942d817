"""The CPU backend: native.cpp, compiled once per machine by the system's C++ compiler and called through ctypes.

One compile of a few seconds per dtype serves every size, window and option, and is kept in the user's cache folder
(``SPIKETRITON_CACHE``, else ``$XDG_CACHE_HOME/spiketriton`` or ``~/.cache/spiketriton``). Without a compiler the
caller falls back to eager PyTorch, and the log says so once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import torch

from ..layout import channel_axis
from ..neuron import Emit, Gradients, Neuron, membrane_dtype
from ..surrogate import SHAPES

log = logging.getLogger("spiketriton_kernels")

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_RESETS = {"soft": 0, "hard": 1, "none": 2}
_FORWARD, _BACKWARD, _NORM_BACKWARD, _STATISTICS, _PACK, _UNPACK = range(6)
_SOURCE = Path(__file__).with_name("native.cpp")
_HEADER = _SOURCE.with_suffix(".h")
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
# Tried in turn: the machine's own vector units and threads, then less.
_EXTRAS = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-fopenmp",),
    ("-march=native",),
    (),
)

_INTS64 = (
    "steps",
    "neurons",
    "channels",
    "inner",
    "decay_size",
    "threshold_size",
    "width_size",
    "parameter_size",
)
_INTS32 = ("reset", "detach_reset", "leaks_to_reset", "shape", "threads")
_DOUBLES = (
    "decay",
    "gain",
    "threshold",
    "v_reset",
    "v_start",
    "height",
    "width",
    "eps",
    "bn_scale",
    "count",
)
_POINTERS = (
    "x", "v_init", "residual", "spike_add", "grad_s", "grad_v_last",
    "decay_p", "threshold_p", "width_p",
    "mean", "var", "weight", "bias", "step_gain", "sums",
    "spikes", "v_last", "dx", "dy", "out_sums", "out_v_init", "out_parameters", "out_step_gain",
    "probe",
)  # fmt: skip


class _Call(ctypes.Structure):
    """native.cpp's Call, field by field."""

    _fields_ = (
        [(n, ctypes.c_int64) for n in _INTS64]
        + [(n, ctypes.c_int32) for n in _INTS32]
        + [(n, ctypes.c_double) for n in _DOUBLES]
        + [(n, ctypes.c_void_p) for n in _POINTERS]
    )


class CompilerError(RuntimeError):
    """No C++ compiler, or none that takes native.cpp."""


def _cache_folder() -> Path:
    if "SPIKETRITON_CACHE" in os.environ:
        return Path(os.environ["SPIKETRITON_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spiketriton"


def _compiler() -> str:
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(candidate)
        if found:
            return found
    raise CompilerError(
        f"the C++ compiler CXX={named!r} was not found"
        if named
        else "no C++ compiler found (c++, g++, clang++)"
    )


def _machine() -> str:
    """What -march=native depends on: the processor's model and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    )


def _build(dtype: torch.dtype, source: Path) -> Path:
    compiler = _compiler()
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False
    ).stdout
    texts = (_HEADER.read_text(), source.read_text())
    key = "\n".join([*texts, version, _machine(), repr((_FLAGS, _EXTRAS, dtype))])
    folder = _cache_folder()
    name = str(dtype).removeprefix("torch.")
    target = folder / f"{source.stem}-{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115 - only to learn whether the folder is writable
        probe.close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="spiketriton-"))
        target = folder / target.name
    errors = ""
    started = time.perf_counter()
    for extra in _EXTRAS:
        part = folder / f"{target.stem}.{uuid.uuid4().hex}.part"
        command = [
            compiler,
            *_FLAGS,
            f"-DSPIKETRITON_DTYPE={_DTYPES[dtype]}",
            *extra,
            str(source),
            "-o",
            str(part),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            os.replace(
                part, target
            )  # of several processes the last one wins, with the same content
            log.info(
                "compiled the CPU kernels for %s in %.1f s: %s",
                name,
                time.perf_counter() - started,
                target,
            )
            return target
        errors = errors or done.stderr
        part.unlink(missing_ok=True)
    raise CompilerError(
        f"{compiler} cannot compile {source.name} for {name}: {errors.strip().splitlines()[:3]}"
    )


_building = threading.Lock()


@functools.cache
def load(
    dtype: torch.dtype, source: Path, call: type[ctypes.Structure]
) -> ctypes.CDLL | CompilerError:
    """The compiled ``source`` for a dtype, whose ``Call`` is the structure ``call``; or why there is none."""
    try:
        with _building:  # threads that come at once wait for one build
            path = _build(dtype, source)
        # torch's own OpenMP runtime is already loaded globally, so the library joins its thread pool.
        loaded = ctypes.CDLL(str(path))
    except CompilerError as error:
        return error
    except OSError as error:
        return CompilerError(f"the compiled CPU kernels do not load: {error}")
    loaded.spiketriton_run.argtypes = [ctypes.POINTER(call), ctypes.c_int]
    loaded.spiketriton_run.restype = None
    if loaded.spiketriton_call_size() != ctypes.sizeof(call):
        raise AssertionError(f"{source.name} and its caller disagree on Call")
    return loaded


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled kernels of a dtype. Raises CompilerError with the reason when there are none."""
    loaded = load(dtype, _SOURCE, _Call)
    if isinstance(loaded, CompilerError):
        raise loaded
    return loaded


def failure(dtype: torch.dtype) -> CompilerError | None:
    """Why there are no compiled kernels of a dtype; None where there are."""
    loaded = load(dtype, _SOURCE, _Call)
    return loaded if isinstance(loaded, CompilerError) else None


GRAIN = 32768
"""Elements worth a thread, as in torch's own CPU kernels: a smaller pass ends before its helpers have woken."""


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // GRAIN))


def _run(pass_: int, x: torch.Tensor, neuron: Neuron | None = None, **fields: Any) -> None:
    channels, inner = channel_axis(x)
    call = _Call(
        steps=x.shape[0],
        neurons=x.numel() // x.shape[0],
        channels=channels,
        inner=inner,
        threads=_threads(x.numel()),
        x=x.data_ptr(),
    )
    if neuron is not None:
        call.reset, call.shape = _RESETS[neuron.reset], SHAPES.index(neuron.shape)
        call.detach_reset, call.leaks_to_reset = neuron.detach_reset, neuron.leaks_to_reset
        for name in ("gain", "v_reset", "v_start", "height", "eps", "bn_scale"):
            setattr(call, name, getattr(neuron, name))
        call.parameter_size = neuron.parameter_size
        for name, value in zip(("decay", "threshold", "width"), neuron.parameters, strict=True):
            if isinstance(value, torch.Tensor):
                setattr(call, f"{name}_p", value.data_ptr())
                setattr(call, f"{name}_size", value.numel())
            else:
                setattr(call, name, value)
        for name in ("mean", "var", "weight", "bias", "step_gain"):
            fields.setdefault(name, getattr(neuron, name))
    for name, value in fields.items():
        if isinstance(value, torch.Tensor):
            setattr(call, name, value.data_ptr())
        elif value is not None:
            setattr(call, name, value)
    library(x.dtype).spiketriton_run(ctypes.byref(call), pass_)


def _wide(value: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    return None if value is None else value.to(membrane_dtype(x.dtype))


def forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    spike_add: torch.Tensor | None,
    neuron: Neuron,
    spikes: torch.Tensor,
    v_last: torch.Tensor | None,
    saved: torch.Tensor,
) -> None:
    """Fill spikes and v_last. ``saved`` stays empty: a block of neurons replays its whole window from cache."""
    v_init = _wide(v_init, x)
    _run(
        _FORWARD,
        x,
        neuron,
        v_init=v_init,
        residual=residual,
        spike_add=spike_add,
        spikes=spikes,
        v_last=v_last,
    )


def backward(
    grad_s: torch.Tensor,
    grad_v_last: torch.Tensor | None,
    x: torch.Tensor,
    saved: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    neuron: Neuron,
    emit: Emit,
    sums: torch.Tensor | None,
    count: float,
    out: Gradients,
) -> None:
    """Fill what ``out`` holds tensors for."""
    v_init, grad_v_last = _wide(v_init, x), _wide(grad_v_last, x)
    _run(
        _BACKWARD, x, neuron,
        grad_s=grad_s, grad_v_last=grad_v_last, v_init=v_init, residual=residual, sums=sums, count=count,
        dx=out.dx, dy=out.dy, out_sums=out.sums, out_v_init=out.v_init, out_parameters=out.parameters,
        out_step_gain=out.step_gain, probe=out.probe,
    )  # fmt: skip


def norm_backward(dx, y, mean, var, weight, step_gain, sums, eps, bn_scale, count, dy) -> None:
    """Fill dy, which may be dx itself, with dL/dy of batch norm from dL/dx and the channel sums."""
    _run(
        _NORM_BACKWARD, y, grad_s=dx, mean=mean, var=var, weight=weight, step_gain=step_gain, sums=sums,
        eps=eps, bn_scale=bn_scale, count=count, dy=dy,
    )  # fmt: skip


def channel_statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel, [C] each."""
    mean, var = (y.new_empty(y.shape[2], dtype=membrane_dtype(y.dtype)) for _ in range(2))
    _run(_STATISTICS, y, dx=mean, dy=var)
    return mean, var


def pack(spikes: torch.Tensor, bits: torch.Tensor) -> None:
    """Fill bits, uint8, from flat spikes."""
    call = _Call(
        neurons=spikes.numel(),
        threads=_threads(spikes.numel()),
        x=spikes.data_ptr(),
        spikes=bits.data_ptr(),
    )
    library(spikes.dtype).spiketriton_run(ctypes.byref(call), _PACK)


def unpack(bits: torch.Tensor, spikes: torch.Tensor) -> None:
    """Fill flat spikes from bits, uint8."""
    call = _Call(
        neurons=spikes.numel(),
        threads=_threads(spikes.numel()),
        x=bits.data_ptr(),
        spikes=spikes.data_ptr(),
    )
    library(spikes.dtype).spiketriton_run(ctypes.byref(call), _UNPACK)
