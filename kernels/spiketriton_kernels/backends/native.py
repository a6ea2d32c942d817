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
import struct
import subprocess
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from ..layout import channel_axis
from ..neuron import Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..surrogate import SHAPES

log = logging.getLogger("spiketriton_kernels")

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_RESETS = {"soft": 0, "hard": 1, "none": 2}
_SHAPES = {shape: number for number, shape in enumerate(SHAPES)}
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

_CALL = struct.Struct("@4q2i4i4q11d28P")
"""native.cpp's Call: the input's sizes and threads; the neuron's options, sizes and numbers; all pointers."""


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
        part.unlink(missing_ok=True)
        if done.returncode < 0 or "signal terminated" in done.stderr:
            # Ctrl-C or too little memory is no verdict on the flags: with less, the machine would keep a slow library
            raise CompilerError(f"{compiler} was interrupted")
        errors = errors or done.stderr
    raise CompilerError(
        f"{compiler} cannot compile {source.name} for {name}: {errors.strip().splitlines()[:3]}"
    )


_building: dict[tuple[torch.dtype, Path], threading.Lock] = defaultdict(threading.Lock)


@functools.cache
def load(dtype: torch.dtype, source: Path, size: int) -> ctypes.CDLL | CompilerError:
    """The compiled ``source`` for a dtype, whose ``Call`` has this size; or why there is none."""
    try:
        with _building[dtype, source]:  # threads that come at once wait for one build
            path = _build(dtype, source)
        # torch's own OpenMP runtime is already loaded globally, so the library joins its thread pool.
        loaded = ctypes.CDLL(str(path))
    except CompilerError as error:
        return error
    except OSError as error:
        return CompilerError(f"the compiled CPU kernels do not load: {error}")
    loaded.spiketriton_run.argtypes = [ctypes.c_void_p, ctypes.c_int]
    loaded.spiketriton_run.restype = None
    if loaded.spiketriton_call_size() != size:
        raise AssertionError(f"{source.name} and its caller disagree on Call")
    return loaded


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled kernels of a dtype. Raises CompilerError with the reason when there are none."""
    loaded = load(dtype, _SOURCE, _CALL.size)
    if isinstance(loaded, CompilerError):
        raise loaded
    return loaded


def failure(dtype: torch.dtype) -> CompilerError | None:
    """Why there are no compiled kernels of a dtype; None where there are."""
    loaded = load(dtype, _SOURCE, _CALL.size)
    return loaded if isinstance(loaded, CompilerError) else None


GRAIN = 32768
"""Elements worth a thread, as in torch's own CPU kernels: a smaller pass ends before its helpers have woken."""


def _threads(elements: int) -> int:
    return 1 if elements < 2 * GRAIN else min(torch.get_num_threads(), elements // GRAIN)


def _at(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _sizes(x: torch.Tensor) -> tuple[int, ...]:
    """Of the input x [T, B, ...]: steps, neurons a step, channels, inner; and threads."""
    steps, elements = x.shape[0], x.numel()
    channels, inner = channel_axis(x)
    return steps, elements // steps, channels, inner, _threads(elements)


def _parameters(neuron: Neuron) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, ...]]:
    """(options and sizes, numbers, pointers) of the neuron and its norm, in the order of Call."""
    decay: Any
    threshold: Any
    width: Any
    decay, threshold, width, *_ = neuron.parameters
    decay_p = threshold_p = width_p = 0
    decay_size = threshold_size = width_size = parameter_size = 0
    if isinstance(decay, torch.Tensor):
        decay, decay_p, decay_size = 0.0, decay.data_ptr(), decay.numel()
    if isinstance(threshold, torch.Tensor):
        threshold, threshold_p, threshold_size = 0.0, threshold.data_ptr(), threshold.numel()
    if isinstance(width, torch.Tensor):
        width, width_p, width_size = 0.0, width.data_ptr(), width.numel()
    if decay_p or threshold_p or width_p:
        parameter_size = neuron.parameter_size
    options = (
        _RESETS[neuron.reset], neuron.detach_reset, neuron.leaks_to_reset, _SHAPES[neuron.shape],
        decay_size, threshold_size, width_size, parameter_size,
    )  # fmt: skip
    numbers = (
        decay, neuron.gain, threshold, neuron.v_reset, neuron.v_start, neuron.height, width,
        neuron.eps, neuron.bn_scale,
    )  # fmt: skip
    norm = (0, 0, 0, 0, 0)
    if neuron.mean is not None:
        mean, var, weight, bias, step_gain = neuron.norm
        norm = mean.data_ptr(), var.data_ptr(), _at(weight), _at(bias), _at(step_gain)
    return options, numbers, (decay_p, threshold_p, width_p, *norm)


_NO_NEURON = (0,) * 8


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """``saved`` is None: a block of neurons replays its window from cache."""
    x, v_init, _, residual, spike_add = inputs
    options, numbers, parameters = _parameters(neuron)
    running_mean, running_var, momentum = (None, None, 0.0) if running is None else running
    call = _CALL.pack(
        *_sizes(x), measures, *options, *numbers, 0.0, momentum, *parameters,
        x.data_ptr(), _at(v_init), _at(residual), _at(spike_add), 0, 0, 0, 0,
        out.spikes.data_ptr(), _at(out.v_last), _at(out.current), 0, 0, 0, 0, 0, 0,
        _at(running_mean), _at(running_var), 0,
    )  # fmt: skip
    library(x.dtype).spiketriton_run(call, _FORWARD)


def backward(
    upstream: Upstream,
    inputs: Inputs,
    saved: torch.Tensor | None,
    neuron: Neuron,
    count: float,
    sums: torch.Tensor | None,
    out: Gradients,
) -> None:
    """Fill what ``out`` holds tensors for."""
    grad_s, grad_v_last, _, _, grad_current = upstream
    x, v_init, _, residual, _ = inputs
    options, numbers, parameters = _parameters(neuron)
    call = _CALL.pack(
        *_sizes(x), False, *options, *numbers, count, 0.0, *parameters,
        x.data_ptr(), _at(v_init), _at(residual), 0, grad_s.data_ptr(), _at(grad_v_last), _at(grad_current), _at(sums),
        0, 0, 0, _at(out.dx), _at(out.dy), _at(out.sums), _at(out.v_init), _at(out.parameters), _at(out.step_gain),
        0, 0, _at(out.probe),
    )  # fmt: skip
    library(x.dtype).spiketriton_run(call, _BACKWARD)


def norm_backward(dx, y, neuron: Neuron, sums, count, dy) -> None:
    """Fill dy, which may be dx itself, with dL/dy of batch norm from dL/dx and the channel sums."""
    mean, var, weight, _, step_gain = neuron.norm
    numbers = (0.0,) * 7
    call = _CALL.pack(
        *_sizes(y), False, *_NO_NEURON, *numbers, neuron.eps, neuron.bn_scale, count, 0.0,
        0, 0, 0, mean.data_ptr(), var.data_ptr(), _at(weight), 0, _at(step_gain),
        y.data_ptr(), 0, 0, 0, dx.data_ptr(), 0, 0, sums.data_ptr(),
        0, 0, 0, 0, dy.data_ptr(), 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    library(y.dtype).spiketriton_run(call, _NORM_BACKWARD)


def channel_statistics(
    y: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, running: Running | None
) -> None:
    """Fill mean and biased variance of each channel, [C] each; running statistics move towards them."""
    running_mean, running_var, momentum = (None, None, 0.0) if running is None else running
    _run_simple(
        _STATISTICS, y, y.data_ptr(), momentum=momentum, dx=mean.data_ptr(), dy=var.data_ptr(),
        running_mean=_at(running_mean), running_var=_at(running_var),
    )  # fmt: skip


def _run_simple(
    pass_: int, x: torch.Tensor, source: int, spikes: int = 0, dx: int = 0, dy: int = 0,
    running_mean: int = 0, running_var: int = 0, momentum: float = 0.0,
) -> None:  # fmt: skip
    """A pass without neuron or norm."""
    numbers, parameters = (0.0,) * 10, (0,) * 8
    call = _CALL.pack(
        *_sizes(x), False, *_NO_NEURON, *numbers, momentum, *parameters, source, 0, 0, 0, 0, 0, 0, 0,
        spikes, 0, 0, dx, dy, 0, 0, 0, 0, running_mean, running_var, 0,
    )  # fmt: skip
    library(x.dtype).spiketriton_run(call, pass_)


def pack(spikes: torch.Tensor, bits: torch.Tensor) -> None:
    """Fill bits, uint8, from flat spikes."""
    _run_simple(_PACK, spikes.view(1, 1, -1), spikes.data_ptr(), spikes=bits.data_ptr())


def unpack(bits: torch.Tensor, spikes: torch.Tensor) -> None:
    """Fill flat spikes from bits, uint8."""
    _run_simple(_UNPACK, spikes.view(1, 1, -1), bits.data_ptr(), spikes=spikes.data_ptr())
