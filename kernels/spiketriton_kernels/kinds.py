"""Our own neurons as steps: what the definition computes of one time step, traced as a step of one's own is.

Constants keep their places: a step reads them by the names of ``definition.Constants``, and "inverse_width".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .definition import Constants, charge, discharge
from .neuron import PARAMETERS, Neuron
from .steps.graph import Graph, Ref, Value
from .steps.step import Step, trace


class Printed(NamedTuple):
    """A kind's step, whose gradients by constants are in the order of ``PARAMETERS``, and which constants it reads."""

    step: Step
    reads: tuple[str, ...]


def printed(neuron: Neuron) -> Printed:
    """The step of a kind of ours; a constant is learnt where it is a tensor."""
    pairs = zip(PARAMETERS, neuron.parameters, strict=True)
    learns = tuple(name for name, value in pairs if isinstance(value, Tensor))
    return _printed(
        neuron.kind, neuron.reset, neuron.v_reset, neuron.detach_reset, neuron.shape, neuron.levels, learns
    )  # fmt: skip


_FROM = {"leak": "decay", "rest": "rho"}
"""1 minus these."""


@functools.cache
def _printed(
    kind: str, reset: str, v_reset: float, detach: bool, shape: str, levels: int, learns: tuple[str, ...]
) -> Printed:  # fmt: skip
    neuron = Neuron(0.0, 1.0, 1.0, reset, v_reset, detach, shape, 1.0, 1.0, kind, levels=levels)
    constants = {name: _FROM.get(name, name) in learns for name in Constants._fields}

    def function(x: Tensor, before: Sequence[Tensor], given: Mapping[str, Tensor]) -> Any:
        c = Constants(**given)
        h, m = charge(x, before[0], before[-1], c, neuron)
        return discharge(h, m, c, neuron)[: 1 + neuron.states]

    step, _ = trace(
        kind, function, discharge.__code__, ("v", "m")[: neuron.states], (0.0,) * neuron.states,
        constants, torch.Size((2, 3)), torch.float32,
    )  # fmt: skip
    reads = tuple(_name(step.graph, ref) for ref in step.reads)
    by = dict(zip(reads, step.by_constants, strict=True))
    rows = [by.get(name, 0.0) for name in PARAMETERS]
    for name, source in _FROM.items():
        if isinstance(by.get(name), Ref):
            row = PARAMETERS.index(source)
            rows[row] = step.graph.add("sub", rows[row], by[name])
    return Printed(dataclasses.replace(step, by_constants=tuple(rows)), reads)


def _name(graph: Graph, ref: Value) -> str:
    assert isinstance(ref, Ref)
    node = graph.nodes[ref]
    if node.op == "input":
        return str(node.args[0])
    width = graph.nodes[node.args[1]]  # type: ignore[index]
    assert (node.op, node.args[0], width.args) == ("div", 1.0, ("width",)), node
    return "inverse_width"
