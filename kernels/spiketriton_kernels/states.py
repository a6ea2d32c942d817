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
from .lif import DEFAULT_SURROGATE, _WithGradientOf
from .neuron import membrane_dtype
from .state_neuron import MAX_LEVELS, StateNeuron, States
from .state_operators import fire_states
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
    decay, threshold, rho, beta, gain = (along_channels(p, x, wide) for p in neuron.parameters)
    v = torch.zeros_like(x[0], dtype=wide) if v is None else v.to(wide)
    m = torch.zeros_like(x[0], dtype=wide) if m is None else m.to(wide)
    spikes = []
    for x_t in x.to(wide).unbind(0):
        h = decay * v + gain * x_t
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


def _fire(
    x: torch.Tensor,
    neuron: StateNeuron,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    return_state: bool,
) -> torch.Tensor | tuple[torch.Tensor, States]:
    spikes, last, _ = fire_states(x, neuron, v_init, m_init, last=return_state)
    return (spikes, last) if return_state else spikes


def _check(
    x: torch.Tensor,
    decay: float | torch.Tensor,
    gain: float | torch.Tensor,
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
    gain: float | torch.Tensor = 1.0,
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
        gain: scale of the input current, a float or a tensor () or (C,), with gradient.
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
    gain: float | torch.Tensor = 1.0,
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
        kind="integer", decay=decay, gain=gain, threshold=threshold, levels=levels, detach_reset=detach_reset
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
    gain: float | torch.Tensor = 1.0,
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
    gain: float | torch.Tensor = 1.0,
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
        kind="complementary", decay=decay, gain=gain, threshold=threshold, detach_reset=detach_reset,
        shape=surrogate.shape, height=surrogate.height, width=surrogate.width,
    )  # fmt: skip


def multistep_alif(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float | torch.Tensor = 1.0,
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
        gain: see ``multistep_ilif``.
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
    gain: float | torch.Tensor = 1.0,
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
        kind="adaptive", decay=decay, gain=gain, threshold=threshold, rho=rho, beta=beta, reset=reset,
        detach_reset=detach_reset, shape=surrogate.shape, height=surrogate.height, width=surrogate.width,
    )  # fmt: skip
