"""Our own neurons as steps: what the definition computes of one time step, traced as a step of one's own is.

Constants keep their places: a step reads them by the names of ``definition.Constants``, and "inverse_width"; in C++
"whole levels", too, which Triton is compiled for.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .definition import Constants, charge, discharge
from .neuron import GIVEN, PARAMETERS, Neuron
from .steps.graph import Graph, Node, Ref, Value
from .steps.printed import ANY, WHOLE
from .steps.step import Step, header, trace


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


class Form(NamedTuple):
    """Of a kind what is compiled apart in C++. ``shape``: of the surrogate; ``ANY``: of all that are divided."""

    kind: str
    reset: str
    detach: bool
    shape: str
    learns: tuple[str, ...]

    @staticmethod
    @functools.cache
    def of(kind: str, reset: str, detach: bool, shape: str, learns: tuple[str, ...]) -> Form:
        if kind in _WITHOUT_SURROGATE:
            shape, learns = "none", tuple(name for name in learns if name != "width")
        return Form(kind, reset, detach or reset == "none", shape, learns)

    @staticmethod
    def named(name: str) -> Form:
        kind, reset, detach, shape, *learns = name.split(" ")
        return Form(kind, reset, detach == "detached", shape, tuple(learns))

    @property
    def name(self) -> str:
        detach = "detached" if self.detach else "attached"
        return " ".join((self.kind, self.reset, detach, self.shape, *self.learns))

    @property
    def whole(self) -> int:
        """Which of its kind's forms, ``forms``, serves in its place."""
        shape = self.shape if self.shape in ("rectangle", "none") else ANY
        learns = _LEARNS[bool(self.learns) + ("width" in self.learns)]
        return forms(self.kind).index(self._replace(shape=shape, learns=learns))

    def printed(self) -> Printed:
        shape = "atan" if self.shape in (ANY, "none") else self.shape
        found = _printed(self.kind, self.reset, 0.0, self.detach, shape, None, self.learns)
        return _of_any_shape(found) if self.shape == ANY else found


_WITHOUT_SURROGATE, _SOFT_ALONE = ("ilif",), ("ilif", "clif")
_LEARNS = (), tuple(name for name in PARAMETERS if name != "width"), PARAMETERS


@functools.cache
def forms(kind: str) -> list[Form]:
    """Those that together serve every neuron of a kind."""
    shapes = ("none",) if kind in _WITHOUT_SURROGATE else (ANY, "rectangle")
    resets = ("soft",) if kind in _SOFT_ALONE else ("soft", "hard", "none")
    learns = _LEARNS[: 2 if kind in _WITHOUT_SURROGATE else 3]
    every = itertools.product([kind], resets, (True, False), shapes, learns)
    return [*dict.fromkeys(itertools.starmap(Form.of, every))]


def header_of(made: Sequence[Form]) -> str:
    """The header that native.cpp is compiled with for these forms of a kind."""
    name = made[0].name if len(made) == 1 else made[0].kind
    found = [form.printed() for form in made]
    sources = {_word(name): _source(name) for each in found for name in each.reads}
    return header(name, [each.step for each in found], sources)


def _source(name: str) -> tuple[int, int]:
    """From which of ``GIVEN`` a constant is made, and how: ``Made`` in neurons.h."""
    if name == "inverse_width":
        return GIVEN.index("width"), 2
    return GIVEN.index(_FROM.get(name, name)), int(name in _FROM)


def _word(name: str) -> str:
    return name.replace(" ", "_")


def _of_any_shape(printed: Printed) -> Printed:
    """Where the surrogate's number is one more constant."""
    step, graph = printed.step, Graph()
    for node in printed.step.graph.nodes:
        surrogate = node.op in ("phi", "area")
        graph.nodes.append(Node(node.op, (ANY, *node.args[1:])) if surrogate else node)
    number = graph.add("input", "shape")
    step = dataclasses.replace(
        step, graph=graph, constants=(*step.constants, "shape"), reads=(*step.reads, number)
    )
    return Printed(step, (*printed.reads, "shape"))


_FROM = {"leak": "decay", "rest": "rho"}
"""1 minus these."""


@functools.cache
def _printed(
    kind: str, reset: str, v_reset: float, detach: bool, shape: str, levels: int | None, learns: tuple[str, ...]
) -> Printed:  # fmt: skip
    neuron = Neuron(
        0.0, 1.0, 1.0, reset, v_reset, detach, shape, 1.0, 1.0, kind, levels=levels or 1
    )
    names = (*Constants._fields, WHOLE)[: None if levels is None else -1]
    constants = {name: _FROM.get(name, name) in learns for name in names}

    def function(x: Tensor, before: Sequence[Tensor], given: Mapping[str, Tensor]) -> Any:
        c = Constants(*map(given.get, Constants._fields))
        these: Any = levels if levels is not None else given[WHOLE]
        now = neuron._replace(levels=these)
        h, m = charge(x, before[0], before[-1], c, now)
        return discharge(h, m, c, now)[: 1 + neuron.states]

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
    words = tuple(map(_word, reads))
    return Printed(dataclasses.replace(step, constants=words, by_constants=tuple(rows)), reads)


def _name(graph: Graph, ref: Value) -> str:
    assert isinstance(ref, Ref)
    node = graph.nodes[ref]
    if node.op == "input":
        return str(node.args[0])
    width = graph.nodes[node.args[1]]  # type: ignore[index]
    assert (node.op, node.args[0], width.args) == ("div", 1.0, ("width",)), node
    return "inverse_width"
