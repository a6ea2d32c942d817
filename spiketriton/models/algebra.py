"""Norms behind 1x1 convolutions by algebra (`spiketriton_kernels.pointwise`), where that is faster than passes.

At the end of a block that hands currents on, the last convolution of a bottleneck and that of a shortcut are 1x1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.models.layers import FASTER_BY_ALGEBRA, folded
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton_kernels import pointwise
from spiketriton_kernels.fire import traced
from spiketriton_kernels.neuron import membrane_dtype

WIDER = 2
"""A convolution writes so many times the channels that it reads, or more: its products would take too long."""


@contextmanager
def by_algebra(wanted: bool = True) -> Iterator[None]:
    """Within the block networks take this way wherever it is possible, or nowhere."""
    before = dict(FASTER_BY_ALGEBRA)
    FASTER_BY_ALGEBRA.update(dict.fromkeys(before, wanted))
    try:
        yield
    finally:
        FASTER_BY_ALGEBRA.update(before)


def sum_and_fire(
    conv: Any,
    norm: Any,
    spikes: Tensor,
    x: Tensor,
    downsample: Any,
    reader: SpikingNeuron,
    *,
    binary: bool,
) -> tuple[Tensor, Tensor]:
    """Spikes of `reader`, and what it reads: `norm(conv(spikes))` plus the shortcut; all are [T, B, C, H, W].

    The shortcut is x, or of (convolution, norm) the currents that they make of x. binary: spikes are 0 or 1.
    """
    through = _serves(conv, norm, spikes)
    around = downsample is not None and _serves(downsample[0], downsample[1], x)
    around = around and _alone(norm)
    y = spikes if through else folded(conv, spikes)
    if not (through or around):
        shortcut = x if downsample is None else downsample[1](folded(downsample[0], x))
        return reader.fused_norm(y, norm, shortcut, return_current=True)
    shortcut, record = x, norm.record(y)
    if downsample is not None:
        other, normed = downsample
        if around:
            shortcut, record = pointwise.as_residual(
                _as_given(x), other.weight, normed.record(x), record, stride=other.stride[0]
            )
        else:
            shortcut = normed(folded(other, x))
    if through:
        y, record, shortcut = pointwise.before_neuron(
            _as_given(spikes), conv.weight, record, shortcut, binary=binary
        )
    return reader.fused_norm(y, record, shortcut, return_current=True)


def _serves(conv: nn.Module, norm: Any, x: Tensor) -> bool:
    """Whether the norm of `conv(x)` is computed by algebra."""
    if traced((x,)) or not isinstance(conv, nn.Conv2d):
        return False
    dtype, stride = _precision(x), conv.stride[0]
    plain = conv.bias is None and conv.groups == 1 and conv.out_channels >= WIDER * conv.in_channels
    alike = (
        conv.kernel_size == (1, 1) and conv.stride == (stride, stride) and conv.padding == (0, 0)
    )
    own = _alone(norm) and norm.training and norm.fused
    exact = own and norm.weight.dtype == conv.weight.dtype == membrane_dtype(dtype)
    return bool(plain and alike and exact and dtype in pointwise.DTYPES and pointwise.fits(x))


def _alone(norm: nn.Module) -> bool:
    """Whether a norm is the same at all steps, and of this rank."""
    return isinstance(norm, Norm) and norm.step_gain is None and norm.process_group is None


def _precision(x: Tensor) -> torch.dtype:
    """What autocast gives a convolution."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _as_given(x: Tensor) -> Tensor:
    return x.to(_precision(x))
