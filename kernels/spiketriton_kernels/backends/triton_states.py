"""The second operator's neurons by the kernels of triton_neuron, until ``fire`` dispatches every kind itself."""

from __future__ import annotations

import torch

from ..layout import chunk_length
from ..neuron import Gradients, Inputs, Neuron, Outputs, Upstream
from ..state_neuron import StateNeuron
from . import triton_neuron

_KINDS = {"integer": "ilif", "complementary": "clif", "adaptive": "alif", "leaky": "lif"}
_ROWS = ("decay", "threshold", "rho", "beta", "gain")


def _neuron(given: StateNeuron) -> Neuron:
    return Neuron(
        decay=given.decay, gain=given.gain, threshold=given.threshold, reset=given.reset.replace(" ", "_"),
        v_reset=given.v_reset, detach_reset=given.detach_reset, shape=given.shape, height=given.height,
        width=given.width, kind=_KINDS[given.kind], rho=given.rho, beta=given.beta, levels=given.levels,
    )  # fmt: skip


def _states(saved: torch.Tensor, neuron: Neuron, x: torch.Tensor) -> torch.Tensor | None:
    rows = -(-x.shape[0] // chunk_length(x.shape[0], neuron.holds_more)) - 1
    if not rows or not saved.numel():
        return None
    states, neurons = 2 if neuron.has_m else 1, x[0].numel()
    return saved.view(-1)[: rows * states * neurons].view(rows, states, neurons)


def forward(x, v_init, m_init, neuron, spikes, v_last, m_last, trace, saved) -> None:
    own = _neuron(neuron)
    if m_last is not None and not own.has_m:
        m_last.zero_()
        m_last = None
    out = Outputs(spikes, v_last, m_last, trace, _states(saved, own, x))
    triton_neuron.forward(Inputs(x, v_init, m_init), own, out, False, None)


def backward(
    grad_s, grad_v, grad_m, grad_trace, x, saved, v_init, m_init, neuron, dx, dv_init, dm_init, parameters
) -> None:  # fmt: skip
    own = _neuron(neuron)
    if dm_init is not None and not own.has_m:
        dm_init.zero_()
        dm_init = None
    found = None if parameters is None else dx.new_empty(
        (own.rows, own.parameter_size), dtype=torch.float32
    )  # fmt: skip
    out = Gradients(dx=dx, v_init=dv_init, m_init=dm_init, parameters=found)
    upstream = Upstream(grad_s, grad_v, grad_m if own.has_m else None, grad_trace)
    triton_neuron.backward(
        upstream, Inputs(x, v_init, m_init), _states(saved, own, x), own, 0.0, None, out
    )
    if parameters is not None and found is not None:
        parameters.zero_()
        names = ("decay", "threshold", "width", "gain", "rho", "beta")
        for row, value in zip(names, found, strict=False):
            if row in _ROWS:
                parameters[_ROWS.index(row)] = value
