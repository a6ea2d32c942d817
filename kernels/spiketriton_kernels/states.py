"""Neurons that are not LIF, over the whole time window: I-LIF, CLIF and ALIF, and their definitions in plain PyTorch.

All charge like LIF, h[t] = decay * v[t-1] + gain * x[t] with v[-1] = 0, and have a second state m or other spikes:

    I-LIF  s[t] = round(clamp(h[t] / threshold, 0, D))          v[t] = h[t] - threshold * s[t]

    CLIF   s[t] = 1 if h[t] >= threshold else 0
           m[t] = m[t-1] * sigmoid((1 - decay) * h[t]) + s[t]   v[t] = h[t] - s[t] * (threshold + sigmoid(m[t]))

    ALIF   level[t] = threshold + beta * m[t-1]                 s[t] = 1 if h[t] >= level[t] else 0
           m[t] = rho * m[t-1] + (1 - rho) * s[t]               soft: v[t] = h[t] - level[t] * s[t]
                                                                hard: v[t] = 0 if s[t] else h[t]

I-LIF: Luo et al. 2024, arXiv 2407.20708. CLIF: Huang et al. 2024, arXiv 2402.04663. ALIF: Bellec et al. 2018,
arXiv 1803.09574. Backward is exact back-propagation through time through both states. ds/dh is the surrogate of
h - threshold (of h - level); for I-LIF it is 1 / threshold where 0 <= h / threshold <= D, else 0. ``detach_reset``
leaves the spike out of the reset's gradient; through m it always flows.

One operator serves all of them, in Triton, compiled C++ and eager PyTorch, and moves what LIF moves: 5 elements of x's
dtype per element and step in training, 2 at inference.
"""

from __future__ import annotations

import torch

from .arguments import along_channels, check_float, check_like, check_neuron
from .backends import eager_states, native_states, triton_states
from .backends.choice import backend_for
from .layout import CHUNK, chunk_length, dense, like, step_like
from .lif import DEFAULT_SURROGATE, _WithGradientOf
from .neuron import membrane_dtype
from .operators import _no_double_backward
from .state_neuron import MAX_LEVELS, StateNeuron, States
from .surrogate import Surrogate, unit_primitive

# ---- definitions


def _definition(
    x: torch.Tensor,
    neuron: StateNeuron,
    v: torch.Tensor | None,
    m: torch.Tensor | None,
    smooth: bool = False,
) -> tuple[torch.Tensor, States]:
    """Spikes and last states, by plain PyTorch and its autograd."""
    wide = membrane_dtype(x.dtype)
    decay, threshold, rho, beta = (along_channels(p, x, wide) for p in neuron.parameters)
    v = torch.zeros_like(x[0], dtype=wide) if v is None else v.to(wide)
    m = torch.zeros_like(x[0], dtype=wide) if m is None else m.to(wide)
    spikes = []
    for x_t in x.to(wide).unbind(0):
        h = decay * v + neuron.gain * x_t
        level = threshold
        if neuron.kind == "integer":
            relaxed = (h / threshold).clamp(0, neuron.levels)
            fired = torch.round(relaxed)
        else:
            if neuron.kind == "adaptive":
                level = threshold + beta * m
            z = (h - level) / neuron.width
            relaxed = neuron.height * neuron.width * unit_primitive(neuron.shape, z)
            fired = h >= level
        s = relaxed if smooth else _WithGradientOf.apply(fired, relaxed)
        s_reset = s.detach() if neuron.detach_reset else s
        if neuron.kind == "complementary":
            m = m * torch.sigmoid((1 - decay) * h) + s
            v = h - s_reset * (threshold + torch.sigmoid(m))
        else:
            if neuron.reset == "soft":
                v = h - level * s_reset
            elif neuron.reset == "hard":
                v = (1 - s_reset) * h
            else:
                v = h
            if neuron.kind == "adaptive":
                m = rho * m + (1 - rho) * s
        spikes.append(s)
    return torch.stack(spikes).to(x.dtype), States(v, m)


# ---- the operator

_BACKENDS = {"triton": triton_states, "native": native_states, "torch": eager_states}


def _checkpoints(x: torch.Tensor) -> int:
    """States that the forward must save for x, of each kind: one between each two chunks, in Triton only."""
    if x.shape[0] <= CHUNK or backend_for(x) != "triton":
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
    words: str,
    floats: list[float],
    last: bool,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(spikes, last v and m or empty, states between chunks or empty)."""
    spikes, v_last, m_last, saved = _allocate(x, last, save)
    if x.numel() == 0:
        return spikes, v_last, m_last, saved
    neuron = StateNeuron.of(x, (decay, threshold, rho, beta), words, floats)
    wide = membrane_dtype(x.dtype)
    states = [None if s is None else step_like(s.to(wide), x) for s in (v_init, m_init)]
    ends = (v_last, m_last) if last else (None, None)
    _BACKENDS[backend_for(x)].forward(x, *states, neuron, spikes, *ends, saved)
    return spikes, v_last, m_last, saved


def _allocate(x: torch.Tensor, last: bool, save: bool) -> tuple[torch.Tensor, ...]:
    wide = membrane_dtype(x.dtype)
    ends = [
        torch.empty_like(x[0], dtype=wide) if last else x.new_empty(0, dtype=wide) for _ in "vm"
    ]
    rows = _checkpoints(x) if save else 0
    return torch.empty_like(x), *ends, x.new_empty((rows, 2, x[0].numel()), dtype=wide)


@states_forward.register_fake
def _(x, v_init, m_init, decay, threshold, rho, beta, words, floats, last, save):
    return _allocate(x, last, save)


@torch.library.custom_op("spiketriton::states_backward", mutates_args=())
def states_backward(
    grad_s: torch.Tensor,
    grad_v: torch.Tensor | None,
    grad_m: torch.Tensor | None,
    x: torch.Tensor,
    saved: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    decay: torch.Tensor | None,
    threshold: torch.Tensor | None,
    rho: torch.Tensor | None,
    beta: torch.Tensor | None,
    words: str,
    floats: list[float],
    initial: bool,
    learning: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dL/dx, and where asked for dL/dv_init, dL/dm_init and those of the parameters, [4, C or 1]; else empty."""
    neuron = StateNeuron.of(x, (decay, threshold, rho, beta), words, floats)
    dx, dv, dm, parameters = _allocate_backward(x, neuron, initial, learning)
    if x.numel() == 0:
        return dx, dv, dm, parameters.zero_()
    wide = membrane_dtype(x.dtype)
    ends = [None if g is None else step_like(g.to(wide), x) for g in (grad_v, grad_m)]
    states = [None if s is None else step_like(s.to(wide), x) for s in (v_init, m_init)]
    grad_s = like(grad_s.to(x.dtype), x)
    # Without checkpoints the forward ran on another backend, or vmap hid that a gradient is wanted.
    missing = saved.shape[0] < _checkpoints(x)
    backend = eager_states if missing else _BACKENDS[backend_for(x)]
    backend.backward(
        grad_s, *ends, x, saved, *states, neuron, dx,
        dv if initial else None, dm if initial else None, parameters if learning else None,
    )  # fmt: skip
    return dx, dv, dm, parameters


def _allocate_backward(x, neuron: StateNeuron, initial: bool, learning: bool):
    wide = membrane_dtype(x.dtype)
    ends = [
        torch.empty_like(x[0], dtype=wide) if initial else x.new_empty(0, dtype=wide) for _ in "vm"
    ]
    rows = neuron.parameter_size if learning else 0
    return torch.empty_like(x), *ends, x.new_empty((4, rows), dtype=wide)


@states_backward.register_fake
def _(
    grad_s, grad_v, grad_m, x, saved, v_init, m_init, decay, threshold, rho, beta, words, floats, initial, learning
):  # fmt: skip
    neuron = StateNeuron.of(x, (decay, threshold, rho, beta), words, floats)
    return _allocate_backward(x, neuron, initial, learning)


states_backward.register_autograd(_no_double_backward)


_TENSORS = ("x", "v_init", "m_init", "decay", "threshold", "rho", "beta")


def _setup_context(ctx, inputs, output):
    tensors = inputs[: len(_TENSORS)]
    ctx.present = [t is not None for t in tensors]
    ctx.save_for_backward(output[3], *(t for t in tensors if t is not None))
    ctx.words, ctx.floats, ctx.last, _ = inputs[len(_TENSORS) :]
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_s, grad_v, grad_m, _grad_saved):
    saved, *rest = ctx.saved_tensors
    given = iter(rest)
    named = {
        n: next(given) if here else None for n, here in zip(_TENSORS, ctx.present, strict=True)
    }
    needs = dict(zip(_TENSORS, ctx.needs_input_grad, strict=False))
    if not ctx.last:
        grad_v = grad_m = None
    grads: dict[str, torch.Tensor | None] = dict.fromkeys(_TENSORS)
    if grad_s is not None or grad_v is not None or grad_m is not None:
        x = named.pop("x")
        assert x is not None
        initial = needs["v_init"] or needs["m_init"]
        learning = any(needs[name] for name in _TENSORS[3:])
        dx, dv, dm, parameters = states_backward(
            torch.zeros_like(x) if grad_s is None else grad_s, grad_v, grad_m, x, saved, **named,
            words=ctx.words, floats=ctx.floats, initial=initial, learning=learning,
        )  # fmt: skip
        found = dict(zip(_TENSORS, (dx, dv, dm, *parameters), strict=True))
        for name, given_ in {"x": x, **named}.items():
            if given_ is not None and needs[name]:
                grad = found[name]
                if name in _TENSORS[3:]:
                    grad = grad.sum() if given_.dim() == 0 else grad
                grads[name] = grad.to(given_.dtype)
    return *grads.values(), None, None, None, None


states_forward.register_autograd(_backward, setup_context=_setup_context)


def _fire(
    x: torch.Tensor,
    neuron: StateNeuron,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    return_state: bool,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    x = dense(x)
    tensors = [p if isinstance(p, torch.Tensor) else None for p in neuron.parameters]
    learning = (x, v_init, m_init, *tensors)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learning)
    spikes, v, m, _ = states_forward(
        x, v_init, m_init, *tensors, neuron.words(), neuron.floats(), return_state, save
    )
    return (spikes, States(v, m)) if return_state else spikes


def _check(
    x: torch.Tensor,
    decay: float | torch.Tensor,
    gain: float,
    threshold: float | torch.Tensor,
    reset: str,
    detach_reset: bool,
    surrogate: Surrogate,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
) -> None:
    check_neuron(x, decay, gain, threshold, reset, 0.0, detach_reset, surrogate, v_init)
    if isinstance(surrogate.width, torch.Tensor):
        raise TypeError("surrogate width is a tensor; accepted here: a float")
    if m_init is not None:
        check_like("m_init", m_init, x, x.shape[1:], (membrane_dtype(x.dtype), x.dtype))


# ---- the public functions


def multistep_ilif(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.25,
    gain: float = 1.0,
    threshold: float | torch.Tensor = 1.0,
    levels: int = 4,
    detach_reset: bool = False,
    v_init: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    """Integer spikes 0..levels of I-LIF neurons over a whole time window.

    ``virtual_steps`` turns them into ``levels`` binary steps each, for spike-driven inference.

    Args:
        x: input currents [T, B, ...], float16, bfloat16, float32 or float64; time first.
        decay: membrane kept per step, a float or a tensor () or (C,) with C = dim 2 of x; tensors get gradients.
        gain: scale of the input current.
        threshold: membrane that one spike takes; a float or a tensor () or (C,), with gradient.
        levels: D, the most spikes of a step, 1 to 255.
        detach_reset: leave the reset out of the gradient.
        v_init: membrane before the first step, [B, ...]; gets a gradient.
        return_state: also return ``States`` after the last step (m is 0 here).

    Returns:
        Spikes in the shape, dtype and layout of x.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    neuron = _integer(x, decay, gain, threshold, levels, detach_reset, v_init)
    return _fire(x, neuron, v_init, None, return_state)


def multistep_ilif_reference(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.25,
    gain: float = 1.0,
    threshold: float | torch.Tensor = 1.0,
    levels: int = 4,
    detach_reset: bool = False,
    v_init: torch.Tensor | None = None,
    return_state: bool = False,
    *,
    smooth: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    """The definition of ``multistep_ilif``. ``smooth=True`` leaves out the rounding."""
    neuron = _integer(x, decay, gain, threshold, levels, detach_reset, v_init)
    spikes, last = _definition(x, neuron, v_init, None, smooth)
    return (spikes, last) if return_state else spikes


def _integer(x, decay, gain, threshold, levels, detach_reset, v_init) -> StateNeuron:
    _check(x, decay, gain, threshold, "soft", detach_reset, DEFAULT_SURROGATE, v_init, None)
    if not isinstance(levels, int) or isinstance(levels, bool) or not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels {levels!r}: accepted: an integer from 1 to {MAX_LEVELS}")
    return StateNeuron(
        kind="integer", decay=decay, gain=float(gain), threshold=threshold, levels=levels, detach_reset=detach_reset
    )  # fmt: skip


def virtual_steps(spikes: torch.Tensor, levels: int) -> torch.Tensor:
    """Integer spikes [T, B, ...] as binary ones, [T * levels, B, ...]: a step with n spikes becomes n ones, then zeros.

    A linear layer without bias gives the same sum over them, so that inference needs additions only.

    Raises:
        ValueError: spikes without a time dimension.
    """
    if spikes.dim() < 1:
        raise ValueError(f"spikes have shape {tuple(spikes.shape)}; accepted: [T, B, ...]")
    slots = torch.arange(levels, device=spikes.device).view(-1, *[1] * (spikes.dim() - 1))
    return (spikes.unsqueeze(1) > slots).to(spikes.dtype).flatten(0, 1)


def multistep_clif(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float = 1.0,
    threshold: float | torch.Tensor = 1.0,
    detach_reset: bool = False,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    """Spikes of CLIF neurons, whose complementary potential m makes the reset deeper the more they fired.

    Spikes follow the definition up to the rounding of the sigmoid.

    Args:
        x: input currents [T, B, ...]; time first.
        decay: membrane kept per step, 1 - 1 / tau; a float or a tensor () or (C,), with gradient (through m as well).
        gain, threshold, detach_reset: see ``multistep_ilif``.
        surrogate: stand-in for ds/dh, with a float as its width.
        v_init, m_init: states before the first step, [B, ...]; get gradients.
        return_state: also return ``States`` after the last step.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    neuron = _complementary(x, decay, gain, threshold, detach_reset, surrogate, v_init, m_init)
    return _fire(x, neuron, v_init, m_init, return_state)


def multistep_clif_reference(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float = 1.0,
    threshold: float | torch.Tensor = 1.0,
    detach_reset: bool = False,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    return_state: bool = False,
    *,
    smooth: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    """The definition of ``multistep_clif``; ``smooth=True`` replaces each spike by the surrogate's primitive."""
    neuron = _complementary(x, decay, gain, threshold, detach_reset, surrogate, v_init, m_init)
    spikes, last = _definition(x, neuron, v_init, m_init, smooth)
    return (spikes, last) if return_state else spikes


def _complementary(
    x, decay, gain, threshold, detach_reset, surrogate, v_init, m_init
) -> StateNeuron:
    _check(x, decay, gain, threshold, "soft", detach_reset, surrogate, v_init, m_init)
    return StateNeuron(
        kind="complementary", decay=decay, gain=float(gain), threshold=threshold, detach_reset=detach_reset,
        shape=surrogate.shape, height=surrogate.height, width=surrogate.width,
    )  # fmt: skip


def multistep_alif(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float = 1.0,
    threshold: float | torch.Tensor = 1.0,
    rho: float | torch.Tensor = 0.9,
    beta: float | torch.Tensor = 1.0,
    reset: str = "soft",
    detach_reset: bool = True,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    """Spikes of adaptive LIF neurons, whose threshold rises with each spike and decays in between.

    Args:
        x: input currents [T, B, ...]; time first.
        decay, threshold: see ``multistep_ilif``.
        rho: adaptation kept per step; a float or a tensor () or (C,), with gradient.
        beta: how far the threshold rises with the adaptation; a float or a tensor () or (C,), with gradient.
        gain: scale of the input current.
        reset: "soft" (subtract the threshold of the step), "hard" (to 0) or "none".
        detach_reset: leave the reset out of the gradient; that of the adaptation stays.
        surrogate: stand-in for ds/dh, with a float as its width.
        v_init, m_init: states before the first step, [B, ...]; get gradients.
        return_state: also return ``States`` after the last step.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    neuron = _adaptive(
        x, decay, gain, threshold, rho, beta, reset, detach_reset, surrogate, v_init, m_init
    )
    return _fire(x, neuron, v_init, m_init, return_state)


def multistep_alif_reference(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float = 1.0,
    threshold: float | torch.Tensor = 1.0,
    rho: float | torch.Tensor = 0.9,
    beta: float | torch.Tensor = 1.0,
    reset: str = "soft",
    detach_reset: bool = True,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    return_state: bool = False,
    *,
    smooth: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    """The definition of ``multistep_alif``; ``smooth=True`` replaces each spike by the surrogate's primitive."""
    neuron = _adaptive(
        x, decay, gain, threshold, rho, beta, reset, detach_reset, surrogate, v_init, m_init
    )
    spikes, last = _definition(x, neuron, v_init, m_init, smooth)
    return (spikes, last) if return_state else spikes


def _adaptive(
    x, decay, gain, threshold, rho, beta, reset, detach_reset, surrogate, v_init, m_init
) -> StateNeuron:
    _check(x, decay, gain, threshold, reset, detach_reset, surrogate, v_init, m_init)
    for name, value in (("rho", rho), ("beta", beta)):
        if isinstance(value, torch.Tensor):
            channels = x.shape[2] if x.dim() > 2 else None
            if not value.is_floating_point() or (value.dim() and value.shape != (channels,)):
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}; accepted: floating point, "
                    f"() or (C,) with C = dim 2 of the input = {channels}"
                )
        else:
            check_float(name, value)
    return StateNeuron(
        kind="adaptive", decay=decay, gain=float(gain), threshold=threshold, rho=rho, beta=beta, reset=reset,
        detach_reset=detach_reset, shape=surrogate.shape, height=surrogate.height, width=surrogate.width,
    )  # fmt: skip
