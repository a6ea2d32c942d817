"""How the neuron's kernels in Triton (triton_fire, triton_walk) are launched. Tiles: triton_tiles.

Bytes per element and step, e per element of the I/O dtype: fire 2e; walk back 3e, or 2e when it only sums; replaying
the states costs arithmetic, which is free here.
AHEAD: so many steps are read before the step at work stores. The numbers are those that keep most bytes under way in a
processor without a program fewer on it (studies/speed/log.md).
What was read last is read first, while a GPU's cache still has it: a pass behind another one (fire, dy) takes the tiles
from the last to the first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..arguments import PROBE_FIELDS
from ..neuron import NORM, Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..steps.printed import EXPONENTIAL
from ..steps.step import Step
from ..surrogate import own_surrogate
from .chunks import chunk_length
from .triton_fire import CHANNEL, FLOAT, SCALAR, About, fire_kernel
from .triton_launch import launch, repeat
from .triton_norm import Norm, channel_statistics, norm_backward
from .triton_tiles import (
    WALKS,
    Tiling,
    Window,
    grouped,
    join_groups,
    processors,
    tiling,
    vector_width,
)
from .triton_walk import Partial, Written, walk_kernel

AMD = torch.version.hip is not None  # a wave of 64 takes half as many elements a thread
SHARED = 40 * 1024  # bytes of a program's next tile: an RTX 4090 then runs two, an H100 five


class Walk(NamedTuple):
    """What ``backends`` gives a backward pass."""

    upstream: Upstream
    inputs: Inputs
    saved: torch.Tensor | None
    neuron: Neuron
    elements: float  # ``count``
    sums: torch.Tensor | None
    out: Gradients


def _walk_width(walk: Walk) -> int:
    """``vector_width`` of a walk back.

    Where it holds more than one value of a step of a chunk: 4 elements (8 bytes in half precision, still whole cache
    lines a warp) with batch norm, a learnt constant, or a step that is not light or keeps two values; more would take
    all registers or spill. 2 beyond 8 steps behind batch norm, where a step takes long and where it learns by channel
    or several constants, beyond 10 where a step keeps two values, and beyond 4 with a learnt width, whose slopes take
    much arithmetic: a tenth to a fifth more instructions, and 16 to 20 warps on a processor instead of 8 or 12
    (studies/speed/log.md).
    """
    x, neuron, out = walk.inputs.x, walk.neuron, walk.out
    widest, chunk = vector_width(x), chunk_length(x.shape[0], neuron.holds_more)
    learns = out.constants is not None
    if _is_light(neuron) and len(neuron.step.kept) == 1 and not learns and not neuron.has_norm:
        longest = 9 if "gaussian" in neuron.step.surrogates else 10  # it would spill 8 bytes at 10
        return widest if chunk <= longest or AMD else min(widest, 4)
    if x.shape[0] > 8 and neuron.step.operations & EXPONENTIAL:
        return 2
    if x.shape[0] > 4 and learns and neuron.step.learns_width:
        return 2
    if x.shape[0] > 8 and learns and max(neuron.channels, neuron.rows) > 1 and not AMD:
        return 2
    if chunk > 10 and len(neuron.step.kept) > 1 and not AMD:
        return 2
    only_sums = out.dx is None and out.dy is None
    if neuron.has_norm and chunk > (10 if only_sums else 8) and not AMD:
        return 2
    return min(widest, 4)


def _is_light(neuron: Neuron) -> bool:
    """Whether its step has one state, and neither an exponential or its like nor a division."""
    step = neuron.step
    return len(step.states) == 1 and not step.operations & {*EXPONENTIAL, "div"}


def _form(value: float | torch.Tensor) -> int:
    if isinstance(value, torch.Tensor):
        return SCALAR if value.numel() == 1 else CHANNEL
    return FLOAT


def constants_for(neuron: Neuron, back: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A neuron's constants as a kernel takes them, with the starts behind them, and what it is compiled for."""
    given: Any = (*neuron[:_OWN], back)
    return (_remembered if neuron.is_plain else _of_record)(*given)


def _apart(neuron: Neuron) -> tuple[Sequence[Any], Sequence[Any]]:
    """What launches depend on: constants, and tensors, whose number of values is a constant."""
    own = own_surrogate(neuron.step.own_surrogate)
    functions = None if own is None else (own.slope.fn, own.primitive.fn)  # type: ignore[attr-defined]
    constants = neuron.step, neuron.starts, functions, neuron.eps, neuron.bn_scale
    if neuron.is_plain:
        return (*constants, *neuron.constants), neuron.norm
    sizes = [(c.numel(),) if isinstance(c, torch.Tensor) else c for c in neuron.constants]
    return (*constants, *sizes), (*neuron.norm, *neuron.given().values())


_OWN = Neuron._fields.index(NORM[0])


def _of_record(
    step: Step, constants: tuple[Any, ...], starts: tuple[float, ...], plain: bool, back: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    neuron = Neuron(step, constants, starts, plain)
    given: list[Any] = [c if isinstance(c, torch.Tensor) else float(c) for c in constants]
    given += [
        start or None for start in starts
    ]  # a 0 that is compiled in takes ALIF's walk 12 registers less
    forms = tuple(map(_form, constants))
    wild = bool(step.operations & _WILD)
    about = About(len(step.states), len(forms), forms, neuron.rows, neuron.channels > 1, wild)
    forth, walk = step.functions
    compiled = dict(ABOUT=about, FORTH=forth) | (dict(BACK=walk) if back else {})
    return (*given, None), compiled


_WILD = {"div", "exp", "exp of softplus", "expm1", "log", "log1p", "sqrt"}
"""Operations whose slopes may be infinite."""

_remembered = functools.lru_cache(maxsize=256)(_of_record)
"""Of a record without tensors, as most have."""


def forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    """Fill what ``out`` holds tensors for."""
    constants, learnt = _apart(neuron)
    *moved, momentum = (None, None, None) if running is None else running
    repeat(
        _forward, (inputs, neuron, out, measures, running), (*constants, measures, momentum),
        (*inputs, *out, *moved, *learnt),
    )  # fmt: skip


def _forward(
    inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None
) -> None:
    x, T = inputs.x, inputs.x.shape[0]
    if measures:
        mean, var, *_ = neuron.norm
        channel_statistics(x, mean, var, running)
    tiles = tiling(x, neuron.per_channel, vector_width(x))
    given, compiled = constants_for(neuron, back=False)
    window = Window(T, chunk_length(T, neuron.holds_more), 2 if neuron.has_norm else 1)
    launch(
        fire_kernel, (tiles.row_tiles * tiles.lanes,), x, inputs, Norm.of(neuron), out, given,
        WINDOW=window, **tiles.geometry, **compiled,
    )  # fmt: skip


def backward(*given: Any) -> None:
    """Fill what ``out`` of a ``Walk`` holds tensors for."""
    walk = Walk(*given)
    constants, learnt = _apart(walk.neuron)
    repeat(
        _backward, walk, (*constants, walk.elements),
        (*walk.inputs, *walk.upstream, walk.saved, walk.sums, *walk.out, *learnt),
    )  # fmt: skip


def _backward(*given: Any) -> None:
    walk = Walk(*given)
    out, count = walk.out, walk.elements
    if out.dy is None or count == 0 or walk.sums is not None:
        return _walk_back(walk)
    _walk_back(walk._replace(out=out._replace(dy=None)))
    if out.dx is None:  # replaying once more reads less than storing and reading dL/dx
        return _walk_back(walk._replace(sums=out.sums, out=Gradients(dy=out.dy)))
    norm_backward(out.dx, walk.inputs.x, walk.neuron, out.sums, count, out.dy)


def _plan(walk: Walk, tiles: Tiling) -> tuple[Window, int | None]:
    """How a walk reads its window, and the most registers of a thread."""
    x, neuron, upstream = walk.inputs.x, walk.neuron, walk.upstream
    T, chunk = x.shape[0], chunk_length(x.shape[0], neuron.holds_more)
    # Left alone, ptxas holds a long replay to 168 registers, for a third program on a processor, and spills for it.
    most = 255 if walk.out.dy is not None and chunk < T and not AMD else None
    # A gradient of the current is read ahead too: four steps of both would spill in a long chunk. So would two steps of
    # a neuron alone in float32, or where the slope takes most registers.
    ahead = 4 if neuron.has_norm and (upstream.current is None or chunk <= 10) else 2
    if most is not None:  # four of a ragged window's last chunk would spill
        ahead = min(ahead, 3)
    costly = x.element_size() == 4 or "triangle" in neuron.step.surrogates
    if not neuron.has_norm and costly and chunk > 12:
        ahead = 1
    # A replay stores nothing, so that its loads need no queue; but ptxas moves none over exponentials and few over
    # divisions.
    replay_ahead = chunk if neuron.step.operations & {*EXPONENTIAL, "div"} else 0
    # A program walks many tiles: meanwhile the next one is copied into shared memory, where it fits.
    read = sum([tensor is not None for tensor in (x, walk.inputs.residual, *upstream)])
    copied = read * T * tiles.block_r * tiles.block_l * x.element_size()
    stages = 1
    # With a probe, one step in ten, it would double the time that the longest kernel takes to compile.
    loops = walk.out.probe is None and (neuron.has_norm or tiles.row_tiles > 1)
    if loops and _is_light(neuron) and chunk == T and copied <= SHARED and not AMD:
        stages, ahead = 2, 1
    return Window(T, chunk, ahead, replay_ahead, stages), most


def _walk_back(walk: Walk) -> None:
    """One launch, and one small sum for each kind of partial."""
    x, neuron, out = walk.inputs.x, walk.neuron, walk.out
    T, rows = x.shape[0], neuron.rows
    tiles = tiling(x, neuron.per_channel, _walk_width(walk), walks=_is_light(neuron) and not AMD)
    # A norm's constants, and sums, are worth fetching and leaving once for many tiles. At T <= 4 up to 9 programs run
    # at once on a processor, beyond that 3 to 6: these are nearly whole waves.
    programs = tiles.programs((2 * WALKS if T <= 4 else WALKS) * processors(x.device))
    launched, every_tile = programs * tiles.lanes, tiles.row_tiles * tiles.lanes
    one = neuron.channels == 1  # a program leaves one sum of each, or one per channel
    partial = Partial(
        None if out.sums is None else tiles.partial(x, 2, programs),
        None if out.constants is None
        else grouped(x, launched, rows) if one else tiles.partial(x, rows, programs),
        None if out.step_gain is None else grouped(x, every_tile, T),
        None if out.probe is None else grouped(x, every_tile, T * len(PROBE_FIELDS)),
    )  # fmt: skip
    window, most = _plan(walk, tiles)
    given, compiled = constants_for(neuron, back=True)
    own = own_surrogate(neuron.step.own_surrogate)
    launch(
        walk_kernel, (launched,), x,
        walk.upstream, walk.inputs, walk.saved, Norm.of(neuron), walk.sums,
        Written(out.dx, out.dy, out.states), partial,
        given, float(walk.elements), programs=programs, **tiles.geometry, **compiled,
        WINDOW=window, OWN_SLOPE=None if own is None else own.slope, OWN_AREA=None if own is None else own.primitive,
        maxnreg=most,
    )  # fmt: skip
    if partial.sums is not None and out.sums is not None:
        tiles.join(partial.sums, out.sums)
    if partial.constants is not None and out.constants is not None:
        if one:
            join_groups(partial.constants, out.constants, launched)
        else:
            tiles.join(partial.constants, out.constants)
    if partial.step_gain is not None and out.step_gain is not None:
        join_groups(partial.step_gain, out.step_gain, every_tile)
    if partial.probe is not None and out.probe is not None:
        largest = PROBE_FIELDS.index("grad_input_max")
        join_groups(partial.probe, out.probe, every_tile, len(PROBE_FIELDS), largest)
