"""How the neuron's kernels in Triton (triton_fire, triton_walk) are launched. Steps: triton_step; tiles: triton_tiles.

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
from ..kinds import Printed, printed
from ..neuron import NORM, Gradients, Inputs, Neuron, Outputs, Running, Upstream
from ..steps.printed import EXPONENTIAL
from ..surrogate import own_surrogate
from .triton_fire import Own, fire_kernel
from .triton_launch import launch, repeat
from .triton_norm import Norm, channel_statistics, norm_backward
from .triton_step import Constants, Forms, Rules
from .triton_tiles import (
    WALKS,
    Tiling,
    Window,
    chunk_length,
    grouped,
    join_groups,
    processors,
    tiling,
    vector_width,
)
from .triton_walk import Learnt, Partial, Written, walk_kernel

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

    Where it holds more than h of a chunk: 4 elements (8 bytes in half precision, still whole cache lines a warp) with
    batch norm, a learnt parameter or a kind other than LIF; more would take all registers or spill. 2 beyond 8 steps
    behind batch norm, and where a step takes long, and beyond 4 with a learnt width, whose slopes take much arithmetic:
    a tenth to a fifth more instructions, and 16 to 20 warps on a processor instead of 8 or 12 (studies/speed/log.md).
    """
    x, neuron, out = walk.inputs.x, walk.neuron, walk.out
    widest, chunk = vector_width(x), chunk_length(x.shape[0], neuron.holds_more)
    learns = out.parameters is not None
    if neuron.by_hand and not learns and not neuron.has_norm:
        return widest if chunk <= 10 or AMD else min(widest, 4)
    if x.shape[0] > 8 and _takes(neuron):
        return 2
    if x.shape[0] > 4 and learns and isinstance(neuron.width, torch.Tensor):
        return 2
    only_sums = out.dx is None and out.dy is None
    if neuron.has_norm and chunk > (10 if only_sums else 8) and not AMD:
        return 2
    return min(widest, 4)


def _takes(neuron: Neuron, *operations: str) -> bool:
    """Whether its step has an exponential or its like, or one of these operations."""
    if neuron.by_hand:
        return False
    step = neuron.own or printed(neuron).step
    return step.takes({*EXPONENTIAL, *operations})


_FLOATS = Forms(*["float"] * len(Forms._fields))


def _own(neuron: Neuron, back: bool) -> dict[str, Any]:
    """What a kernel is told of a step of one's own."""
    if neuron.by_hand:
        return dict(own_ptr=None, OWN=None, FORTH=None) | (dict(BACK=None) if back else {})
    step, reads = printed(neuron) if neuron.own is None else Printed(neuron.own, ())
    places = tuple(map(Constants._fields.index, reads))
    forth, walk = step.functions
    own = Own(
        len(step.states), step.starts, len(step.constants), neuron.parameter_size > 1, step.learns,
        neuron.own is None, places,
    )  # fmt: skip
    given = dict(own_ptr=neuron.constants, OWN=own, FORTH=forth)
    return given | dict(BACK=walk) if back else given


def _form(value: float | torch.Tensor) -> str:
    if isinstance(value, torch.Tensor):
        return "scalar" if value.numel() == 1 else "channel"
    return "float"


def _compiled(neuron: Neuron, back: bool) -> tuple[Constants, dict[str, Any]]:
    """A neuron's constants as a kernel takes them, and what it is compiled for."""
    given = *neuron[:_OWN], neuron.eps, neuron.bn_scale, back
    return (_of_record if _learns(neuron) else _remembered)(*given)


def _apart(neuron: Neuron) -> tuple[Sequence[Any], Sequence[Any]]:
    """What launches depend on: constants, and tensors, whose number of values is a constant."""
    own = own_surrogate(neuron.shape)
    functions = None if own is None else (own.slope.fn, own.primitive.fn)  # type: ignore[attr-defined]
    constants = *neuron[:_OWN], functions, neuron.eps, neuron.bn_scale
    if not _learns(neuron):
        return constants, neuron.norm
    given = *neuron.parameters, neuron.constants
    learnt = [value for value in given if isinstance(value, torch.Tensor)]
    sizes = [(v.numel(),) if isinstance(v, torch.Tensor) else v for v in constants]
    return sizes, (*neuron.norm, *learnt)


def _learns(neuron: Neuron) -> bool:
    """Whether a constant is a tensor."""
    kinds = [*map(type, neuron.parameters), type(neuron.constants)]
    return torch.Tensor in kinds or torch.nn.Parameter in kinds


_OWN = Neuron._fields.index(NORM[0])


def _of_record(*given: Any) -> tuple[Constants, dict[str, Any]]:
    *fields, eps, bn_scale, back = given
    neuron = Neuron(*fields)
    if neuron.own is not None:
        few = dict.fromkeys(Constants._fields) | dict(eps=float(eps), bn_scale=float(bn_scale))
        own = Constants(**few)
        return own, dict(
            FORMS=_FLOATS, RULES=Rules("own", "none", False, True, "atan", neuron.states)
        )
    parameters = [p if isinstance(p, torch.Tensor) else float(p) for p in neuron.parameters]
    decay, threshold, width, gain, rho, beta = parameters
    constants = Constants(
        decay, _less(decay), gain, threshold, rho, _less(rho), beta, float(neuron.v_reset), float(neuron.v_start),
        float(neuron.height) if back else None, width if back else None, None, float(eps), float(bn_scale),
    )  # fmt: skip
    if not neuron.by_hand:
        reads = {*printed(neuron).reads, "eps", "bn_scale", *(("width",) if back else ())}
        constants = Constants(
            *[
                v if name in reads else None
                for name, v in zip(Constants._fields, constants, strict=True)
            ]
        )
    rules = Rules(
        neuron.kind, neuron.reset, neuron.leaks_to_reset, neuron.detach_reset, neuron.shape, neuron.states
    )  # fmt: skip
    return constants, dict(FORMS=Forms(*map(_form, parameters)), RULES=rules)


def _less(value: float | torch.Tensor) -> float | None:
    """1 - value, rounded once; of a tensor a kernel makes it."""
    return None if isinstance(value, torch.Tensor) else 1.0 - value


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
    given, compiled = _compiled(neuron, back=False)
    window = Window(T, chunk_length(T, neuron.holds_more), 2 if neuron.has_norm else 1)
    launch(
        fire_kernel, (tiles.row_tiles * tiles.lanes,), x, inputs, Norm(*neuron.norm), out, given,
        WINDOW=window, **tiles.geometry, **compiled, **_own(neuron, back=False),
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
    costly = x.element_size() == 4 or neuron.shape == "triangle"
    if not neuron.has_norm and costly and chunk > 12:
        ahead = 1
    # A replay stores nothing, so that its loads need no queue; but ptxas moves none over exponentials and few over
    # divisions.
    replay_ahead = chunk if _takes(neuron, "div") else 0
    # A program walks many tiles: meanwhile the next one is copied into shared memory, where it fits.
    read = sum([tensor is not None for tensor in (x, walk.inputs.residual, *upstream)])
    copied = read * T * tiles.block_r * tiles.block_l * x.element_size()
    stages = 1
    # With a probe, one step in ten, it would double the time that the longest kernel takes to compile.
    loops = walk.out.probe is None and (neuron.has_norm or tiles.row_tiles > 1)
    if loops and neuron.by_hand and chunk == T and copied <= SHARED and not AMD:
        stages, ahead = 2, 1
    return Window(T, chunk, ahead, replay_ahead, stages), most


def _walk_back(walk: Walk) -> None:
    """One launch, and one small sum for each kind of partial."""
    x, neuron, out = walk.inputs.x, walk.neuron, walk.out
    T, rows = x.shape[0], neuron.rows
    tiles = tiling(x, neuron.per_channel, _walk_width(walk), walks=neuron.by_hand and not AMD)
    # A norm's constants, and sums, are worth fetching and leaving once for many tiles. At T <= 4 up to 9 programs run
    # at once on a processor, beyond that 3 to 6: these are nearly whole waves.
    programs = tiles.programs((2 * WALKS if T <= 4 else WALKS) * processors(x.device))
    launched, every_tile = programs * tiles.lanes, tiles.row_tiles * tiles.lanes
    one = neuron.parameter_size == 1  # a program leaves one sum of each, or one per channel
    partial = Partial(
        None if out.sums is None else tiles.partial(x, 2, programs),
        None if out.parameters is None
        else grouped(x, launched, rows) if one else tiles.partial(x, rows, programs),
        None if out.step_gain is None else grouped(x, every_tile, T),
        None if out.probe is None else grouped(x, every_tile, T * len(PROBE_FIELDS)),
    )  # fmt: skip
    window, most = _plan(walk, tiles)
    given, compiled = _compiled(neuron, back=True)
    shape = own_surrogate(neuron.shape)
    launch(
        walk_kernel, (launched,), x,
        walk.upstream, walk.inputs, walk.saved, Norm(*neuron.norm), walk.sums,
        Written(out.dx, out.dy, out.v_init, out.m_init), partial,
        given, float(walk.elements), programs=programs, **tiles.geometry, **compiled,
        WINDOW=window, LEARNT=Learnt(rows, not one), **_own(neuron, back=True),
        OWN_SLOPE=None if shape is None else shape.slope, OWN_AREA=None if shape is None else shape.primitive,
        maxnreg=most,
    )  # fmt: skip
    if partial.sums is not None and out.sums is not None:
        tiles.join(partial.sums, out.sums)
    if partial.parameters is not None and out.parameters is not None:
        if one:
            join_groups(partial.parameters, out.parameters, launched)
        else:
            tiles.join(partial.parameters, out.parameters)
    if partial.step_gain is not None and out.step_gain is not None:
        join_groups(partial.step_gain, out.step_gain, every_tile)
    if partial.probe is not None and out.probe is not None:
        largest = PROBE_FIELDS.index("grad_input_max")
        join_groups(partial.probe, out.probe, every_tile, len(PROBE_FIELDS), largest)
