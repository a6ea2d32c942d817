"""Neurons whose own spikes of the step before come back by a matrix: a window in one operator, forward and backward.

The current of step t is ``x[t] + s[t-1] @ matrix.T``, summed in the membrane's dtype; the matrix is rounded to the
dtype of x, as autocast does it in a linear layer. Spikes are the last of the states, [states + 1, B, N]. A window keeps
its spikes, and of each step what its way back reads (``Step.kept``), in the membrane's dtype: no step is done again.

    backward, from the end:   ds[t] = upstream.spikes[t] + dx[t+1] @ matrix,   dx[t] by the step's way back
    after it, in one product: dmatrix = sum over t of dx[t].T @ s[t-1]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import PROBE_FIELDS, check_call, check_like
from ..backends import eager_recurrent, native_recurrent
from ..backends.choice import Later, say_once
from ..neuron import Call, Inputs, Neuron, Outputs, membrane_dtype, parsed
from ..steps.forms import named
from .fire import refuse_tangents, stack
from .passes import serving


class Window(NamedTuple):
    """What the way forth fills; None: not wanted."""

    spikes: Tensor  # [T, B, N], in the dtype of x
    states: Tensor | None  # [states + 1, B, N], after the last step
    trace: Tensor | None  # [T, B, N], the first state after each step
    kept: Tensor | None  # [kinds, T, B, N]: what the way back reads


class Upstream(NamedTuple):
    """The gradients by a ``Window``; None: 0."""

    spikes: Tensor
    states: Tensor | None
    trace: Tensor | None


class Found(NamedTuple):
    """What the way back fills; None: not wanted."""

    dx: Tensor  # [T, B, N]
    states: Tensor | None  # [states + 1, B, N], before the first step
    constants: Tensor | None  # [neuron.rows, N or 1]
    probe: Tensor | None  # [T, 8]


_TRITON = Later("triton_recurrent")
_BACKENDS = {"triton": _TRITON, "native": native_recurrent, "torch": eager_recurrent}
_CALL = "str words, float[] floats"
_READ = "Tensor weight, Tensor? states, Tensor? constants, Tensor? probe"


def recur(
    x: Tensor,
    weight: Tensor,
    neuron: Neuron,
    call: Call,
    states: Tensor | None = None,
    probe: Tensor | None = None,
) -> Outputs:
    """The window of currents x [T, B, N] and a matrix [N, N], from these states [states + 1, B, N] on.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    given = check_call(Inputs(x), neuron, None, probe)
    check_matrix(x, weight)
    given["weight"] = weight
    if states is not None:
        shape = torch.Size((len(neuron.step.states) + 1, *x.shape[1:]))
        check_like("states", states, x, shape, (membrane_dtype(x.dtype), x.dtype))
        given["states"] = states
    if not torch.compiler.is_compiling():
        refuse_tangents(given.values())
    needed = any([value.requires_grad for value in given.values()])
    hidden = torch._C._are_functorch_transforms_active()  # may hide that a gradient is wanted
    call = call._replace(save=torch.is_grad_enabled() and (needed or hidden))
    constants = stack(neuron).get("constants")
    spikes, after, trace, _ = recurrent_forward(
        x.contiguous(), weight, states, constants, probe, neuron.words(call), neuron.floats()
    )
    return Outputs(
        spikes, after if call.return_states else None, trace if call.return_trace else None
    )


def check_matrix(x: Tensor, weight: Tensor) -> None:
    """The matrix must fit x [T, B, N]."""
    if x.dim() != 3 or tuple(weight.shape) != (x.shape[2],) * 2:
        features = len(weight)
        raise ValueError(
            f"currents of shape {tuple(x.shape)} and a matrix of shape {tuple(weight.shape)}; accepted: "
            f"[T, B, {features}], time first, and ({features}, {features})"
        )
    if weight.device != x.device:
        raise ValueError(
            f"the matrix is on {weight.device}, the input is on {x.device}; accepted: the same device"
        )


def _read(x: Tensor, constants: Tensor | None, words: str, floats: list[float]) -> Neuron:
    return Neuron.of(x, {} if constants is None else {"constants": constants}, words, floats)


def _backend(x: Tensor, neuron: Neuron) -> Any:
    """The module that serves a call."""
    served = serving(x, neuron, native_recurrent)
    if served == "triton" and not _TRITON.fits(x):
        say_once(
            f"spiketriton: {x.shape[2]} recurrent neurons on {x.device.type} run in PyTorch's loop (up to "
            f"{_TRITON.MOST} in one kernel)"
        )
        served = "torch"
    return _BACKENDS[served]


def _filled(x: Tensor, found: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """An operator returns an empty tensor for what is not wanted."""
    return tuple([x.new_empty(0) if value is None else value for value in found])


def _window(x: Tensor, neuron: Neuron, call: Call) -> Window:
    wide, step = membrane_dtype(x.dtype), neuron.step
    return Window(
        torch.empty_like(x),
        _states(x, neuron) if call.return_states else None,
        torch.empty_like(x, dtype=wide) if call.return_trace else None,
        x.new_empty((len(step.kept), *x.shape), dtype=wide) if call.save else None,
    )


def _states(x: Tensor, neuron: Neuron) -> Tensor:
    size = (len(neuron.step.states) + 1, *x.shape[1:])
    return x.new_empty(size, dtype=membrane_dtype(x.dtype))


@torch.library.custom_op(
    "spiketriton::recurrent_forward",
    mutates_args=(),
    schema=f"(Tensor x, {_READ}, {_CALL}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def recurrent_forward(x, weight, states, constants, probe, words, floats):
    """A ``Window``, empty where not wanted. Only the way back reads the probe."""
    neuron, call = _read(x, constants, words, floats), parsed(words)[2]
    out, wide = _window(x, neuron, call), membrane_dtype(x.dtype)
    if x.numel() == 0:
        return _filled(x, out)
    first = None if states is None else states.to(wide).contiguous()
    _backend(x, neuron).forward(x, weight.to(x.dtype).contiguous(), first, neuron, out)
    return _filled(x, out)


@recurrent_forward.register_fake
def _(x, weight, states, constants, probe, words, floats):
    return _filled(x, _window(x, _read(x, constants, words, floats), parsed(words)[2]))


def _found(spikes: Tensor, neuron: Neuron, wanted: str) -> Found:
    wide, names = membrane_dtype(spikes.dtype), wanted.split()
    rows, steps = (neuron.rows, neuron.channels), (len(spikes), len(PROBE_FIELDS))
    return Found(
        torch.empty_like(spikes),
        _states(spikes, neuron) if "states" in names else None,
        spikes.new_empty(rows, dtype=wide) if "constants" in names else None,
        spikes.new_empty(steps, dtype=torch.float32) if "probe" in names else None,
    )


@torch.library.custom_op(
    "spiketriton::recurrent_backward",
    mutates_args=(),
    schema="(Tensor by_spikes, Tensor? by_states, Tensor? by_trace, Tensor kept, Tensor weight, "
    f"Tensor? constants, str wanted, {_CALL}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def recurrent_backward(
    by_spikes, by_states, by_trace, kept, weight, constants, wanted, words, floats
):
    """The walk back: ``Found``, empty where not ``wanted``."""
    neuron = _read(by_spikes, constants, words, floats)
    out, wide = _found(by_spikes, neuron, wanted), membrane_dtype(by_spikes.dtype)
    if by_spikes.numel() == 0:
        for sums in out[2:]:
            if sums is not None:
                sums.zero_()
        return _filled(by_spikes, out)
    more = [None if by is None else by.to(wide).contiguous() for by in (by_states, by_trace)]
    matrix = weight.to(by_spikes.dtype).contiguous()
    upstream = Upstream(by_spikes.contiguous(), *more)
    _backend(by_spikes, neuron).backward(upstream, kept, matrix, neuron, out)
    return _filled(by_spikes, out)


@recurrent_backward.register_fake
def _(by_spikes, by_states, by_trace, kept, weight, constants, wanted, words, floats):
    neuron = _read(by_spikes, constants, words, floats)
    return _filled(by_spikes, _found(by_spikes, neuron, wanted))


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "spiketriton's fused neurons have no double backward; use Recurrent.define for second derivatives"
    )


recurrent_backward.register_autograd(_no_double_backward)


def _setup_context(ctx, inputs, output):
    _, weight, states, constants, _, ctx.words, ctx.floats = inputs
    spikes, _, _, kept = output
    ctx.save_for_backward(spikes, kept, weight, states, constants)
    ctx.set_materialize_grads(False)


def _backward(ctx, by_spikes, by_states, by_trace, _by_kept):
    spikes, kept, weight, states, constants = ctx.saved_tensors
    call, (by_x, by_weight, *more) = parsed(ctx.words)[2], ctx.needs_input_grad[:5]
    upstream = (
        torch.zeros_like(spikes) if by_spikes is None else by_spikes,
        by_states if call.return_states else None,
        by_trace if call.return_trace else None,
    )
    names = ("states", "constants", "probe")
    wanted = " ".join([name for name, asked in zip(names, more, strict=True) if asked])
    dx, *found = recurrent_backward(
        *upstream, kept, weight, constants, wanted, ctx.words, ctx.floats
    )
    first, learnt, rows = [by if asked else None for by, asked in zip(found, more, strict=True)]
    if first is not None:
        first = first.to(states.dtype)
    if learnt is not None:
        learnt = _of_tensors(learnt, constants, ctx.words)
    matrix = _by_matrix(dx, spikes, states).to(weight.dtype) if by_weight else None
    return dx if by_x else None, matrix, first, learnt, rows, None, None


def _by_matrix(dx: Tensor, spikes: Tensor, states: Tensor | None) -> Tensor:
    """sum over t of dx[t].T @ s[t-1]."""
    found = dx[1:].flatten(0, 1).t() @ spikes[:-1].flatten(0, 1)
    return found if states is None else found + dx[0].t() @ states[-1].to(dx.dtype)


def _of_tensors(found: Tensor, constants: Tensor, words: str) -> Tensor:
    """The gradients by all constants that are tensors, of which the step learns some."""
    name, tensors, _ = parsed(words)
    rows = [row for row, given in zip(named(name).rows, tensors, strict=True) if given]
    none = torch.zeros_like(constants[0])
    by = [found[row] if row >= 0 else none for row in rows]
    return torch.stack(by).to(constants.dtype)


recurrent_forward.register_autograd(_backward, setup_context=_setup_context)
