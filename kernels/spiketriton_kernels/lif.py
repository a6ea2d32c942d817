"""Integrate-and-fire neurons over the whole time window: ``multistep_lif`` and its definition in plain PyTorch.

    h[t] = decay * v[t-1] + gain * x[t]        v[-1] = v_init, or v_reset with hard reset and 0 otherwise
    s[t] = 1 if h[t] >= threshold else 0
    soft: v[t] = h[t] - threshold * s[t]       hard: v[t] = v_reset if s[t] else h[t]       none: v[t] = h[t]

With hard reset and v_reset != 0 the membrane leaks toward v_reset, as in SpikingJelly:
``h = v + gain * x - (1 - decay) * (v - v_reset)``. IF is decay 1, gain 1; LIF with time constant tau is
decay 1 - 1/tau and gain 1/tau (the input decays too) or 1.

Backward is exact back-propagation through time with the surrogate g = surrogate(h - threshold) for ds/dh
(Neftci, Mostafa & Zenke 2019; Ledinauskas et al. 2020, arXiv 2006.04436), c = dL/dv[t] carried from t + 1:

    soft: dv/dh = 1 - threshold * g     hard: dv/dh = (1 - s) + (v_reset - h) * g     (without g when detach_reset)
    dL/dh[t] = dL/ds[t] * g + c * dv/dh        dL/dx[t] = gain * dL/dh[t]        c becomes decay * dL/dh[t]

The kernels save x and nothing else, and replay the membrane in registers on the way back.
"""

from __future__ import annotations

from typing import Literal, overload

import torch

from .functions import (
    DEFAULT_SURROGATE,
    Request,
    Reset,
    Several,
    by_definition,
    by_kernels,
    stacked,
    told,
)
from .neuron import Call, Inputs
from .neurons.lif import LIF
from .surrogate import Surrogate


@overload
def multistep_lif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., reset: Reset = ..., v_reset: float = ..., detach_reset: bool = ...,
    surrogate: Surrogate = ..., v_init: torch.Tensor | None = ..., return_v: Literal[False] = ..., *,
    return_trace: Literal[False] = ..., reset_delay: bool = ..., probe: torch.Tensor | None = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def multistep_lif(
    x: torch.Tensor, decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., reset: Reset = ..., v_reset: float = ..., detach_reset: bool = ...,
    surrogate: Surrogate = ..., v_init: torch.Tensor | None = ..., return_v: bool = ..., *,
    return_trace: bool = ..., reset_delay: bool = ..., probe: torch.Tensor | None = ...,
) -> Several: ...  # fmt: skip
@by_kernels
def multistep_lif(
    x: torch.Tensor,
    decay: float | torch.Tensor = 0.5,
    gain: float | torch.Tensor = 1.0,
    threshold: float | torch.Tensor = 1.0,
    reset: Reset = "hard",
    v_reset: float = 0.0,
    detach_reset: bool = True,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    v_init: torch.Tensor | None = None,
    return_v: bool = False,
    *,
    return_trace: bool = False,
    reset_delay: bool = False,
    probe: torch.Tensor | None = None,
) -> Request:
    """Spikes of leaky integrate-and-fire neurons over a whole time window, in one fused pass each way.

    Args:
        x: input currents [T, B, ...], float16, bfloat16, float32 or float64. Any dense layout with time outermost
            (contiguous, channels_last) is read in place; another is copied once.
        decay: membrane kept per step, a float or a tensor () or (C,) with C = dim 2 of x; tensors get gradients.
        gain: scale of the input current, a float or a tensor () or (C,), with gradient.
        threshold: a neuron fires where h >= threshold; a float or a tensor () or (C,), with gradient.
        reset: "soft" (subtract the threshold), "hard" (set to v_reset) or "none".
        v_reset: membrane after a hard reset, and where the leak pulls to.
        detach_reset: leave the reset out of the gradient.
        surrogate: stand-in for ds/dh; its width may be a tensor () or (C,), with gradient.
        v_init: membrane before the first step, [B, ...] in the membrane's dtype or x's; gets a gradient.
        return_v: also return the membrane after the last step.
        return_trace: also return the membrane after every step, with its gradient.
        reset_delay: snnTorch's timing: a step's reset is applied when the next one begins, v[t] is h[t], and
            ``h[t+1] = decay * v[t] + gain * x[t+1] - threshold * s[t]`` ("soft"; "hard": of 0 in place of v[t]). Goes
            with ``detach_reset`` and ``v_reset=0``.
        probe: float32 [T, 8] that requires grad; its gradient receives the sums named in ``PROBE_FIELDS``.

    Returns:
        Spikes (0 or 1) in the shape, dtype and layout of x; with ``return_v`` also v[T-1], [B, ...], in float32
        (float64 for float64 input); with ``return_trace`` then v[0..T-1], [T, B, ...], in the same dtype.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
        RuntimeError: on double backward, which the fused kernels do not have.
    """
    neuron = told(
        LIF,
        surrogate,
        (reset, detach_reset, reset_delay),
        (decay, gain, threshold, v_reset),
    )
    call = Call(return_states=return_v, return_trace=return_trace)
    return Request(Inputs(x, stacked(x, v_init)), neuron, call, probe=probe)


multistep_lif_reference = by_definition(
    multistep_lif,
    """The definition of ``multistep_lif``, with its arguments but for the probe: plain PyTorch and its autograd.

    ``smooth=True`` replaces each spike by the surrogate's primitive. The result is differentiable in the ordinary
    sense, its exact gradient is what the surrogate gradient stands for, and gradcheck holds.
    """,
)
