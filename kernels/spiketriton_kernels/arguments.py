"""The checks of a call's arguments: ``check_constants`` of a neuron's numbers, ``check_call`` of the tensors."""

from __future__ import annotations

import math

import torch

from .neuron import Inputs, Neuron, Norm, membrane_dtype

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

PROBE_FIELDS = (
    "grad_spike_sq",  # sum of (dL/ds)^2
    "grad_input_sq",  # sum of (dL/dx)^2
    "grad_carry_sq",  # sum of c^2, c = dL/dv[t] carried from t + 1
    "time_factor",  # sum of |decay * dv/dh|
    "outside",  # neurons whose surrogate is below 1 % of its height
    "spikes",  # spikes
    "grad_input_max",  # largest |dL/dx|: a maximum, not a sum
    "nonfinite",  # non-finite dL/dx
)
"""The columns of a probe's gradient, in order; a row is one time step, a value sums over all its neurons."""


def along_channels(
    value: float | torch.Tensor, x: torch.Tensor, dtype: torch.dtype
) -> float | torch.Tensor:
    """A parameter shaped to broadcast against one time step [B, C, ...] of x; floats and () pass through."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.to(dtype)
    return value.view(-1, *[1] * (x.dim() - 3)) if value.dim() == 1 else value


def check_float(name: str, value: object) -> None:
    """value must be a finite number."""
    # a tuple, not int | float, which torch.compile of 2.9 cannot trace; so in surrogate.py
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if isinstance(value, int) and value.bit_length() > 1000:
        raise ValueError(f"{name} must be a float, got an integer of {value.bit_length()} bits")
    if not -math.inf < value < math.inf:  # which torch.compile can trace, unlike isfinite
        raise ValueError(f"{name} must be finite, got {value}")


def check_constant(name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    """A parameter as a tensor must fit x."""
    if not value.is_floating_point():
        raise TypeError(f"{name} as a tensor must be floating point, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(
            f"{name} is on {value.device}, the input is on {x.device}; accepted: the same device"
        )
    channels = x.shape[2] if x.dim() > 2 else None
    if value.dim() and tuple(value.shape) != (channels,):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; accepted: () or (C,) with C = dim 2 of the input = {channels}"
        )


def check_input(name: str, x: object) -> None:
    """x must be a floating tensor [T, B, ...] with T >= 1."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor [T, B, ...], got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name} has dtype {x.dtype}; accepted: float16, bfloat16, float32, float64"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name} has layout {x.layout}; accepted: dense (torch.strided)")
    if x.dim() < 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; accepted: [T, B, ...], time first")
    if x.shape[0] == 0:
        raise ValueError(f"{name} has no time steps: shape {tuple(x.shape)}; accepted: T >= 1")


def check_like(
    name: str, value: torch.Tensor, x: torch.Tensor, shape: tuple[int, ...], dtypes: tuple
) -> None:
    """value must have the shape, one of the dtypes and the device of the input."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape != shape:
        why = ", whose channels are dim 2" if tuple(shape) == tuple(x.shape[2:3]) else ""
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; accepted: {tuple(shape)} with an input of shape "
            f"{tuple(x.shape)}{why}"
        )
    if value.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))
        raise TypeError(f"{name} has dtype {value.dtype}; accepted: {names}")
    if value.device != x.device:
        raise ValueError(
            f"{name} is on {value.device}, the input is on {x.device}; accepted: the same device"
        )


def check_call(
    inputs: Inputs, neuron: Neuron, norm: Norm | None = None, probe: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Check what a call reads against its input; its tensors by name, x first and those that are not saved last.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong value, shape or device. Both name what was given and
            what is accepted.
    """
    x, states, residual, spike_add = inputs
    check_input("x" if norm is None else "y", x)
    given = {"x": x}
    if not neuron.is_plain:
        learnt = neuron.given()
        for name, value in zip(learnt, learnt.values(), strict=True):
            word = neuron.step.constants[int(name.split()[1])].replace("surrogate_", "surrogate ")
            check_constant(word, value, x)
        given |= learnt
    if norm is not None:
        given |= _check_norm(x, norm)
    if not states is residual is spike_add is None:
        dtypes = (membrane_dtype(x.dtype), x.dtype)
        first = (len(neuron.step.states), *x.shape[1:])
        for name, tensor, shape, accepted in (
            ("states", states, first, dtypes), ("residual", residual, x.shape, (x.dtype,)),
            ("spike_add", spike_add, x.shape, (x.dtype,)),
        ):  # fmt: skip
            if tensor is not None:
                check_like(name, tensor, x, shape, accepted)
                given[name] = tensor
    if probe is not None:
        check_like("probe", probe, x, (x.shape[0], len(PROBE_FIELDS)), (torch.float32,))
        given["probe"] = probe
    return given


def _check_norm(y: torch.Tensor, norm: Norm) -> dict[str, torch.Tensor]:
    """Its tensors by their names in a ``Neuron``: mean and var only where they are given, not measured."""
    if y.dim() < 3:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; accepted: [T, B, C, ...], channels are dim 2"
        )
    weight, bias, mean, var, training, momentum, eps, scale, step_gain, _ = norm
    floats, channels, device = (membrane_dtype(y.dtype), y.dtype), y.shape[2:3], y.device
    for i, value in enumerate((weight, bias, mean, var)):
        if value is not None and (
            not isinstance(value, torch.Tensor)
            or value.shape != channels
            or value.dtype not in floats
            or value.device != device
        ):
            check_like(_OF_CHANNELS[i], value, y, channels, floats)
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var go together; one of them is None")
    if not training and mean is None:
        raise ValueError("running_mean and running_var are needed when training is False; got None")
    if training and y.numel() == 0:
        raise ValueError(
            f"batch norm has no statistics of an empty batch: y has shape {tuple(y.shape)}"
        )
    if step_gain is not None:
        check_like("step_gain", step_gain, y, y.shape[:1], floats)
    plain = type(momentum) is type(eps) is type(scale) is float
    if not (plain and eps >= 0 and -math.inf < momentum + eps + scale < math.inf):
        for name, number in (("momentum", momentum), ("eps", eps), ("bn_scale", scale)):
            check_float(name, number)
        if eps < 0:
            raise ValueError(f"eps must be >= 0, got {eps}")
    if training and norm.count(y) < 2:
        raise ValueError(
            f"batch norm needs more than 1 value per channel when training, got y of shape {tuple(y.shape)}"
        )
    given = {"weight": weight, "bias": bias, "step_gain": step_gain}
    if not training:
        given |= {"mean": mean, "var": var}
    return {name: value for name, value in given.items() if value is not None}


_OF_CHANNELS = ("bn_weight", "bn_bias", "running_mean", "running_var")
