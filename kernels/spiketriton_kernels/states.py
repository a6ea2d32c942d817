"""Neurons that are not LIF, over the whole time window: I-LIF, CLIF, ALIF, CuBa-LIF, and their definitions in PyTorch.

All charge like LIF, h[t] = decay * v[t-1] + gain * x[t], and have a second state m or other spikes:

    I-LIF  s[t] = round(clamp(h[t] / threshold, 0, D))          v[t] = h[t] - threshold * s[t]

    CLIF   s[t] = 1 if h[t] >= threshold else 0
           m[t] = m[t-1] * sigmoid((1 - decay) * h[t]) + s[t]   v[t] = h[t] - s[t] * (threshold + sigmoid(m[t]))

    ALIF   level[t] = threshold + beta * m[t-1]                 s[t] = 1 if h[t] >= level[t] else 0
           m[t] = rho * m[t-1] + (1 - rho) * s[t]               soft: v[t] = h[t] - level[t] * s[t]
                                                                hard: v[t] = 0 if s[t] else h[t]

    CuBa-LIF  m[t] = rho * m[t-1] + x[t]                        h[t] = decay * v[t-1] + gain * m[t], the rest as LIF

I-LIF: Luo et al. 2024, arXiv 2407.20708. CLIF: Huang et al. 2024, arXiv 2402.04663. ALIF: Bellec et al. 2018,
arXiv 1803.09574. CuBa-LIF has a synapse in front of the membrane: m is its current (Gerstner et al. 2014, Neuronal
Dynamics, section 1.3; snnTorch's Synaptic, NIR's CubaLIF). Backward is exact back-propagation through time through
both states. ds/dh is the surrogate of h - threshold (of h - level); for I-LIF it is 1 / threshold where
0 <= h / threshold <= D, else 0. ``detach_reset`` leaves the spike out of the reset's gradient; through m it always
flows.

They run in LIF's passes, and move what LIF moves: 5 elements of x's dtype per element and step in training, 2 at
inference.
"""

from __future__ import annotations

from typing import Literal, overload

import torch

from .arguments import DEFAULT_SURROGATE, make_neuron
from .functions import Request, Reset, WithStates, by_definition, by_kernels
from .neuron import Call, Inputs, Neuron
from .surrogate import Surrogate


def _request(
    x: torch.Tensor,
    neuron: Neuron,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    return_state: bool,
    probe: torch.Tensor | None,
) -> Request:
    call = Call(return_v=return_state, return_m=return_state and neuron.has_m)
    return Request(Inputs(x, v_init, m_init), neuron, call, probe=probe)


@overload
def multistep_ilif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., levels: int = ..., detach_reset: bool = ...,
    v_init: torch.Tensor | None = ..., return_state: Literal[False] = ..., *, probe: torch.Tensor | None = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def multistep_ilif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., levels: int = ..., detach_reset: bool = ...,
    v_init: torch.Tensor | None = ..., return_state: bool = ..., *, probe: torch.Tensor | None = ...,
) -> WithStates: ...  # fmt: skip
@by_kernels
def multistep_ilif(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.25,
    gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0,
    levels: int = 4,
    detach_reset: bool = False,
    v_init: torch.Tensor | None = None,
    return_state: bool = False,
    *,
    probe: torch.Tensor | None = None,
) -> Request:
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
        probe: see ``multistep_lif``; a spike counts as the number that it is.

    Returns:
        Spikes in the shape, dtype and layout of x.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    neuron = make_neuron("ilif", decay, gain, threshold, detach_reset=detach_reset, levels=levels)
    return _request(x, neuron, v_init, None, return_state, probe)


multistep_ilif_reference = by_definition(
    multistep_ilif,
    """The definition of ``multistep_ilif``, with its arguments; ``smooth=True`` leaves out the rounding.""",
)


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


@overload
def multistep_clif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., detach_reset: bool = ..., surrogate: Surrogate = ...,
    v_init: torch.Tensor | None = ..., m_init: torch.Tensor | None = ..., return_state: Literal[False] = ..., *,
    probe: torch.Tensor | None = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def multistep_clif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., detach_reset: bool = ..., surrogate: Surrogate = ...,
    v_init: torch.Tensor | None = ..., m_init: torch.Tensor | None = ..., return_state: bool = ..., *,
    probe: torch.Tensor | None = ...,
) -> WithStates: ...  # fmt: skip
@by_kernels
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
    *,
    probe: torch.Tensor | None = None,
) -> Request:
    """Spikes of CLIF neurons, whose complementary potential m makes the reset deeper the more they fired.

    Spikes follow the definition up to the rounding of the sigmoid.

    Args:
        x: input currents [T, B, ...]; time first.
        decay: membrane kept per step, 1 - 1 / tau; a float or a tensor () or (C,), with gradient (through m as well).
        gain, threshold, detach_reset: see ``multistep_ilif``.
        surrogate: see ``multistep_lif``.
        v_init, m_init: states before the first step, [B, ...]; get gradients.
        return_state: also return ``States`` after the last step.
        probe: see ``multistep_lif``.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    neuron = make_neuron(
        "clif", decay, gain, threshold, detach_reset=detach_reset, surrogate=surrogate
    )
    return _request(x, neuron, v_init, m_init, return_state, probe)


multistep_clif_reference = by_definition(
    multistep_clif,
    """The definition of ``multistep_clif``; ``smooth=True`` replaces each spike by the surrogate's primitive.""",
)


@overload
def multistep_alif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., rho: float | torch.Tensor = ..., beta: float | torch.Tensor = ...,
    reset: Reset = ..., detach_reset: bool = ..., surrogate: Surrogate = ..., v_init: torch.Tensor | None = ...,
    m_init: torch.Tensor | None = ..., return_state: Literal[False] = ..., *, probe: torch.Tensor | None = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def multistep_alif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., rho: float | torch.Tensor = ..., beta: float | torch.Tensor = ...,
    reset: Reset = ..., detach_reset: bool = ..., surrogate: Surrogate = ..., v_init: torch.Tensor | None = ...,
    m_init: torch.Tensor | None = ..., return_state: bool = ..., *, probe: torch.Tensor | None = ...,
) -> WithStates: ...  # fmt: skip
@by_kernels
def multistep_alif(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0,
    rho: float | torch.Tensor = 0.9,
    beta: float | torch.Tensor = 1.0,
    reset: Reset = "soft",
    detach_reset: bool = True,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    return_state: bool = False,
    *,
    probe: torch.Tensor | None = None,
) -> Request:
    """Spikes of adaptive LIF neurons, whose threshold rises with each spike and decays in between.

    Args:
        x: input currents [T, B, ...]; time first.
        decay, threshold: see ``multistep_ilif``.
        rho: adaptation kept per step; a float or a tensor () or (C,), with gradient.
        beta: how far the threshold rises with the adaptation; a float or a tensor () or (C,), with gradient.
        gain: see ``multistep_ilif``.
        reset: "soft" (subtract the threshold of the step), "hard" (to 0) or "none".
        detach_reset: leave the reset out of the gradient; that of the adaptation stays.
        surrogate: see ``multistep_lif``.
        v_init, m_init: states before the first step, [B, ...]; get gradients.
        return_state: also return ``States`` after the last step.
        probe: see ``multistep_lif``.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    neuron = make_neuron(
        "alif", decay, gain, threshold, reset, 0.0, detach_reset, surrogate, rho=rho, beta=beta
    )
    return _request(x, neuron, v_init, m_init, return_state, probe)


multistep_alif_reference = by_definition(
    multistep_alif,
    """The definition of ``multistep_alif``; ``smooth=True`` replaces each spike by the surrogate's primitive.""",
)


@overload
def multistep_cuba(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., rho: float | torch.Tensor = ..., reset: Reset = ...,
    detach_reset: bool = ..., surrogate: Surrogate = ..., v_init: torch.Tensor | None = ...,
    m_init: torch.Tensor | None = ..., return_state: Literal[False] = ..., *, probe: torch.Tensor | None = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def multistep_cuba(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., rho: float | torch.Tensor = ..., reset: Reset = ...,
    detach_reset: bool = ..., surrogate: Surrogate = ..., v_init: torch.Tensor | None = ...,
    m_init: torch.Tensor | None = ..., return_state: bool = ..., *, probe: torch.Tensor | None = ...,
) -> WithStates: ...  # fmt: skip
@by_kernels
def multistep_cuba(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0,
    rho: float | torch.Tensor = 0.5,
    reset: Reset = "hard",
    detach_reset: bool = True,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    return_state: bool = False,
    *,
    probe: torch.Tensor | None = None,
) -> Request:
    """Spikes of current-based LIF neurons, whose membrane reads a synaptic current m that decays.

    Args:
        x: what arrives at the synapses, [T, B, ...]; time first.
        decay, threshold: see ``multistep_ilif``.
        gain: scale of the synaptic current, a float or a tensor () or (C,), with gradient.
        rho: synaptic current kept per step; a float or a tensor () or (C,), with gradient.
        reset: "hard" (to 0), "soft" (subtract the threshold) or "none"; of the membrane alone.
        detach_reset: leave the reset out of the gradient.
        surrogate: see ``multistep_lif``.
        v_init, m_init: states before the first step, [B, ...]; get gradients.
        return_state: also return ``States`` after the last step.
        probe: see ``multistep_lif``.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
    """
    neuron = make_neuron(
        "cuba", decay, gain, threshold, reset, 0.0, detach_reset, surrogate, rho=rho
    )
    return _request(x, neuron, v_init, m_init, return_state, probe)


multistep_cuba_reference = by_definition(
    multistep_cuba,
    """The definition of ``multistep_cuba``; ``smooth=True`` replaces each spike by the surrogate's primitive.""",
)
