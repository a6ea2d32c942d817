"""The CPU backend: native.cpp, compiled once per machine by the system's C++ compiler and called through ctypes.

When a call first needs it, a few seconds of compiling for a dtype, a kind of neuron, its reset and its surrogate serve
every size, window and other option, and are kept in the user's cache folder (``SPIKETRITON_CACHE``, else
``$XDG_CACHE_HOME/spiketriton`` or ``~/.cache/spiketriton``). ``python -m spiketriton_kernels`` compiles whole kinds
ahead, which serve in their place. Without a compiler the caller falls back to eager PyTorch, and the log says so once.
"""

from __future__ import annotations

import contextlib
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
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .. import neuron as records
from ..cache import cache_folder
from ..kinds import Form, forms, header_of
from ..layout import axis_of
from ..neuron import PARAMETERS, Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..steps.step import named, written
from ..surrogate import SHAPES
from . import call
from .call import BACK, FORTH, INPUT, NEURON

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("spiketriton_kernels")

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_BY_HAND = ("lif", "delayed")
"""In the order of neurons.h; "delayed" is LIF with a delayed reset. "lif 1 1" is one with one reset and one surrogate
alone, by their numbers there."""
KINDS = (*records.KINDS, "delayed")
"""Whole kinds. Of those that are printed, ``kinds.Form`` is what is compiled apart; of steps of one's own, each."""
ANY = "lif 1 1"
_RESETS = {"soft": 0, "delayed_soft": 0, "hard": 1, "delayed_hard": 1, "none": 3}
_TO_RESET_LEAK = 2
_SHAPES = {shape: number for number, shape in enumerate(SHAPES)}
_ATAN = _SHAPES["atan"]
"""Stands for a surrogate of one's own, which runs elsewhere."""
_FORWARD, _BACKWARD, _STATISTICS, _PACK, _UNPACK = range(5)
_SOURCE = Path(__file__).with_name("cpp") / "native.cpp"
_SOURCES = (_SOURCE, *sorted(_SOURCE.parent.glob("*.h")))
_PACKAGE = Path(__file__).parents[1]
_PRINTING = (
    *map(_PACKAGE.joinpath, ("kinds.py", "definition.py")),
    *sorted((_PACKAGE / "steps").glob("*.py")),
)
_FLAGS = (
    "-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC",
)  # fmt: skip
# Tried in turn: the machine's own vector units and threads, then less.
_EXTRAS = (
    ("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), (),
)  # fmt: skip

_NO_NEURON, _NOTHING_BACK = bytes(NEURON.size), bytes(BACK.size)
_NOT_RUNNING: tuple[None, None, float] = (None, None, 0.0)
_FIELDS = Neuron._fields.index("mean")
"""How many of a neuron's fields are its own, before those of its norm."""


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


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(compiler: str) -> str:
    asked = [compiler, "--version"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def _build(dtype: torch.dtype, kind: str) -> Path:
    """The library of a dtype and kind; of a whole kind instead of a part of it, where there is one."""
    compiler = _compiler()
    version = _version(compiler)
    whole, *only = kind.split(" ")
    if only and (WHOLE or _target(dtype, whole, version).exists()):
        kind = whole
    target = _target(dtype, kind, version)
    chosen = [*_chosen(kind), *_in_haste()]
    return target if target.exists() else _compiled(target, compiler, dtype, kind, chosen)


def _chosen(kind: str) -> list[str]:
    """What native.cpp is told of a kind."""
    whole, *only = kind.split(" ")
    asked = [f'-DSPIKETRITON_CALL="{written("call", call.HEADER, "h")}"']
    if whole in _BY_HAND:
        told = zip(("KIND", "RESET", "SHAPE"), (_BY_HAND.index(whole), *only), strict=False)
        return asked + [f"-DSPIKETRITON_{name}={number}" for name, number in told]
    if whole not in KINDS:
        name, text = kind, named(kind).cpp
    else:
        name, text = whole, header_of([Form.named(kind)] if only else forms(whole))
    step = f'-DSPIKETRITON_STEP="{written(name, text, "h")}"'
    return [*asked, f"-DSPIKETRITON_KIND={len(_BY_HAND)}", step]


def _in_haste() -> list[str]:
    """Flags of what tests compile, in half the time."""
    return ["-Og"] if WHOLE else []


def _target(dtype: torch.dtype, kind: str, version: str) -> Path:
    """Where a library lies, by all that it is made of."""
    printing = () if kind.split(" ")[0] in _BY_HAND else _PRINTING
    texts = (source.read_text("utf-8") for source in (*_SOURCES, *printing))
    key = "\n".join(
        [
            *texts,
            call.HEADER,
            version,
            _machine(),
            repr((_FLAGS, _EXTRAS, _in_haste(), dtype, kind, torch.__version__)),
        ]
    )
    name = f"{kind} {_word(dtype)}".replace(" ", "-")
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
    folder, name = target.parent, f"{kind.split(' ')[0]} {_word(dtype)}"
    if " " in kind:  # what can be had ahead
        said = (
            "compiling the CPU kernels for %s, once on this machine: a few seconds of a processor"
        )
        log.warning(said + " (all ahead: python -m spiketriton_kernels)", name)
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

_building: dict[tuple[torch.dtype, str], threading.Lock] = defaultdict(threading.Lock)
_loaded: dict[tuple[torch.dtype, str | None], Library] = {}
"""By dtype and kind; without a kind one of them."""


class Library(ctypes.CDLL):
    """``whole``: whether it has all of a kind."""

    whole = False


@functools.cache
def load(dtype: torch.dtype, kind: str) -> Library | CompilerError:
    """The compiled kernels of a dtype and a kind, or why there are none."""
    try:
        with _building[dtype, kind]:  # threads that come at once wait for one build
            path = _build(dtype, kind)
        # torch's own OpenMP runtime is already loaded globally, so the library joins its thread pool.
        loaded = Library(str(path))
    except CompilerError as error:
        return error
    except OSError as error:
        return CompilerError(
            f"the compiled CPU kernels do not load: {error}; a folder that is mounted noexec holds no code: accepted: "
            f"another one than {path.parent}, by SPIKETRITON_CACHE"
        )
    loaded.whole = path.name.startswith(f"{kind.split(' ')[0]}-{_word(dtype)}-")
    loaded.spiketriton_run.argtypes = [ctypes.c_void_p, ctypes.c_int]
    loaded.spiketriton_run.restype = None
    loaded.spiketriton_call_digest.restype = ctypes.c_int64
    told = loaded.spiketriton_call_digest(), loaded.spiketriton_call_size()
    if told != (call.DIGEST, sum(part.size for part in call.PARTS)):
        raise AssertionError(f"{path.name} and {call.__name__} disagree on the fields of a call")
    _loaded[dtype, kind] = _loaded[dtype, None] = loaded
    return loaded


def library(dtype: torch.dtype, kind: str | None = None) -> Library:
    """The compiled kernels of a dtype and a kind, None: any of them.

    Raises CompilerError with the reason when there are none.
    """
    found = _loaded.get((dtype, kind)) or load(dtype, kind or ANY)
    if isinstance(found, CompilerError):
        raise found
    return found


def failure(dtype: torch.dtype, kind: str | None = None) -> CompilerError | None:
    """Why ``library`` has none; None where it has."""
    if (dtype, kind) in _loaded:
        return None
    found = load(dtype, kind or ANY)
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


def kind_of(neuron: Neuron) -> str:
    """What is compiled for it."""
    if neuron.kind in _BY_HAND:
        return _by_hand(neuron.reset, neuron.leaks_to_reset, neuron.shape)
    learns = () if neuron.is_plain else tuple(neuron.given())
    return _printed(neuron.kind, neuron.reset, neuron.detach_reset, neuron.shape, learns)


@functools.cache
def _by_hand(reset: str, leaks_to_reset: bool, shape: str) -> str:
    kind = "delayed" if reset.startswith("delayed") else "lif"
    number = _TO_RESET_LEAK if leaks_to_reset else _RESETS[reset]
    return f"{kind} {number} {_SHAPES.get(shape, _ATAN)}"


@functools.cache
def _printed(kind: str, reset: str, detach: bool, shape: str, learns: tuple[str, ...]) -> str:
    if kind not in KINDS:
        return kind
    return Form.of(kind, reset, detach, shape if shape in _SHAPES else "atan", learns).name


def _called(neuron: Neuron, dtype: torch.dtype) -> tuple[Library, bytes]:
    """What serves a neuron, and its part of the call."""
    kind = kind_of(neuron)
    found = library(dtype, kind)
    if neuron.is_plain:
        return found, _remembered(neuron[:_FIELDS], kind, found.whole)
    return found, _packed(neuron, kind, found.whole)


def _packed(neuron: Neuron, kind: str, whole: bool) -> bytes:
    if neuron.by_hand:
        form = _TO_RESET_LEAK if neuron.leaks_to_reset else _RESETS[neuron.reset]
    else:
        form = _number(kind) if whole and neuron.own is None else 0
    given = neuron.parameters
    if neuron.constants is not None:
        given = neuron.constants, *_NO_PARAMETERS
    sizes, numbers, pointers = [], [], []
    for value in given:
        if isinstance(value, torch.Tensor):
            sizes.append(value.numel())
            numbers.append(0.0)
            pointers.append(value.data_ptr())
        else:
            sizes.append(1)
            numbers.append(value)
            pointers.append(0)
    return NEURON.pack(
        form, neuron.detach_reset, neuron.rows, neuron.parameter_size, *sizes, *numbers, neuron.height, neuron.levels,
        _SHAPES.get(neuron.shape, _ATAN), neuron.v_reset, neuron.v_start, *pointers,
    )  # fmt: skip


_NO_PARAMETERS = (0.0,) * (len(PARAMETERS) - 1)


@functools.lru_cache(maxsize=256)
def _remembered(fields: tuple[Any, ...], kind: str, whole: bool) -> bytes:
    return _packed(Neuron(*fields), kind, whole)


@functools.cache
def _number(kind: str) -> int:
    """A form's, in the library of its whole kind."""
    return Form.named(kind).whole


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """``saved`` stays as it is: a block of neurons replays its window from cache."""
    x = inputs.x
    spikes, v_last, m_last, trace, _, current = out
    served, constants = _called(neuron, x.dtype)
    running_mean, running_var, momentum = running or _NOT_RUNNING
    more = spikes, v_last, m_last, trace, current, running_mean, running_var
    places = _places(*neuron.norm, *inputs, *more)
    forth = FORTH.pack(neuron.eps, neuron.bn_scale, 0.0, momentum, *places)
    served.spiketriton_run(_input(x, measures) + constants + forth + _NOTHING_BACK, _FORWARD)


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
    served, constants = _called(neuron, x.dtype)
    read = _places(*neuron.norm, *inputs)
    forth = FORTH.pack(neuron.eps, neuron.bn_scale, count, 0.0, *read, 0, 0, 0, 0, 0, 0, 0)
    back = BACK.pack(*_places(*upstream, sums, *out))
    served.spiketriton_run(_input(x) + constants + forth + back, _BACKWARD)


def channel_statistics(
    y: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, running: Running | None
) -> None:
    """Fill mean and biased variance of each channel, [C] each; running statistics move towards them."""
    running_mean, running_var, momentum = running or _NOT_RUNNING
    names = "mean", "var", "x", "running_mean", "running_var"
    places = zip(names, _places(mean, var, y, running_mean, running_var), strict=True)
    _run_simple(_STATISTICS, y, FORTH.of(momentum=momentum, **dict(places)))


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
    library(x.dtype).spiketriton_run(_input(x) + _NO_NEURON + forth + _NOTHING_BACK, pass_)
