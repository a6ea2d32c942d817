"""What the public functions share: each states its arguments and makes a ``Request`` of them, which is then answered.

By the kernels, or by the definition: a function and its ``..._reference`` are one signature and one reading of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec

import torch

from .definition import define
from .fire import fire
from .neuron import Call, Inputs, Neuron, Norm, Outputs, States

P = ParamSpec("P")
Reset = Literal["soft", "hard", "none"]
Several = tuple[torch.Tensor, ...]
"""Spikes, and behind them what else was asked for."""
WithStates = tuple[torch.Tensor, States]


class Request(NamedTuple):
    """A call: what ``fire`` and ``define`` take."""

    inputs: Inputs
    neuron: Neuron
    call: Call
    norm: Norm | None = None
    probe: torch.Tensor | None = None


def by_kernels(function: Callable[P, Request]) -> Callable[P, Any]:
    """The public function of one that makes a request of its arguments."""

    @functools.wraps(function)
    def public(*args: P.args, **options: P.kwargs) -> Any:
        request = function(*args, **options)
        return _answer(request.neuron, fire(*request))

    public.__annotations__["return"] = "torch.Tensor | tuple"
    return public


def by_definition(public: Callable[..., Any], doc: str) -> Callable[..., Any]:
    """The definition of a public function, with its arguments but for the probe and the process group."""
    name = f"{public.__name__}_reference"

    @functools.wraps(public, updated=())
    def reference(*args: Any, smooth: bool = False, **options: Any) -> Any:
        request = public.__wrapped__(*args, **options)  # type: ignore[attr-defined]
        return _answer(request.neuron, define(*request, smooth=smooth))

    reference.__name__ = reference.__qualname__ = name
    reference.__doc__ = doc
    return reference


def _answer(neuron: Neuron, out: Outputs) -> Any:
    """The spikes, with whatever else was asked for behind them."""
    if out.v_last is out.trace is out.current is None:
        return out.spikes
    if neuron.kind != "lif":
        assert out.v_last is not None
        m_last = torch.zeros_like(out.v_last) if out.m_last is None else out.m_last
        return out.spikes, States(out.v_last, m_last)
    found = (out.spikes, out.v_last, out.trace, out.current)
    return tuple(value for value in found if value is not None)
