"""The second operator: neurons beyond LIF, and LIF with what its own kernels leave out.

That is a trace of the membrane, a gain that is a tensor, a delayed reset, or a surrogate of the user's own.
"""

from __future__ import annotations

import torch

from .backends import eager_states, triton_states
from .backends.choice import backend_for
from .layout import CHUNK, chunk_length, dense, like, step_like
from .neuron import membrane_dtype
from .operators import _no_double_backward
from .state_neuron import StateNeuron, States
from .surrogate import own_surrogate

_BACKENDS = {"triton": triton_states, "native": eager_states, "torch": eager_states}


def _backend(x: torch.Tensor, words: str) -> str:
    """The backend that serves x; a surrogate of one's own has the one that it is written for."""
    backend = backend_for(x)
    own = own_surrogate(words.split(" ")[2])
    if own is None:
        return backend
    if own.compiled and backend != "triton":
        raise RuntimeError(
            f"surrogate {own.name!r} is written in Triton; accepted: CUDA tensors (or TRITON_INTERPRET=1), got "
            f"{x.device}"
        )
    return "triton" if own.compiled else "torch"


def _checkpoints(x: torch.Tensor, words: str) -> int:
    """States that the forward must save for x, of each kind: one between each two chunks, in Triton only."""
    if x.shape[0] <= CHUNK or _backend(x, words) != "triton":
        return 0
    return -(-x.shape[0] // chunk_length(x.shape[0], True)) - 1


@torch.library.custom_op("spiketriton::states_forward", mutates_args=())
def states_forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    decay: torch.Tensor | None,
    threshold: torch.Tensor | None,
    rho: torch.Tensor | None,
    beta: torch.Tensor | None,
    gain: torch.Tensor | None,
    words: str,
    floats: list[float],
    last: bool,
    traced: bool,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(spikes, last v and m or empty, v of every step or empty, states between chunks or empty)."""
    spikes, v_last, m_last, trace, saved = _allocate(x, words, last, traced, save)
    neuron = StateNeuron.of(x, (decay, threshold, rho, beta, gain), words, floats)
    if x.numel() == 0:
        return spikes, v_last.fill_(neuron.v_start), m_last.zero_(), trace, saved
    wide = membrane_dtype(x.dtype)
    states = [None if s is None else step_like(s.to(wide), x) for s in (v_init, m_init)]
    ends = (v_last, m_last) if last else (None, None)
    _BACKENDS[_backend(x, words)].forward(
        x, *states, neuron, spikes, *ends, trace if traced else None, saved
    )
    return spikes, v_last, m_last, trace, saved


def _allocate(
    x: torch.Tensor, words: str, last: bool, traced: bool, save: bool
) -> tuple[torch.Tensor, ...]:
    wide = membrane_dtype(x.dtype)
    ends = [
        torch.empty_like(x[0], dtype=wide) if last else x.new_empty(0, dtype=wide) for _ in "vm"
    ]
    trace = torch.empty_like(x, dtype=wide) if traced else x.new_empty(0, dtype=wide)
    rows = _checkpoints(x, words) if save else 0
    return torch.empty_like(x), *ends, trace, x.new_empty((rows, 2, x[0].numel()), dtype=wide)


@states_forward.register_fake
def _(x, v_init, m_init, decay, threshold, rho, beta, gain, words, floats, last, traced, save):
    return _allocate(x, words, last, traced, save)


@torch.library.custom_op("spiketriton::states_backward", mutates_args=())
def states_backward(
    grad_s: torch.Tensor,
    grad_v: torch.Tensor | None,
    grad_m: torch.Tensor | None,
    grad_trace: torch.Tensor | None,
    x: torch.Tensor,
    saved: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    decay: torch.Tensor | None,
    threshold: torch.Tensor | None,
    rho: torch.Tensor | None,
    beta: torch.Tensor | None,
    gain: torch.Tensor | None,
    words: str,
    floats: list[float],
    initial: bool,
    learning: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dL/dx, and where asked for dL/dv_init, dL/dm_init and those of the parameters, [5, C or 1]; else empty."""
    neuron = StateNeuron.of(x, (decay, threshold, rho, beta, gain), words, floats)
    dx, dv, dm, parameters = _allocate_backward(x, neuron, initial, learning)
    if x.numel() == 0:
        return dx, dv, dm, parameters.zero_()
    wide = membrane_dtype(x.dtype)
    ends = [None if g is None else step_like(g.to(wide), x) for g in (grad_v, grad_m)]
    states = [None if s is None else step_like(s.to(wide), x) for s in (v_init, m_init)]
    grad_s = like(grad_s.to(x.dtype), x)
    grad_trace = None if grad_trace is None else like(grad_trace.to(wide), x)
    # Without checkpoints the forward ran on another backend, or vmap hid that a gradient is wanted.
    missing = saved.shape[0] < _checkpoints(x, words)
    backend = eager_states if missing else _BACKENDS[_backend(x, words)]
    backend.backward(
        grad_s, *ends, grad_trace, x, saved, *states, neuron, dx,
        dv if initial else None, dm if initial else None, parameters if learning else None,
    )  # fmt: skip
    return dx, dv, dm, parameters


def _allocate_backward(x, neuron: StateNeuron, initial: bool, learning: bool):
    wide = membrane_dtype(x.dtype)
    ends = [
        torch.empty_like(x[0], dtype=wide) if initial else x.new_empty(0, dtype=wide) for _ in "vm"
    ]
    rows = neuron.parameter_size if learning else 0
    return torch.empty_like(x), *ends, x.new_empty((5, rows), dtype=wide)


@states_backward.register_fake
def _(
    grad_s, grad_v, grad_m, grad_trace, x, saved, v_init, m_init, decay, threshold, rho, beta, gain,
    words, floats, initial, learning,
):  # fmt: skip
    neuron = StateNeuron.of(x, (decay, threshold, rho, beta, gain), words, floats)
    return _allocate_backward(x, neuron, initial, learning)


states_backward.register_autograd(_no_double_backward)


_TENSORS = ("x", "v_init", "m_init", "decay", "threshold", "rho", "beta", "gain")


def _setup_context(ctx, inputs, output):
    tensors = inputs[: len(_TENSORS)]
    ctx.present = [t is not None for t in tensors]
    ctx.save_for_backward(output[4], *(t for t in tensors if t is not None))
    ctx.words, ctx.floats, ctx.last, ctx.traced, _ = inputs[len(_TENSORS) :]
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_s, grad_v, grad_m, grad_trace, _grad_saved):
    saved, *rest = ctx.saved_tensors
    given = iter(rest)
    named = {
        n: next(given) if here else None for n, here in zip(_TENSORS, ctx.present, strict=True)
    }
    needs = dict(zip(_TENSORS, ctx.needs_input_grad, strict=False))
    if not ctx.last:
        grad_v = grad_m = None
    if not ctx.traced:
        grad_trace = None
    grads: dict[str, torch.Tensor | None] = dict.fromkeys(_TENSORS)
    if any(g is not None for g in (grad_s, grad_v, grad_m, grad_trace)):
        x = named.pop("x")
        assert x is not None
        initial = needs["v_init"] or needs["m_init"]
        learning = any(needs[name] for name in _TENSORS[3:])
        dx, dv, dm, parameters = states_backward(
            torch.zeros_like(x) if grad_s is None else grad_s, grad_v, grad_m, grad_trace, x, saved, **named,
            words=ctx.words, floats=ctx.floats, initial=initial, learning=learning,
        )  # fmt: skip
        found = dict(zip(_TENSORS, (dx, dv, dm, *parameters), strict=True))
        for name, given_ in {"x": x, **named}.items():
            if given_ is not None and needs[name]:
                grad = found[name]
                if name in _TENSORS[3:]:
                    grad = grad.sum() if given_.dim() == 0 else grad
                grads[name] = grad.to(given_.dtype)
    return *grads.values(), None, None, None, None, None


states_forward.register_autograd(_backward, setup_context=_setup_context)


def fire_states(
    x: torch.Tensor,
    neuron: StateNeuron,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    *,
    last: bool = False,
    traced: bool = False,
) -> tuple[torch.Tensor, States, torch.Tensor]:
    """Run checked arguments through the operator: spikes, last states or empty ones, the membrane's trace or empty."""
    x = dense(x)
    tensors = [p if isinstance(p, torch.Tensor) else None for p in neuron.parameters]
    learning = (x, v_init, m_init, *tensors)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learning)
    spikes, v, m, trace, _ = states_forward(
        x, v_init, m_init, *tensors, neuron.words(), neuron.floats(), last, traced, save
    )
    return spikes, States(v, m), trace
