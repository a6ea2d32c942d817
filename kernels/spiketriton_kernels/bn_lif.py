"""Batch norm on the input currents and the neuron behind it, as one differentiable unit.

    xhat = (y - mean) / sqrt(var + eps)          mean, var per channel over T, batch and space (biased variance)
    z[t] = step_gain[t] * (bn_weight * bn_scale * xhat[t] + bn_bias)
    x[t] = z[t] + residual[t]                    what the neuron of ``multistep_lif`` integrates
    out  = spikes + spike_add                    SEW-ResNet's ADD (Fang et al. 2021)

``bn_scale = alpha * v_threshold`` is tdBN (Zheng et al. 2021), a learnable ``step_gain`` is TEBN (Duan et al. 2022).
With dz = step_gain * dL/dx and M elements a channel, the gradient by y is
``weight * bn_scale * rstd * (dz - sum(dz)/M - xhat * sum(dz * xhat)/M)``; the two sums are also the gradients of bias
and weight. Both backward passes replay the membrane from y: nothing else of its size is ever saved.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.distributed as dist

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
from .neuron import Call, Inputs, Norm
from .neurons.lif import LIF
from .surrogate import Surrogate


@overload
def multistep_bn_lif(
    y: torch.Tensor, bn_weight: torch.Tensor | None, bn_bias: torch.Tensor | None, running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None, training: bool = ..., momentum: float = ..., eps: float = ...,
    residual: torch.Tensor | None = ..., decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., reset: Reset = ..., v_reset: float = ..., detach_reset: bool = ...,
    surrogate: Surrogate = ..., v_init: torch.Tensor | None = ..., return_v: Literal[False] = ..., *,
    return_current: Literal[False] = ..., return_trace: Literal[False] = ..., reset_delay: bool = ...,
    spike_add: torch.Tensor | None = ..., bn_scale: float = ..., step_gain: torch.Tensor | None = ...,
    probe: torch.Tensor | None = ..., process_group: dist.ProcessGroup | None = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def multistep_bn_lif(
    y: torch.Tensor, bn_weight: torch.Tensor | None, bn_bias: torch.Tensor | None, running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None, training: bool = ..., momentum: float = ..., eps: float = ...,
    residual: torch.Tensor | None = ..., decay: float | torch.Tensor = ..., gain: float | torch.Tensor = ...,
    threshold: float | torch.Tensor = ..., reset: Reset = ..., v_reset: float = ..., detach_reset: bool = ...,
    surrogate: Surrogate = ..., v_init: torch.Tensor | None = ..., return_v: bool = ..., *,
    return_current: bool = ..., return_trace: bool = ..., reset_delay: bool = ...,
    spike_add: torch.Tensor | None = ..., bn_scale: float = ..., step_gain: torch.Tensor | None = ...,
    probe: torch.Tensor | None = ..., process_group: dist.ProcessGroup | None = ...,
) -> Several: ...  # fmt: skip
@by_kernels
def multistep_bn_lif(
    y: torch.Tensor,
    bn_weight: torch.Tensor | None,
    bn_bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
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
    return_current: bool = False,
    return_trace: bool = False,
    reset_delay: bool = False,
    spike_add: torch.Tensor | None = None,
    bn_scale: float = 1.0,
    step_gain: torch.Tensor | None = None,
    probe: torch.Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Request:
    """Spikes of batch-normed currents over a whole time window: normalise, add the residual, fire.

    Args:
        y: conv output [T, B, C, ...]; C is dim 2. Only y is saved for backward (and the residual, which its producer
            keeps anyway).
        bn_weight, bn_bias: (C,), or None for 1 and 0. As ``torch.nn.functional.batch_norm``.
        running_mean, running_var: (C,) buffers, updated in place when training (the unbiased variance, as torch does),
            read when not. None with training: no running statistics are kept.
        training: normalise by this batch's statistics over T, B and space; else by the running ones.
        momentum, eps: as torch's.
        residual: [T, B, C, ...] in the dtype of y, added to the normalised current before the neuron; gets a gradient.
        decay ... return_v: the neuron, see ``multistep_lif``.
        return_current: also return x, what the neuron integrates, in the dtype of y: the sum of currents that an
            MS-ResNet hands from block to block. Its gradient joins that of the neuron on the way back.
        return_trace, reset_delay: see ``multistep_lif``.
        spike_add: like y, added to the spikes at the store (SEW's ADD); gets a gradient.
        bn_scale: tdBN's alpha * v_threshold.
        step_gain: TEBN's (T,) gain per time step; gets a gradient.
        probe: see ``multistep_lif``; dL/dx is the gradient at the neuron's input current, through the neuron alone.
        process_group: training statistics are those of all its ranks together, each with the same number of elements.

    Returns:
        Spikes (plus spike_add) in the shape, dtype and layout of y; with ``return_v`` then the last membrane, with
        ``return_trace`` then every step's, with ``return_current`` then the current, like the spikes.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
        RuntimeError: on double backward.
    """
    neuron = told(
        LIF,
        surrogate,
        (reset, detach_reset, reset_delay),
        (decay, gain, threshold, v_reset),
    )
    norm = Norm(
        bn_weight, bn_bias, running_mean, running_var, training, momentum, eps, bn_scale, step_gain, process_group
    )  # fmt: skip
    call = Call(return_states=return_v, return_current=return_current, return_trace=return_trace)
    return Request(Inputs(y, stacked(y, v_init), residual, spike_add), neuron, call, norm, probe)


multistep_bn_lif_reference = by_definition(
    multistep_bn_lif,
    """The definition of ``multistep_bn_lif``: torch's batch_norm on the folded tensor, then the neuron's definition.

    With its arguments, but for the probe and the process group; ``smooth`` as of ``multistep_lif_reference``.
    """,
)
