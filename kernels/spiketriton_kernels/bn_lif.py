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

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .arguments import DEFAULT_SURROGATE, check_call, check_float, check_like, make_neuron
from .backends.eager import update_running
from .definition import define
from .fire import channel_statistics, fire
from .layout import dense
from .neuron import Call, Neuron, Outputs, Running, membrane_dtype
from .surrogate import Surrogate


class Norm(NamedTuple):
    """A batch norm in front of a neuron, in the words of ``multistep_bn_lif``."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    scale: float = 1.0
    step_gain: torch.Tensor | None = None
    process_group: dist.ProcessGroup | None = None


def fire_normed(
    y: torch.Tensor,
    norm: Norm,
    neuron: Neuron,
    call: Call,
    *,
    residual: torch.Tensor | None = None,
    spike_add: torch.Tensor | None = None,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    probe: torch.Tensor | None = None,
) -> Outputs:
    """Normalise, add the residual, fire: a neuron of any kind behind a batch norm. See ``multistep_bn_lif``."""
    check_call(y, neuron, v_init, m_init, probe, name="y")
    _check_norm(y, norm, residual, spike_add)
    mean, var = norm.running_mean, norm.running_var
    running: Running | None = None
    if norm.training:
        if mean is not None and var is not None:
            running = mean, var, norm.momentum
        mean = var = None  # measured on the way
        if norm.process_group is not None:
            call = call._replace(group=norm.process_group.group_name)
            with torch.no_grad():
                own = channel_statistics(dense(y), None)
                mean, var = _over_ranks(*own, norm.process_group)
                if running is not None:
                    update_running(mean, var, _count(y, norm), running)
    neuron = neuron.behind(
        mean, var, norm.weight, norm.bias, norm.step_gain, float(norm.eps), float(norm.scale)
    )
    if norm.training:
        call = Call(call.group, True, *call[2:])
    return fire(
        y, neuron, call, running,
        v_init=v_init, m_init=m_init, residual=residual, spike_add=spike_add, probe=probe,
    )  # fmt: skip


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
    reset: str = "hard",
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
    _run: Callable[..., Outputs] = fire_normed,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
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
    neuron = make_neuron(
        "lif", decay, gain, threshold, reset, v_reset, detach_reset, surrogate, reset_delay
    )
    norm = Norm(
        bn_weight, bn_bias, running_mean, running_var, training, momentum, eps, bn_scale, step_gain, process_group
    )  # fmt: skip
    call = Call(return_v=return_v, return_current=return_current, return_trace=return_trace)
    out = _run(
        y, norm, neuron, call, residual=residual, spike_add=spike_add, v_init=v_init, probe=probe
    )
    wanted = tuple(
        found for found in (out.spikes, out.v_last, out.trace, out.current) if found is not None
    )
    return wanted if len(wanted) > 1 else out.spikes


def _over_ranks(
    mean: torch.Tensor, var: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of equal shares, joined (Chan et al. 1979): one all-gather of [2, C]."""
    own = torch.stack([mean, var])
    shares = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shares, own, group=group)
    means, variances = torch.stack(shares).unbind(1)
    joined = means.mean(0)
    return joined, variances.mean(0) + (means - joined).square().mean(0)


def _count(y: torch.Tensor, norm: Norm) -> int:
    """Elements a channel that training statistics are taken over."""
    group = norm.process_group
    return y.numel() // y.shape[2] * (1 if group is None else dist.get_world_size(group))


def _check_norm(y, norm: Norm, residual, spike_add) -> None:
    if y.dim() < 3:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; accepted: [T, B, C, ...], channels are dim 2"
        )
    floats, channels = (membrane_dtype(y.dtype), y.dtype), y.shape[2:3]
    small = ("bn_weight", "bn_bias", "running_mean", "running_var")
    tensors: tuple[Any, ...] = norm[: len(small)]
    for name, value in zip(small, tensors, strict=True):
        if value is not None:
            check_like(name, value, y, channels, floats)
    if (norm.running_mean is None) != (norm.running_var is None):
        raise ValueError("running_mean and running_var go together; one of them is None")
    if not norm.training and norm.running_mean is None:
        raise ValueError("running_mean and running_var are needed when training is False; got None")
    if norm.training and y.numel() == 0:
        raise ValueError(
            f"batch norm has no statistics of an empty batch: y has shape {tuple(y.shape)}"
        )
    if residual is not None:
        check_like("residual", residual, y, y.shape, (y.dtype,))
    if spike_add is not None:
        check_like("spike_add", spike_add, y, y.shape, (y.dtype,))
    if norm.step_gain is not None:
        check_like("step_gain", norm.step_gain, y, y.shape[:1], floats)
    check_float("momentum", norm.momentum)
    check_float("eps", norm.eps)
    check_float("bn_scale", norm.scale)
    if norm.eps < 0:
        raise ValueError(f"eps must be >= 0, got {norm.eps}")
    if norm.training and _count(y, norm) < 2:
        raise ValueError(
            f"batch norm needs more than 1 value per channel when training, got y of shape {tuple(y.shape)}"
        )


def multistep_bn_lif_reference(*args: Any, smooth: bool = False, **options: Any) -> Any:
    """The definition of ``multistep_bn_lif``: torch's batch_norm on the folded tensor, then the neuron's definition.

    With its arguments, but for the probe and the process group; ``smooth`` as of ``multistep_lif_reference``.
    """
    run = functools.partial(define_normed, smooth=smooth)
    return multistep_bn_lif(*args, **options, _run=run)


def define_normed(
    y: torch.Tensor,
    norm: Norm,
    neuron: Neuron,
    call: Call,
    *,
    residual: torch.Tensor | None = None,
    spike_add: torch.Tensor | None = None,
    v_init: torch.Tensor | None = None,
    m_init: torch.Tensor | None = None,
    probe: torch.Tensor | None = None,
    smooth: bool = False,
) -> Outputs:
    """What ``fire_normed`` returns, by plain PyTorch."""
    if norm.process_group is not None:
        raise TypeError("process_group is given to a definition, which has none; accepted: None")
    check_call(y, neuron, v_init, m_init, name="y")
    _check_norm(y, norm, residual, spike_add)
    x = normalised(y, norm, residual)
    out = define(x, neuron, call, v_init=v_init, m_init=m_init, probe=probe, smooth=smooth)
    spikes = out.spikes if spike_add is None else out.spikes + spike_add.to(x.dtype)
    current = x.to(y.dtype) if call.return_current else None
    return out._replace(spikes=spikes.to(y.dtype), current=current)


def normalised(y: torch.Tensor, norm: Norm, residual: torch.Tensor | None = None) -> torch.Tensor:
    """What a neuron behind the norm integrates, in the membrane's dtype, by plain PyTorch."""
    wide = membrane_dtype(y.dtype)
    weight = None if norm.weight is None else norm.weight.to(wide) * norm.scale
    if weight is None and norm.scale != 1.0:
        weight = torch.full(y.shape[2:3], norm.scale, dtype=wide, device=y.device)
    bias = None if norm.bias is None else norm.bias.to(wide)
    z = torch.nn.functional.batch_norm(
        y.to(wide).flatten(0, 1), norm.running_mean, norm.running_var, weight, bias, norm.training,
        norm.momentum, norm.eps,
    ).unflatten(0, y.shape[:2])  # fmt: skip
    if norm.step_gain is not None:
        z = z * norm.step_gain.to(wide).view(-1, *[1] * (y.dim() - 1))
    return z if residual is None else z + residual.to(wide)
