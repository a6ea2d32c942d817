"""Neurons whose spikes come back by a matrix (recurrent.py) in eager PyTorch: a step's graph, node by node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..neuron import Neuron, membrane_dtype
from .eager import constants_of, observed


@torch.no_grad()
def forward(x: Tensor, matrix: Tensor, first: Tensor | None, neuron: Neuron, out: Any) -> None:
    """Fill what ``out``, a ``Window``, holds tensors for."""
    wide, step = membrane_dtype(x.dtype), neuron.step
    currents, matrix = x.to(wide), matrix.to(wide)
    constants = constants_of(neuron, currents)
    if first is None:
        states = [torch.full_like(currents[0], start) for start in neuron.starts]
        s = torch.zeros_like(currents[0])
    else:
        *states, s = first
    for t, x_t in enumerate(currents):
        s, states, kept = step.keeping(x_t + _product(s, matrix.t()), states, constants)
        out.spikes[t] = s
        if out.trace is not None:
            out.trace[t] = states[0]
        if out.kept is not None:
            out.kept[:, t] = torch.stack(kept)
    if out.states is not None:
        out.states.copy_(torch.stack([*states, s]))


@torch.no_grad()
def backward(upstream: Any, kept: Tensor, matrix: Tensor, neuron: Neuron, out: Any) -> None:
    """Fill what ``out``, ``Found``, holds tensors for."""
    wide, step = membrane_dtype(matrix.dtype), neuron.step
    by_spikes, matrix = upstream.spikes.to(wide), matrix.to(wide)
    constants = constants_of(neuron, by_spikes)
    if upstream.states is None:
        *by, returned = [torch.zeros_like(by_spikes[0])] * (len(step.states) + 1)
    else:
        *by, returned = upstream.states
    learnt = by_spikes.new_zeros(neuron.rows, neuron.channels)
    for t in reversed(range(len(by_spikes))):
        grad = by_spikes[t] + returned
        if upstream.trace is not None:
            by[0] = by[0] + upstream.trace[t]
        walked = step.back_from([*kept[:, t]], constants, (grad, *by))
        if out.probe is not None:
            out.probe[t] = observed(walked, grad, by[0])
        for row, by_constant in zip(step.rows, walked.constants, strict=True):
            if row >= 0:
                learnt[row] += by_constant.sum(0) if neuron.channels > 1 else by_constant.sum()
        out.dx[t], by = walked.x, list(walked.states)
        returned = _product(walked.x, matrix)
    if out.states is not None:
        out.states.copy_(torch.stack([*by, returned]))
    if out.constants is not None:
        out.constants.copy_(learnt)


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
