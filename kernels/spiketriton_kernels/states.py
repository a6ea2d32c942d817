"""I-LIF, CLIF, ALIF and CuBa-LIF over the whole time window, as functions, and their definitions in PyTorch.

The equations stand with the neurons: ``neurons/ilif.py``, ``clif.py``, ``alif.py`` and ``cuba.py``. Backward is exact
back-propagation through time through all states. They run in LIF's passes, and move what LIF moves: 5 elements of x's
dtype per element and step in training, 2 at inference.
"""

from __future__ import annotations

from typing import Literal, overload

import torch

from .functions import (
    DEFAULT_SURROGATE,
    Request,
    Reset,
    WithStates,
    by_definition,
    by_kernels,
    stacked,
    told,
)
from .neuron import Call, Inputs
from .neurons.alif import ALIF
from .neurons.clif import CLIF
from .neurons.cuba import CuBaLIF
from .neurons.ilif import ILIF
from .neurons.stepping import Told
from .surrogate import Surrogate


def _request(
    x: torch.Tensor,
    neuron: Told,
    states: tuple[torch.Tensor | None, ...],
    return_state: bool,
    probe: torch.Tensor | None,
) -> Request:
    call = Call(return_states=return_state)
    return Request(Inputs(x, stacked(x, *states)), neuron, call, probe=probe)


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
    constants = decay, gain, threshold, levels
    neuron = told(ILIF, DEFAULT_SURROGATE, (detach_reset,), constants)
    return _request(x, neuron, (v_init,), return_state, probe)


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
    neuron = told(CLIF, surrogate, (detach_reset,), (decay, gain, threshold))
    return _request(x, neuron, (v_init, m_init), return_state, probe)


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
    constants = decay, gain, threshold, rho, beta
    neuron = told(ALIF, surrogate, (reset, detach_reset), constants)
    return _request(x, neuron, (v_init, m_init), return_state, probe)


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
    constants = decay, gain, threshold, rho
    neuron = told(CuBaLIF, surrogate, (reset, detach_reset), constants)
    return _request(x, neuron, (v_init, m_init), return_state, probe)


multistep_cuba_reference = by_definition(
    multistep_cuba,
    """The definition of ``multistep_cuba``; ``smooth=True`` replaces each spike by the surrogate's primitive.""",
)
