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

import torch
import torch.distributed as dist

from .arguments import along_channels, check_float, check_input, check_like, check_neuron
from .backends.eager import update_running
from .fire import channel_statistics, fire
from .layout import dense
from .lif import DEFAULT_SURROGATE, multistep_lif_reference
from .neuron import Call, membrane_dtype
from .surrogate import SHAPES, Surrogate


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
    spike_add: torch.Tensor | None = None,
    bn_scale: float = 1.0,
    step_gain: torch.Tensor | None = None,
    probe: torch.Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
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
            MS-ResNet hands from block to block. Its gradient joins that of the neuron on the way back. ``gain`` must
            be a number.
        spike_add: like y, added to the spikes at the store (SEW's ADD); gets a gradient.
        bn_scale: tdBN's alpha * v_threshold.
        step_gain: TEBN's (T,) gain per time step; gets a gradient.
        probe: see ``multistep_lif``; dL/dx is the gradient at the neuron's input current, through the neuron alone.
        process_group: training statistics are those of all its ranks together, each with the same number of elements.

    Returns:
        Spikes (plus spike_add) in the shape, dtype and layout of y; with ``return_v`` then the last membrane, with
        ``return_current`` then the current, like the spikes.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.
        RuntimeError: on double backward.
    """
    neuron = check_neuron(
        y, decay, gain, threshold, reset, v_reset, detach_reset, surrogate, v_init, probe
    )
    if surrogate.shape not in SHAPES:
        raise ValueError(
            f"surrogate {surrogate.shape!r} is one of one's own; accepted behind batch norm: {', '.join(SHAPES)}"
        )
    _check_norm(
        y, bn_weight, bn_bias, running_mean, running_var, training, residual, spike_add, step_gain
    )
    _check_constants(momentum, eps, bn_scale)
    if isinstance(
        gain, torch.Tensor
    ):  # a factor of what the norm gives: nothing to do in the kernels
        if return_current:
            raise ValueError(
                f"gain is a tensor of shape {tuple(gain.shape)}; accepted with return_current=True: a number, "
                "because a learnt gain multiplies the current before the neuron reads it"
            )
        bn_weight, bn_bias, residual = _amplified(y, gain, bn_weight, bn_bias, residual)
        neuron = neuron._replace(gain=1.0)
    group = ""
    mean, var, running = running_mean, running_var, None
    if training:
        ranks = 1 if process_group is None else dist.get_world_size(process_group)
        count = y.numel() // y.shape[2] * ranks
        if count < 2:
            raise ValueError(
                f"batch norm needs more than 1 value per channel when training, got y of shape {tuple(y.shape)}"
            )
        if running_mean is not None and running_var is not None:
            running = running_mean, running_var, momentum
        mean = var = None  # measured on the way
        if process_group is not None:
            group = process_group.group_name
            with torch.no_grad():
                mean, var = _over_ranks(*channel_statistics(dense(y), None), process_group)
                if running is not None:
                    update_running(mean, var, count, running)
    neuron = neuron._replace(eps=float(eps), bn_scale=float(bn_scale))
    out = fire(
        y,
        neuron,
        Call(group, training, return_v=return_v, return_current=return_current),
        running,
        v_init=v_init,
        residual=residual,
        mean=mean,
        var=var,
        weight=bn_weight,
        bias=bn_bias,
        step_gain=step_gain,
        spike_add=spike_add,
        probe=probe,
    )
    wanted = tuple(result for result in (out.spikes, out.v_last, out.current) if result is not None)
    return wanted if len(wanted) > 1 else out.spikes


def _amplified(y, gain, weight, bias, residual):
    """gain * (weight * xhat + bias + residual), as weight, bias and residual."""
    gains = gain.to(membrane_dtype(y.dtype))
    weight = gains.expand(y.shape[2]) if weight is None else weight * gains
    bias = None if bias is None else bias * gains
    if residual is not None:
        residual = (residual * along_channels(gains, y, gains.dtype)).to(y.dtype)
    return weight, bias, residual


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


def _check_norm(
    y, weight, bias, running_mean, running_var, training, residual, spike_add, step_gain
) -> None:
    check_input("y", y)
    if y.dim() < 3:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; accepted: [T, B, C, ...], channels are dim 2"
        )
    floats, channels = (membrane_dtype(y.dtype), y.dtype), y.shape[2:3]
    small = dict(bn_weight=weight, bn_bias=bias, running_mean=running_mean, running_var=running_var)
    for name, value in small.items():
        if value is None:
            continue
        if isinstance(value, torch.Tensor) and value.shape != channels:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; accepted: {tuple(channels)}, "
                f"because channels are dim 2 of y, which has shape {tuple(y.shape)}"
            )
        check_like(name, value, y, channels, floats)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var go together; one of them is None")
    if not training and running_mean is None:
        raise ValueError("running_mean and running_var are needed when training is False; got None")
    if training and y.numel() == 0:
        raise ValueError(
            f"batch norm has no statistics of an empty batch: y has shape {tuple(y.shape)}"
        )
    if residual is not None:
        check_like("residual", residual, y, y.shape, (y.dtype,))
    if spike_add is not None:
        check_like("spike_add", spike_add, y, y.shape, (y.dtype,))
    if step_gain is not None:
        check_like("step_gain", step_gain, y, y.shape[:1], floats)


def _check_constants(momentum: float, eps: float, bn_scale: float) -> None:
    check_float("momentum", momentum)
    check_float("eps", eps)
    check_float("bn_scale", bn_scale)
    if eps < 0:
        raise ValueError(f"eps must be >= 0, got {eps}")


def multistep_bn_lif_reference(
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
    spike_add: torch.Tensor | None = None,
    bn_scale: float = 1.0,
    step_gain: torch.Tensor | None = None,
    smooth: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """The definition of ``multistep_bn_lif``: torch's batch_norm on the folded tensor, then the reference neuron."""
    check_neuron(y, decay, gain, threshold, reset, v_reset, detach_reset, surrogate, v_init)
    _check_norm(
        y, bn_weight, bn_bias, running_mean, running_var, training, residual, spike_add, step_gain
    )
    _check_constants(momentum, eps, bn_scale)
    wide = membrane_dtype(y.dtype)
    weight = None if bn_weight is None else bn_weight.to(wide) * bn_scale
    if weight is None and bn_scale != 1.0:
        weight = torch.full(y.shape[2:3], bn_scale, dtype=wide, device=y.device)
    bias = None if bn_bias is None else bn_bias.to(wide)
    z = torch.nn.functional.batch_norm(
        y.to(wide).flatten(0, 1), running_mean, running_var, weight, bias, training, momentum, eps
    ).unflatten(0, y.shape[:2])
    if step_gain is not None:
        z = z * step_gain.to(wide).view(-1, *[1] * (y.dim() - 1))
    x = z if residual is None else z + residual.to(wide)
    v_init = None if v_init is None else v_init.to(wide)
    spikes, v_last = multistep_lif_reference(
        x,
        decay,
        gain,
        threshold,
        reset,
        v_reset,
        detach_reset,
        surrogate,
        v_init,
        True,
        smooth=smooth,
    )
    if spike_add is not None:
        spikes = spikes + spike_add.to(wide)
    wanted = [spikes.to(y.dtype)]
    if return_v:
        wanted.append(v_last)
    if return_current:
        wanted.append(x.to(y.dtype))
    return tuple(wanted) if len(wanted) > 1 else wanted[0]
