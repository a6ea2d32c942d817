"""The CPU backend: native.cpp, compiled once per machine by the system's C++ compiler and called through ctypes.

When a call first needs it, a few seconds of compiling for a dtype and a neuron's step serve every size, window and
other option, and are kept in the user's cache folder (``SPIKETRITON_CACHE``, else ``$XDG_CACHE_HOME/spiketriton`` or
``~/.cache/spiketriton``). ``python -m spiketriton_kernels`` compiles all steps of our own neurons ahead (``forms``),
kind by kind, which serve in their place. Without a compiler the caller falls back to eager PyTorch, and the log says
so once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cache import cache_folder
from ..layout import axis_of
from ..neuron import Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..steps import forms
from ..steps.step import Step, constants_of, header, written
from ..surrogate import SHAPES
from . import beside, call, functions
from .call import BACK, FORTH, INPUT

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("spiketriton_kernels")

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_SHAPES = {shape: number for number, shape in enumerate(SHAPES)}
_FORWARD, _BACKWARD, _STATISTICS, _PACK, _UNPACK, _NORMALISE, _NORMALISE_BACK = range(7)
_SOURCE = Path(__file__).with_name("cpp") / "native.cpp"
_SOURCES = (_SOURCE, *sorted(_SOURCE.parent.glob("*.h")))
_PACKAGE = Path(__file__).parents[1]
_PRINTING = (*sorted((_PACKAGE / "steps").glob("*.py")), _PACKAGE / "neurons" / "stepping.py")
"""Whose text, with that of its own file, says what a whole kind is; a step's name does."""
_FLAGS = (
    "-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions",
    "-shared", "-fPIC",
)  # fmt: skip
# Tried in turn: the machine's own vector units and threads, then less.
_EXTRAS = (
    ("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), (),
)  # fmt: skip

_NOTHING_BACK = bytes(BACK.size)
_NO_NEURON = bytes(1024)
"""For a pass that reads nothing of it."""
_NOT_RUNNING: tuple[None, None, float] = (None, None, 0.0)
_FIELDS = Neuron._fields.index("mean")
"""How many of a neuron's fields are its own, before those of its norm."""
_NOTHING = "statistics"
"""In place of a step's name: a library for passes that have none."""


class CompilerError(RuntimeError):
    """No C++ compiler, or none that takes native.cpp."""


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
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "".join(sorted(told))


def matrix_unit() -> bool:
    """Whether this processor multiplies matrices of bfloat16 by AMX, and whoever runs this wants that.

    ONEDNN_MAX_CPU_ISA, by which PyTorch's convolutions leave it alone, holds for ours, too.
    """
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return "amx_bf16" in _machine() and ("AMX" in most or most in ("", "ALL", "DEFAULT"))


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(compiler: str) -> str:
    asked = [compiler, "--version"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def _build(dtype: torch.dtype, what: str | Step | None) -> Path:
    """The library of a dtype and a step; of a whole kind, by its name or where there is one instead of a step's own."""
    compiler = _compiler()
    version = _version(compiler)
    if isinstance(what, Step) and what.form is not None and what.form.own is None:
        whole = what.form.kind
        if WHOLE or _target(dtype, whole, version).exists():
            what = whole
    target = _target(dtype, what, version)
    return (
        target
        if target.exists()
        else _compiled(target, compiler, dtype, _named(what), _chosen(what))
    )


def _named(what: str | Step | None) -> str:
    """In a file's name: the step, or the whole kind."""
    if what is None:
        return _NOTHING
    return forms.together(what)[0].name if isinstance(what, Step) else what


def _chosen(what: str | Step | None) -> list[str]:
    """What native.cpp is told."""
    step = _SOURCE.with_name("none.h")
    if what is not None:
        step = written(_named(what), _header(what), "h")
    files = dict(STEP=step, CALL=written("call", call.WINDOW.header, "h"))
    told = [f'-DSPIKETRITON_{name}="{path}"' for name, path in files.items()]
    group = max((step.group for step in _steps(what)), default=1)
    return [*told, f"-DSPIKETRITON_GROUP={group}", *_in_haste()]


def _steps(what: str | Step | None) -> Sequence[Step]:
    """Those that a library has."""
    if what is None:
        return ()
    return forms.together(what) if isinstance(what, Step) else forms.steps(what)


def _header(what: str | Step) -> str:
    return header(_named(what), _steps(what), whole=isinstance(what, str))


def _in_haste() -> list[str]:
    """Flags of what tests compile, in half the time."""
    return ["-Og"] if WHOLE else []


def _target(dtype: torch.dtype, what: str | Step | None, version: str) -> Path:
    """Where a library lies, by all that it is made of."""
    made_of = [*_SOURCES]
    if isinstance(what, str):
        made_of += [*_PRINTING, Path(forms.file_of(what))]
    texts = [source.read_text("utf-8") for source in made_of]
    if isinstance(what, Step):
        texts.append(_header(what))
    flags = repr((_FLAGS, _EXTRAS, _in_haste(), dtype, _named(what), torch.__version__))
    key = "\n".join([*texts, call.WINDOW.header, version, _machine(), flags])
    name = f"{_named(what)} {_word(dtype)}".replace(" ", "-")
    return cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def _compiled(
    target: Path,
    compiler: str,
    dtype: torch.dtype,
    kind: str,
    chosen: list[str],
    source: Path = _SOURCE,
) -> Path:
    if target.exists():
        return target
    word = re.sub(r"_[0-9a-f]{12}$", "", kind).split(" ")[0]
    folder, name = target.parent, f"{word} {_word(dtype)}"
    if kind not in forms.kinds():  # what can be had ahead
        said = (
            "compiling the CPU kernels for %s, once on this machine: a few seconds of a processor"
        )
        # recurrent.cpp is compiled for one step when it is called
        ahead = "" if source.stem == "recurrent" else " (all ahead: python -m spiketriton_kernels)"
        log.warning(said + ahead, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115 - only to learn whether the folder is writable
        probe.close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="spiketriton-"))
        target = folder / target.name
    with _alone(target):
        if target.exists():
            return target
        return _compile(target, compiler, dtype, name, chosen, source)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Of processes that want one library at once the first compiles it, and the others find it."""
    if fcntl is None:
        yield
        return
    lock = target.with_suffix(".lock")
    with open(lock, "ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks: each compiles
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _compile(
    target: Path, compiler: str, dtype: torch.dtype, name: str, chosen: list[str], source: Path
) -> Path:
    errors = ""
    started = time.perf_counter()
    for extra in _EXTRAS:
        part = target.parent / f"{target.stem}.{uuid.uuid4().hex}.part"
        command = [
            compiler, *_FLAGS, f"-DSPIKETRITON_DTYPE={_DTYPES[dtype]}",
            *chosen, *extra, str(source), "-o", str(part),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            os.replace(
                part, target
            )  # of several processes the last one wins, with the same content
            took = time.perf_counter() - started
            log.info("compiled the CPU kernels for %s in %.1f s: %s", name, took, target)
            return target
        part.unlink(missing_ok=True)
        if done.returncode < 0 or "signal terminated" in done.stderr:
            # Ctrl-C or too little memory is no verdict on the flags: with less, the machine would keep a slow library
            raise CompilerError(f"{compiler} was interrupted")
        errors = errors or done.stderr
    raise CompilerError(
        f"{compiler} cannot compile {source.name} for {name}: {errors.strip().splitlines()[:3]}"
    )


WHOLE = os.environ.get("SPIKETRITON_WHOLE", "0") == "1"
"""Whether a call compiles its whole kind; the tests, which need all of each, have it so."""

_building: dict[tuple[torch.dtype, Any], threading.Lock] = defaultdict(threading.Lock)
_loaded: dict[tuple[torch.dtype, Step | None], Library] = {}
"""By dtype and step; without a step one of them."""


class Library(ctypes.CDLL):
    """``kind``: whose forms it has all of; None: of one step and its companion, of which this is number ``form``."""

    kind: str | None = None
    form = 0


@functools.cache
def load(dtype: torch.dtype, what: str | Step | None) -> Library | CompilerError:
    """The compiled kernels of a dtype and a step, or of a whole kind, or why there are none."""
    try:
        with _building[dtype, what]:  # threads that come at once wait for one build
            path = _build(dtype, what)
        # torch's own OpenMP runtime is already loaded globally, so the library joins its thread pool.
        loaded = Library(str(path))
    except CompilerError as error:
        return error
    except OSError as error:
        return CompilerError(
            f"the compiled CPU kernels do not load: {error}; a folder that is mounted noexec holds no code: accepted: "
            f"another one than {path.parent}, by SPIKETRITON_CACHE"
        )
    form = what.form if isinstance(what, Step) else None
    if form is not None and path.name.startswith(f"{form.kind}-{_word(dtype)}-"):
        loaded.kind = form.kind
    elif isinstance(what, Step):
        loaded.form = _steps(what).index(what)
    loaded.spiketriton_run.argtypes = [ctypes.c_void_p, ctypes.c_int]
    loaded.spiketriton_run.restype = None
    loaded.spiketriton_call_digest.restype = ctypes.c_int64
    digest, size = loaded.spiketriton_call_digest(), loaded.spiketriton_call_size()
    expected = size  # of a whole kind, which no call asks for by its name
    if isinstance(what, Step):
        expected = call.WINDOW.size(len(what.states), len(_constants(loaded, what)))
    if (digest, size) != (call.WINDOW.digest, expected):
        raise AssertionError(f"{path.name} and {call.__name__} disagree on the fields of a call")
    if what is not None and any(step.calls for step in _steps(loaded.kind or what)):
        functions.give(loaded, dtype)
    _loaded[dtype, None] = loaded
    if not isinstance(what, str):
        _loaded[dtype, what] = loaded
    return loaded


def library(dtype: torch.dtype, step: Step | None = None) -> Library:
    """The compiled kernels of a dtype and a step, None: any of them.

    Raises CompilerError with the reason when there are none.
    """
    found = _loaded.get((dtype, step)) or load(dtype, step)
    if isinstance(found, CompilerError):
        raise found
    return found


def failure(dtype: torch.dtype, step: Step | None = None) -> CompilerError | None:
    """Why ``library`` has none; None where it has."""
    if (dtype, step) in _loaded:
        return None
    found = load(dtype, step)
    return found if isinstance(found, CompilerError) else None


GRAIN = 32768
"""Elements worth a thread, as in torch's own CPU kernels: a smaller pass ends before its helpers have woken."""


def _input(x: torch.Tensor, measures: bool = False) -> bytes:
    """The part of the call about x [T, B, ...]."""
    return _described(x.shape, x.stride(), torch.get_num_threads(), measures)


@functools.lru_cache(maxsize=1024)
def _described(size: torch.Size, stride: tuple[int, ...], threads: int, measures: bool) -> bytes:
    elements = size.numel()
    threads = 1 if elements < 2 * GRAIN else min(threads, elements // GRAIN)
    return INPUT.pack(size[0], elements // size[0], *axis_of(size, stride), threads, measures)


def _places(*tensors: torch.Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _called(neuron: Neuron, dtype: torch.dtype) -> tuple[Library, bytes]:
    """What serves a neuron, and its part of the call."""
    found = library(dtype, neuron.step)
    if neuron.is_plain:
        return found, _remembered(found, neuron[:_FIELDS])
    return found, _packed(found, neuron)


def _packed(served: Library, neuron: Neuron) -> bytes:
    step, form, constants = neuron.step, served.form, neuron.constants
    rows: tuple[int, ...] = step.rows
    if (
        served.kind is not None
    ):  # its constants are in another order, and the surrogate's number is one of them
        form = step.form.whole
        given = dict(zip(step.constants, zip(constants, rows, strict=True), strict=True))
        if (
            step.form.shape in _SHAPES
        ):  # of a step that reads none, any form may have been traced first
            given["shape"] = (float(_SHAPES[step.form.shape]), -1)
        pairs = [given.get(name, (0.0, -1)) for name in _constants(served, step)]
        constants, rows = zip(*pairs, strict=True)
    return neuron_part(neuron, constants, rows, form)


def neuron_part(
    neuron: Neuron, constants: Sequence[float | torch.Tensor], rows: Iterable[int], form: int = 0
) -> bytes:
    """The last part of a call: a form of the neuron, where it starts, and constants with their rows."""
    fields: list[float] = [form, neuron.rows, neuron.channels, *neuron.starts]
    for value, row in zip(constants, rows, strict=True):
        if isinstance(value, torch.Tensor):
            fields += (value.data_ptr(), 0.0, value.numel(), row)
        else:
            fields += (0, value, 1, row)
    return call.of_neuron(len(neuron.starts), len(constants)).pack(*fields, 0, 0.0, 0, 0)


_remembered = functools.lru_cache(maxsize=256)(
    lambda served, fields: _packed(served, Neuron(*fields))
)


def _constants(served: Library, step: Step) -> tuple[str, ...]:
    """What a library is told, in order."""
    return step.constants if served.kind is None else _of_whole(served.kind)


@functools.cache
def _of_whole(kind: str) -> tuple[str, ...]:
    return tuple(constants_of(forms.steps(kind)))


def forward(
    inputs: Inputs,
    neuron: Neuron,
    out: Outputs,
    measures: bool,
    running: Running | None,
    bits: torch.Tensor | None = None,
) -> None:
    """``saved`` stays as it is: a block of neurons replays its window from cache.

    bits: where ``gives_bits``, memory for the spikes, of 16 neurons in a word of int16.
    """
    x = inputs.x
    spikes, last, trace, _, current = out
    served, called = _called(neuron, x.dtype)
    running_mean, running_var, momentum = running or _NOT_RUNNING
    known = beside.moments_of(x) if measures else None
    more = spikes, last, trace, current, running_mean, running_var, bits, known
    places = _places(*neuron.norm, *inputs, *more)
    forth = FORTH.pack(neuron.eps, neuron.bn_scale, 0.0, momentum, *places)
    served.spiketriton_run(_input(x, measures) + forth + _NOTHING_BACK + called, _FORWARD)


@functools.cache
def gives_bits(step: Step, dtype: torch.dtype) -> bool:
    """Whether ``forward`` gives spikes as bits, too."""
    return step.is_binary and bool(library(dtype, step).spiketriton_gives_bits())


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
    x = inputs.x
    served, called = _called(neuron, x.dtype)
    read = _places(*neuron.norm, *inputs)
    forth = FORTH.pack(neuron.eps, neuron.bn_scale, count, 0.0, *read, 0, 0, 0, 0, 0, 0, 0, 0)
    back = BACK.pack(*_places(*upstream, sums, *out))
    served.spiketriton_run(_input(x) + forth + back + called, _BACKWARD)


def channel_statistics(
    y: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, running: Running | None
) -> None:
    """Fill mean and biased variance of each channel, [C] each; running statistics move towards them."""
    running_mean, running_var, momentum = running or _NOT_RUNNING
    names = "mean", "var", "x", "running_mean", "running_var", "moments"
    given = mean, var, y, running_mean, running_var, beside.moments_of(y)
    places = zip(names, _places(*given), strict=True)
    _run_simple(_STATISTICS, y, FORTH.of(momentum=momentum, **dict(places)))


def normalise(
    y: torch.Tensor, norm: Sequence[torch.Tensor | None], eps: float, out: torch.Tensor
) -> None:
    """Fill each step of out [T, B, C, ...] with the normalised y [1, B, C, ...]. norm: mean, var, weight and bias."""
    mean, var, weight, bias = _places(*norm)
    given = {"mean": mean, "var": var, "weight": weight, "bias": bias}
    places = {"x": y.data_ptr(), "spikes": out.data_ptr()}
    forth = FORTH.of(eps=eps, bn_scale=1.0, count=len(out), **given, **places)
    library(y.dtype).spiketriton_run(_input(y) + forth + _NOTHING_BACK + _NO_NEURON, _NORMALISE)


def normalise_back(
    grad: torch.Tensor,
    y: torch.Tensor,
    norm: Sequence[torch.Tensor | None],
    eps: float,
    sums: torch.Tensor,
    dy: torch.Tensor,
) -> None:
    """Fill dy, like y, and sums [2, C], the gradients by bias and weight, of ``normalise``."""
    mean, var, weight, bias = _places(*norm)
    given = {"mean": mean, "var": var, "weight": weight, "bias": bias, "x": y.data_ptr()}
    forth = FORTH.of(eps=eps, bn_scale=1.0, count=len(grad), **given)
    back = BACK.of(grad_spikes=grad.data_ptr(), out_sums=sums.data_ptr(), out_dy=dy.data_ptr())
    library(y.dtype).spiketriton_run(_input(y) + forth + back + _NO_NEURON, _NORMALISE_BACK)


def pack(spikes: torch.Tensor, bits: torch.Tensor) -> None:
    """Fill bits, uint8, from flat spikes."""
    _convert(_PACK, spikes, spikes, bits)


def unpack(bits: torch.Tensor, spikes: torch.Tensor) -> None:
    """Fill flat spikes from bits, uint8."""
    _convert(_UNPACK, spikes, bits, spikes)


def _convert(pass_: int, spikes: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
    places = FORTH.of(x=source.data_ptr(), spikes=target.data_ptr())
    _run_simple(pass_, spikes.view(1, 1, -1), places)


def _run_simple(pass_: int, x: torch.Tensor, forth: bytes) -> None:
    """A pass without a neuron, which every kind's library has."""
    library(x.dtype).spiketriton_run(_input(x) + forth + _NOTHING_BACK + _NO_NEURON, pass_)
