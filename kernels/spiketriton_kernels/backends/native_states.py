"""Neurons beyond LIF in compiled C++: states.cpp, compiled and called as native.cpp is."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from ..layout import channel_axis
from ..state_neuron import KINDS, RESETS, StateNeuron
from ..surrogate import SHAPES
from . import native

_SOURCE = Path(__file__).with_name("states.cpp")
_FORWARD, _BACKWARD = range(2)
_PARAMETERS = 5

_INTS64 = ("steps", "neurons", "channels", "inner", "parameter_size")
_INTS32 = ("kind", "reset", "detach_reset", "leaks_to_reset", "levels", "shape", "threads")
_INPUTS = ("x", "v_init", "m_init", "grad_s", "grad_v", "grad_m", "grad_trace")
_OUTPUTS = ("spikes", "v_last", "m_last", "trace", "dx", "dv_init", "dm_init", "out_parameters")


class _Call(ctypes.Structure):
    """states.cpp's Call, field by field."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in _INTS64),
        ("sizes", ctypes.c_int64 * _PARAMETERS),
        *((n, ctypes.c_int32) for n in _INTS32),
        ("values", ctypes.c_double * _PARAMETERS),
        *((n, ctypes.c_double) for n in ("v_reset", "v_start", "height", "width")),
        *((n, ctypes.c_void_p) for n in _INPUTS),
        ("parameters", ctypes.c_void_p * _PARAMETERS),
        *((n, ctypes.c_void_p) for n in _OUTPUTS),
    )


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled kernels of a dtype. Raises CompilerError with the reason when there are none."""
    loaded = native.load(dtype, _SOURCE, ctypes.sizeof(_Call))
    if isinstance(loaded, native.CompilerError):
        raise loaded
    return loaded


def _run(pass_: int, x: torch.Tensor, neuron: StateNeuron, **tensors: torch.Tensor | None) -> None:
    channels, inner = channel_axis(x)
    call = _Call(
        steps=x.shape[0],
        neurons=x.numel() // x.shape[0],
        channels=channels,
        inner=inner,
        parameter_size=neuron.parameter_size,
        kind=KINDS.index(neuron.kind),
        reset=RESETS.index(neuron.reset),
        detach_reset=neuron.detach_reset,
        levels=neuron.levels,
        shape=SHAPES.index(neuron.shape),
        threads=native._threads(x.numel()),
        leaks_to_reset=neuron.leaks_to_reset,
        v_reset=neuron.v_reset,
        v_start=neuron.v_start,
        height=neuron.height,
        width=neuron.width,
        x=x.data_ptr(),
    )
    for i, value in enumerate(neuron.parameters):
        if isinstance(value, torch.Tensor):
            call.parameters[i], call.sizes[i] = value.data_ptr(), value.numel()
        else:
            call.values[i], call.sizes[i] = value, 1
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(call, name, tensor.data_ptr())
    library(x.dtype).spiketriton_run(ctypes.byref(call), pass_)


def forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    neuron: StateNeuron,
    spikes: torch.Tensor,
    v_last: torch.Tensor | None,
    m_last: torch.Tensor | None,
    trace: torch.Tensor | None,
    saved: torch.Tensor,
) -> None:
    """Fill spikes and the last states. ``saved`` stays empty: a block replays its whole window."""
    _run(
        _FORWARD, x, neuron, v_init=v_init, m_init=m_init, spikes=spikes, v_last=v_last, m_last=m_last, trace=trace
    )  # fmt: skip


def backward(
    grad_s: torch.Tensor,
    grad_v: torch.Tensor | None,
    grad_m: torch.Tensor | None,
    grad_trace: torch.Tensor | None,
    x: torch.Tensor,
    saved: torch.Tensor,
    v_init: torch.Tensor | None,
    m_init: torch.Tensor | None,
    neuron: StateNeuron,
    dx: torch.Tensor,
    dv_init: torch.Tensor | None,
    dm_init: torch.Tensor | None,
    parameters: torch.Tensor | None,
) -> None:
    """Fill dx and what else is not None; ``parameters`` is [5, C or 1]."""
    _run(
        _BACKWARD, x, neuron, v_init=v_init, m_init=m_init, grad_s=grad_s, grad_v=grad_v, grad_m=grad_m,
        grad_trace=grad_trace, dx=dx, dv_init=dv_init, dm_init=dm_init, out_parameters=parameters,
    )  # fmt: skip
