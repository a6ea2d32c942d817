"""Neurons beyond LIF in eager PyTorch: the kernels' algorithm on any device, a step at a time."""

from __future__ import annotations

from typing import Any

import torch

from ..arguments import along_channels
from ..neuron import membrane_dtype
from ..state_neuron import StateNeuron
from ..surrogate import unit_slope


def _charge(
    v: torch.Tensor, x: torch.Tensor, constants: tuple[Any, ...], neuron: StateNeuron
) -> torch.Tensor:
    """h of a step from the membrane before it; a delayed reset comes first."""
    decay, threshold, _, _, gain = constants
    if neuron.leaks_to_reset:
        return v + gain * x - (1 - decay) * (v - neuron.v_reset)
    if neuron.reset == "delayed hard":
        return decay * torch.where(v >= threshold, 0.0, v) + gain * x
    h = decay * v + gain * x
    return h - threshold * (v >= threshold).to(h.dtype) if neuron.reset == "delayed soft" else h


def _settle(
    h: torch.Tensor, m: torch.Tensor, constants: tuple[Any, ...], neuron: StateNeuron
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(spikes, membrane, second state) after a step with the potential h and the second state m before it."""
    decay, threshold, rho, beta, _ = constants
    if neuron.kind == "integer":
        s = torch.round((h / threshold).clamp(0, neuron.levels))
        return s, h - threshold * s, m
    if neuron.kind == "complementary":
        s = (h >= threshold).to(h.dtype)
        m = m * torch.sigmoid((1 - decay) * h) + s
        return s, h - s * (threshold + torch.sigmoid(m)), m
    level = threshold + beta * m if neuron.kind == "adaptive" else threshold
    fired = h >= level
    s = fired.to(h.dtype)
    v = h
    if neuron.reset == "soft":
        v = h - level * s
    elif neuron.reset == "hard":
        v = torch.where(fired, neuron.v_reset, h)
    return s, v, rho * m + (1 - rho) * s if neuron.kind == "adaptive" else m


def _start(
    x: torch.Tensor, v: torch.Tensor | None, m: torch.Tensor | None, value: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = membrane_dtype(x.dtype)
    return (
        torch.full_like(x[0], value, dtype=wide) if v is None else v,
        torch.zeros_like(x[0], dtype=wide) if m is None else m,
    )


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
    """Fill spikes and the last states. ``saved`` stays empty: the walk back replays the whole window."""
    wide = membrane_dtype(x.dtype)
    constants = tuple(along_channels(p, x, wide) for p in neuron.parameters)
    v, m = _start(x, v_init, m_init, neuron.v_start)
    for t in range(x.shape[0]):
        h = _charge(v, x[t].to(wide), constants, neuron)
        spikes[t], v, m = _settle(h, m, constants, neuron)
        if trace is not None:
            trace[t] = v
    if v_last is not None and m_last is not None:
        v_last.copy_(v)
        m_last.copy_(m)


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
    """Replay both states, walk back, fill dx and what else is not None; ``parameters`` is [5, C or 1]."""
    wide = membrane_dtype(x.dtype)
    constants = tuple(along_channels(p, x, wide) for p in neuron.parameters)
    decay, threshold, rho, beta, gain = constants
    v, m = _start(x, v_init, m_init, neuron.v_start)
    window = []
    for t in range(x.shape[0]):
        h = _charge(v, x[t].to(wide), constants, neuron)
        s, after_v, after_m = _settle(h, m, constants, neuron)
        window.append((h, v, m, s, after_m))
        v, m = after_v, after_m
    if parameters is not None:
        parameters.zero_()
    by_v, by_m = _start(x, grad_v, grad_m)
    for t in range(x.shape[0] - 1, -1, -1):
        h, v, m, s, after_m = window[t]
        grad = grad_s[t].to(wide)
        if grad_trace is not None:
            by_v = by_v + grad_trace[t]
        by_decay = by_rho = by_beta = before = torch.zeros_like(h)
        if neuron.kind == "integer":
            z = h / threshold
            slope = ((z >= 0) & (z <= neuron.levels)).to(wide) / threshold
            through = grad if neuron.detach_reset else grad - by_v * threshold
            by_h = through * slope + by_v
            by_threshold = -(through * slope * z) - by_v * s
        else:
            level = threshold + beta * m if neuron.kind == "adaptive" else threshold
            slope = neuron.height * unit_slope(neuron.shape, (h - level) / neuron.width)
            if neuron.kind == "complementary":
                g, q = torch.sigmoid(after_m), torch.sigmoid((1 - decay) * h)
                by_m = by_m - by_v * s * g * (1 - g)
                through = grad + by_m
                if not neuron.detach_reset:
                    through = through - by_v * (threshold + g)
                bend = by_m * m * q * (1 - q)
                by_h = through * slope + by_v + bend * (1 - decay)
                by_decay, before = -bend * h, by_m * q
                by_threshold = -through * slope - by_v * s
            else:
                through = grad + (1 - rho) * by_m if neuron.kind == "adaptive" else grad
                kept = by_v
                by_threshold = torch.zeros_like(h)
                if neuron.reset == "soft":
                    by_threshold = -by_v * s
                    through = through if neuron.detach_reset else through - by_v * level
                elif neuron.reset == "hard":
                    kept = by_v * (1 - s)
                    through = (
                        through if neuron.detach_reset else through + by_v * (neuron.v_reset - h)
                    )
                by_h = through * slope + kept
                by_threshold = by_threshold - through * slope
                if neuron.kind == "adaptive":
                    before = rho * by_m + beta * by_threshold
                    by_rho, by_beta = by_m * (m - s), by_threshold * m
        dx[t] = gain * by_h
        by_v, by_m = decay * by_h, before
        if neuron.reset.startswith("delayed"):
            fired_before = v >= threshold
            if neuron.reset == "delayed soft":
                by_threshold = by_threshold - fired_before.to(wide) * by_h
            else:
                by_v, v = torch.where(fired_before, 0.0, by_v), torch.where(fired_before, 0.0, v)
        if parameters is not None:
            if neuron.leaks_to_reset:
                v = v - neuron.v_reset
            terms = (by_h * v + by_decay, by_threshold, by_rho, by_beta, by_h * x[t].to(wide))
            for row, term in zip(parameters, terms, strict=True):
                if row.numel() > 1:
                    row += term.sum([d for d in range(term.dim()) if d != 1])
                else:
                    row += term.sum()
    if dv_init is not None and dm_init is not None:
        dv_init.copy_(by_v)
        dm_init.copy_(by_m)
