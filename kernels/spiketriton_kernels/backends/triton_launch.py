"""Kernels are launched here: straight from the compiled kernel where Triton would choose the same one again.

``JITFunction.run`` takes a processor 7 to 25 us a launch: it looks again at every argument, at options, environment
variables and globals. What is chosen stays Triton's business: its own binder says what a launch specialises on (dtypes,
alignment, divisibility, constants), and the first launch of each goes through ``JITFunction.run``. Where a whole pass
is asked for again, alike in all that this depends on, its launches are repeated with the new tensors (``repeat``).
TRITON_DEBUG and other variables of the compiler are heeded as they are at that first launch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextvars import Context, copy_context
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from ..triton_import import triton

WARPS = 4

_compiled: dict[Any, Any] = {}
"""Compiled kernels by what their launch specialises on."""

_known: dict[int, Any] = {}
"""Kernels that have run and are launched the short way, by their ids, because their hash is dear: not where they are
interpreted, or Triton is another. Held here, they live on, so that no other kernel gets an id of theirs."""

Told = Callable[[Any, tuple[int, ...], Sequence[Any], dict[str, Any]], bool]
"""Is given a launch's kernel, programs and arguments by place and by name."""

_told: Told | None = None
"""Who is told of every launch before it, and does it instead where the answer is True."""


@contextlib.contextmanager
def telling(told: Told) -> Iterator[None]:
    """Within the block every launch, in whatever thread, is told first; where the answer is True, it is not made."""
    global _told
    before, _told = _told, told
    try:
        yield
    finally:
        _told = before


@contextlib.contextmanager
def compiling(pool: Executor) -> Iterator[None]:
    """Within the block launches run nothing: their kernels are compiled in the pool, for which its end waits."""
    # backward passes run in threads of their own, which do not inherit the mode
    with triton.AsyncCompileMode(pool), telling(partial(_compile, copy_context(), set())):
        yield


def launch(
    kernel: Any, programs: tuple[int, ...], x: torch.Tensor, /, *args: Any, maxnreg: int | None = None,
    warps: int = WARPS, **named: Any,
) -> None:  # fmt: skip
    """Run so many programs of a kernel, each of so many warps, on the device of x.

    Multiply-adds are never contracted: forward and replay must round alike.
    """
    named["num_warps"] = warps
    named["enable_fp_fusion"] = False
    if maxnreg is not None:
        named["maxnreg"] = maxnreg
    with torch.cuda.device_of(x):
        if _told is not None and _told(kernel, programs, args, named):
            return
        if id(kernel) not in _known or _watched((kernel,)):
            ran = kernel[programs](*args, **named)
            if _is_known(kernel, ran):
                _known[id(kernel)] = kernel
            _note(None)
            return
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        given, chosen, _ = kernel.device_caches[device][_BINDER](*args, **named)
        key = (
            id(kernel),
            device,
            maxnreg,
            triton.knobs.compilation.instrumentation_mode,
            *chosen,
        )
        ran = _compiled.get(key)
        if ran is None:
            _compiled[key] = kernel[programs](*args, **named)
            _note(None)
            return
        grid, values = (*programs, 1, 1)[:3], tuple(given.values())
        _note((kernel, ran, grid, values))
        stream = driver.get_current_stream(device)
        ran.run(*grid, stream, ran.function, ran.packed_metadata, *_NO_HOOKS, *values)


def _compile(
    context: Context, asked: set[Any], kernel: Any, programs: Any, args: Any, named: dict[str, Any]
) -> bool:  # fmt: skip
    """Hand the kernel to the pool, unless it has been compiled or asked for."""
    device = triton.runtime.driver.active.get_current_device()
    _, chosen, _ = kernel.device_caches[device][_BINDER](*args, **named)
    key = id(kernel), device, named.get("maxnreg"), named["num_warps"], *chosen
    if key not in asked:
        asked.add(key)
        context.run(partial(kernel.run, *args, grid=programs, warmup=True, **named))
    return True


_BINDER = 4
"""Where ``JITFunction.device_caches`` has, for a device, the function that binds arguments."""

_NO_HOOKS = None, None, None
"""What a launch tells its hooks; the hooks before and after it."""

_HOOKS = "launch_enter_hook", "launch_exit_hook", "add_stages_inspection_hook"


def _watched(kernels: Sequence[Any]) -> bool:
    """Whether somebody asks to be told of launches, as profilers do."""
    for kernel in kernels:
        if kernel.pre_run_hooks:
            return True
    knobs = triton.knobs.runtime
    for name in _HOOKS:
        hook = getattr(knobs, name, None)
        if hook is not None and getattr(hook, "calls", hook):
            return True
    return False


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


class Plan(NamedTuple):
    """The launches of a pass, for any tensors alike."""

    kernels: tuple[Any, ...]
    scratch: tuple[tuple[int, ...], ...]
    constants: tuple[Any, ...]
    records: tuple[Callable[[Any], Any], ...]
    """Each makes, of everything there is, a record that a kernel is given."""
    launches: tuple[tuple[Any, ...], ...]


_plans: dict[Any, Plan] = {}
_met: set[Any] = set()
"""What has been asked for once: arguments that differ each time are not worth a plan."""

MOST_PLANS = 4096

_noted = threading.local()
"""The launches and the scratch of the pass at work in this thread, where they are noted: backward has its own."""


def scratch(x: torch.Tensor, *shape: int) -> torch.Tensor:
    """Room for what the programs of a launch leave to the next one, float32."""
    room = x.new_empty(shape, dtype=torch.float32)
    noted = getattr(_noted, "scratch", None)
    if noted is not None:
        noted.append(room)
    return room


def _note(launched: Any) -> None:
    noted = getattr(_noted, "launches", None)
    if noted is not None:
        noted.append(launched)


def repeat(
    work: Callable[..., None],
    arguments: Sequence[Any],
    constants: Sequence[Any],
    tensors: Sequence[torch.Tensor | None],
) -> None:
    """``work(*arguments)``, or at once what it launched when it was last called with what is alike.

    ``constants`` and ``tensors`` are all that the arguments hold, x first: the launches are those of x's device, dtype
    and memory order, of every constant, and of each tensor's alignment; the others agree with x, as ``backends`` says.
    All that ``work`` does is to launch, and all tensors of its launches are among these, or made by ``scratch``.
    """
    x = tensors[0]
    assert x is not None
    device = x.device
    alike = (
        work, x.shape, x.stride(), x.dtype, device, triton.knobs.compilation.instrumentation_mode, *constants,
        *[None if tensor is None else tensor.data_ptr() % 16 for tensor in tensors],
    )  # fmt: skip
    plan = _plans.get(alike)
    if plan is None or _told is not None or _watched(plan.kernels):
        return _noting(work, arguments, alike, tensors)
    with torch.cuda.device_of(x):
        stream = triton.runtime.driver.active.get_current_stream(device.index or 0)
        rooms = [torch.empty(shape, dtype=torch.float32, device=device) for shape in plan.scratch]
        there = [*tensors, *rooms, *plan.constants]
        for record in plan.records:
            there.append(record(there))
        for run, grid, function, metadata, taken in plan.launches:
            run(*grid, stream, function, metadata, *_NO_HOOKS, *taken(there))


def _noting(work: Callable[..., None], arguments: Any, alike: Any, given: Any) -> None:
    """Do the work; what it launches the second time is kept."""
    if alike not in _met:
        if len(_met) >= MOST_PLANS:
            _met.clear()
        _met.add(alike)
        return work(*arguments)
    _noted.launches, _noted.scratch = [], []
    try:
        work(*arguments)
        plan = _plan(given, _noted.scratch, _noted.launches)
    finally:
        _noted.launches = _noted.scratch = None
    if plan is not None:
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        _plans[alike] = plan


def _plan(given: Sequence[Any], rooms: Sequence[torch.Tensor], noted: Sequence[Any]) -> Plan | None:
    """None where a launch went through Triton's launcher, or it is not clear which tensor stands where."""
    there = [*given, *rooms]
    place = {id(value): i for i, value in enumerate(there) if isinstance(value, torch.Tensor)}
    if None in noted or len(place) < sum(isinstance(value, torch.Tensor) for value in there):
        return None
    records: list[list[int]] = []
    launches = []

    def placed(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return place[id(value)]
        there.append(value)
        return len(there) - 1

    try:
        for _, ran, grid, values in noted:
            where: list[int | tuple[int]] = []
            for value in values:
                if isinstance(value, tuple) and any(isinstance(v, torch.Tensor) for v in value):
                    where.append((len(records),))
                    records.append([placed(one) for one in value])
                else:
                    where.append(placed(value))
            launches.append((ran.run, grid, ran.function, ran.packed_metadata, where))
    except KeyError:
        return None
    end = len(there)  # where the records follow
    return Plan(
        tuple(kernel for kernel, *_ in noted),
        tuple(tuple(room.shape) for room in rooms),
        tuple(there[len(given) + len(rooms) :]),
        tuple(itemgetter(*where) for where in records),
        tuple(
            (*launch, itemgetter(*[end + i[0] if isinstance(i, tuple) else i for i in where]))
            for *launch, where in launches
        ),
    )
