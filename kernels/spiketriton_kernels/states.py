"""I-LIF, CLIF, ALIF and CuBa-LIF over the whole time window, as functions, and their definitions in PyTorch.

The equations stand with the neurons: ``neurons/ilif.py``, ``clif.py``, ``alif.py`` and ``cuba.py``. Backward is exact
back-propagation through time through all states. They run in LIF's passes, and move what LIF moves: 5 elements of x's
dtype per element and step in training, 2 at inference.

All of them take x [T, B, ...], float16, bfloat16, float32 or float64, time first; constants that are floats or tensors
() or (C,) with C = dim 2 of x, which then get gradients; and a ``Window``. They return spikes in the shape, dtype and
layout of x, with ``return_state`` also ``States``. TypeError and ValueError name the argument, what was given and what
is accepted.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch

from .functions import (
    DEFAULT_SURROGATE,
    Request,
    Reset,
    by_definition,
    by_kernels,
    stacked,
    told,
)
from .neuron import Call, Inputs
from .neurons.alif import ALIF
from .neurons.base import SpikingNeuron
from .neurons.clif import CLIF
from .neurons.cuba import CuBaLIF
from .neurons.ilif import ILIF
from .surrogate import Surrogate


class Window(TypedDict, total=False):
    """What each of them takes by name besides its constants.

    ``v_init``, ``m_init``: states before the first step, [B, ...], with gradient (``m_init`` where there is a second
    one). ``return_state``: also return ``States`` after the last step (of I-LIF m is 0). ``probe``: see
    ``multistep_lif``.
    """

    v_init: torch.Tensor | None
    m_init: torch.Tensor | None
    return_state: bool
    probe: torch.Tensor | None


def _request(
    x: torch.Tensor,
    neuron: type[SpikingNeuron],
    surrogate: Surrogate,
    options: tuple[str | bool, ...],
    constants: tuple[float | torch.Tensor, ...],
    window: Window,
) -> Request:
    """Of a neuron with these options and constants, in the order of its class."""
    accepted = [n for n in Window.__annotations__ if n != "m_init" or len(neuron.states) > 1]
    for name in window:
        if name not in accepted:
            raise TypeError(
                f"multistep_{neuron.kind} has no argument {name!r}; accepted besides its constants: "
                f"{', '.join(accepted)}"
            )
    record = told(neuron, surrogate, options, constants)
    states = (window.get("v_init"), window.get("m_init"))[: len(neuron.states)]
    call = Call(return_states=window.get("return_state", False))
    return Request(Inputs(x, stacked(x, *states)), record, call, probe=window.get("probe"))


@by_kernels
def multistep_ilif(
    x: torch.Tensor, decay: float | torch.Tensor = 0.25, gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0, levels: int = 4, detach_reset: bool = False, **window: Unpack[Window],
) -> Request:  # fmt: skip
    """Integer spikes 0..levels of I-LIF neurons, 1 to 255 levels; ``threshold`` is what one spike takes.

    ``virtual_steps`` turns them into ``levels`` binary steps each, for spike-driven inference.
    """
    constants = decay, gain, threshold, levels
    return _request(x, ILIF, DEFAULT_SURROGATE, (detach_reset,), constants, window)


@by_kernels
def multistep_clif(
    x: torch.Tensor, decay: float | torch.Tensor = 0.5, gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0, detach_reset: bool = False, surrogate: Surrogate = DEFAULT_SURROGATE,
    **window: Unpack[Window],
) -> Request:  # fmt: skip
    """Spikes of CLIF neurons, whose complementary potential m makes the reset deeper the more they fired.

    They follow the definition up to the rounding of the sigmoid.
    """
    return _request(x, CLIF, surrogate, (detach_reset,), (decay, gain, threshold), window)


@by_kernels
def multistep_alif(
    x: torch.Tensor, decay: float | torch.Tensor = 0.5, gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0, rho: float | torch.Tensor = 0.9, beta: float | torch.Tensor = 1.0,
    reset: Reset = "soft", detach_reset: bool = True, surrogate: Surrogate = DEFAULT_SURROGATE,
    **window: Unpack[Window],
) -> Request:  # fmt: skip
    """Spikes of adaptive LIF neurons, whose threshold rises by ``beta`` with each spike and decays by ``rho`` a step.

    The reset is "soft" (by the threshold of the step), "hard" (to 0) or "none".
    """
    constants = decay, gain, threshold, rho, beta
    return _request(x, ALIF, surrogate, (reset, detach_reset), constants, window)


@by_kernels
def multistep_cuba(
    x: torch.Tensor, decay: float | torch.Tensor = 0.5, gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0, rho: float | torch.Tensor = 0.5, reset: Reset = "hard",
    detach_reset: bool = True, surrogate: Surrogate = DEFAULT_SURROGATE, **window: Unpack[Window],
) -> Request:  # fmt: skip
    """Spikes of current-based LIF neurons, whose membrane reads a synaptic current m that decays by ``rho`` a step.

    ``gain`` scales the synaptic current. The reset is "hard" (to 0), "soft" or "none", of the membrane alone.
    """
    constants = decay, gain, threshold, rho
    return _request(x, CuBaLIF, surrogate, (reset, detach_reset), constants, window)


multistep_ilif_reference, multistep_clif_reference, multistep_alif_reference, multistep_cuba_reference = (
    by_definition(
        function,
        f"The definition of ``{function.__name__}``; ``smooth=True`` replaces each spike by what its gradient is the "
        "derivative of.",
    )
    for function in (multistep_ilif, multistep_clif, multistep_alif, multistep_cuba)
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
