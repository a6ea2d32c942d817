"""What a traced step is to the backends: a graph forward and backward, printed as C++ and as Triton."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

from ..cache import cache_folder, write_once
from ..surrogate import SHAPES, own_surrogate, unit_slope
from .graph import Graph, Ref, Value
from .printed import ANY, CALLED, LONG, OF_ARRAYS, Writer, evaluate
from .record import Recorder, Refused, recorded

Function = Callable[[Tensor, Sequence[Tensor], Mapping[str, Tensor]], Any]
"""A step: current, states, constants by name -> spikes and the states after."""


class Hoisted(NamedTuple):
    """The constants that a step reads: those of the neuron, and what is computed of them alone, once a call.

    ``names``: of the neuron's, which are the first values. ``calls`` make the following ones: an operator by name
    (torch.compile guards no functions that it is handed), its arguments (whether it is the value of this number, or
    itself), and its options. ``reads``: the constants among them.
    """

    names: tuple[str, ...]
    calls: tuple[tuple[str, str, tuple[tuple[bool, Any], ...], tuple[tuple[str, Any], ...]], ...]
    reads: tuple[int, ...]

    def of(self, given: Mapping[str, float | Tensor], x: Tensor) -> tuple[float | Tensor, ...]:
        """For a call on x: tensors by PyTorch, with gradient, and numbers of numbers alone as Python has them."""
        values = [given[name] for name in self.names]
        for operator, overload, args, options in self.calls:
            taken = [values[arg] if is_value else arg for is_value, arg in args]
            read = [values[arg] for is_value, arg in args if is_value]
            if not any([isinstance(value, Tensor) for value in read]):
                values.append(_of_numbers(operator, overload, args, taken, options))
                continue
            wide = next(value.dtype for value in read if isinstance(value, Tensor))
            for i, (is_value, _) in enumerate(args):
                if is_value and not isinstance(taken[i], Tensor):
                    taken[i] = torch.full((), taken[i], dtype=wide, device=x.device)
            function = getattr(getattr(torch.ops.aten, operator), overload)
            values.append(function(*taken, **dict(options)))
        return tuple([values[i] for i in self.reads])


_PYTHON: dict[str, Callable[..., float]] = {
    "rsub": lambda a, b: b - a,
    "sub": lambda a, b: a - b,
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "reciprocal": lambda a: 1.0 / a,
}
"""Operators on numbers, where torch.compile may know them by name alone."""


def _of_numbers(
    operator: str, overload: str, args: Any, taken: Sequence[Any], options: Any
) -> float:
    if operator in _PYTHON and not options and len(taken) < 3 and 0.0 not in taken[1:]:
        return _PYTHON[operator](*taken)
    function = getattr(getattr(torch.ops.aten, operator), overload)
    pairs = zip(args, taken, strict=True)
    exact = [torch.tensor(v, dtype=torch.float64) if is_value else v for (is_value, _), v in pairs]
    return float(function(*exact, **dict(options)))


def _calls(recorder: Recorder, own: Mapping[Ref, str], reads: Sequence[Ref]) -> Hoisted:
    needed = recorder.graph.needed(reads)
    order = [ref for ref in needed if ref in own] + [ref for ref in needed if ref not in own]
    place = {ref: i for i, ref in enumerate(order)}
    calls = []
    for ref in order:
        if ref not in own:
            function, args, named = recorder.calls[ref]
            taken = tuple((isinstance(a, Ref), place[a] if isinstance(a, Ref) else a) for a in args)
            _, operator, overload = function.split(".")
            calls.append((operator, overload, taken, tuple(named.items())))
    names = tuple(own[ref] for ref in order if ref in own)
    return Hoisted(names, tuple(calls), tuple(place[ref] for ref in reads))


@dataclass(frozen=True, eq=False)
class Step:
    """A step as a graph. Values are nodes of it, or numbers.

    ``kept``: from what the way back is computed of a step, besides constants and gradients.
    ``jump``: how far the first state after a step changes with that before it, at a fixed current and fixed other
    states. ``unit``: the largest phi of its spikes.
    """

    name: str
    graph: Graph = field(repr=False)
    states: tuple[str, ...]
    starts: tuple[float, ...]
    constants: tuple[str, ...]
    x: Ref
    before: tuple[Ref, ...]
    reads: tuple[Ref, ...]
    spikes: Value
    after: tuple[Value, ...]
    grad: Ref
    grads: tuple[Ref, ...]
    by_x: Value
    by_states: tuple[Value, ...]
    by_constants: tuple[Value, ...]
    jump: Value
    unit: Value
    kept: tuple[Ref, ...]
    form: Any = field(default=None, repr=False)
    """Of a neuron of ours which of its forms it is (``forms.Form``)."""
    word: str = ""
    """By which ``forms.named`` finds it: its form's, or its name."""

    @functools.cached_property
    def surrogates(self) -> tuple[str, ...]:
        """The surrogates that it calls by their names."""
        nodes = self.graph.nodes
        return tuple(dict.fromkeys(str(n.args[0]) for n in nodes if n.op in ("phi", "area")))

    @functools.cached_property
    def own_surrogate(self) -> str:
        """The surrogate of one's own that it calls; "" for none."""
        return next((shape for shape in self.surrogates if shape not in (*SHAPES, ANY)), "")

    @functools.cached_property
    def rows(self) -> tuple[int, ...]:
        """By constant its row among the gradients; -1: it has none."""
        return tuple(sum(self.learns[:i]) if learns else -1 for i, learns in enumerate(self.learns))

    @functools.cached_property
    def learns_width(self) -> bool:
        """Whether the width of a surrogate learns."""
        return any(node.op == "area" for node in self.graph.nodes)

    @functools.cached_property
    def holds_more(self) -> bool:
        """Whether a way back keeps more of a step than one value."""
        return len(self.kept) > 1 or len(self.states) > 1

    @functools.cached_property
    def is_binary(self) -> bool:
        """Whether its spikes are 0 or 1."""
        return isinstance(self.spikes, Ref) and self.graph.nodes[self.spikes].op == "count"

    @functools.cached_property
    def waits(self) -> bool:
        """Whether from a state to the states after a step there is an operation that takes long."""
        moving = self.graph.after(self.before)
        needed = self.graph.needed(self.after)
        return any(ref in moving and self.graph.nodes[ref].op in LONG for ref in needed)

    @functools.cached_property
    def group(self) -> int:
        """In C++, of how many vectors it is computed at a time: where it calls functions of arrays, several."""
        return 4 if self._everything & OF_ARRAYS else 1

    @functools.cached_property
    def calls(self) -> bool:
        """Whether it calls functions that are PyTorch's own in C++."""
        return bool(self._everything & {*CALLED, "sigmoid"})

    @functools.cached_property
    def _everything(self) -> frozenset[str]:
        """The operations of both ways."""
        needed = self.graph.needed([*self.after, *self.kept, *self._back], self.reads)
        return frozenset(self.graph.nodes[ref].op for ref in needed)

    @functools.cached_property
    def operations(self) -> frozenset[str]:
        """Those of the way forth."""
        needed = self.graph.needed([self.spikes, *self.after])
        return frozenset(self.graph.nodes[ref].op for ref in needed)

    @functools.cached_property
    def learns(self) -> tuple[bool, ...]:
        """By gradient of a constant whether it is other than 0."""
        return tuple(isinstance(value, Ref) or value != 0.0 for value in self.by_constants)

    @property
    def takes_tensors(self) -> bool:
        """Whether a constant may be a tensor: of a neuron of ours a form says so."""
        return self.form is None or bool(self.form.learns)

    @property
    def _back(self) -> list[Value]:
        wanted = [self.by_x, *self.by_states, *self.by_constants, self.jump, self.unit]
        return [*wanted, self.spikes]

    # ---- in PyTorch

    def forth(
        self, x: Tensor, states: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """(spikes, states after)."""
        spikes, *after = self._evaluated([self.spikes, *self.after], x, states, constants)
        return spikes, after

    def keeping(
        self, x: Tensor, states: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(spikes, states after, ``kept``)."""
        wanted = [self.spikes, *self.after, *self.kept]
        spikes, *rest = self._evaluated(wanted, x, states, constants)
        return spikes, rest[: len(self.states)], rest[len(self.states) :]

    def back(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        constants: Sequence[Tensor],
        grads: Sequence[Tensor],
    ) -> Walked:
        """The way back of a step from the gradients by its spikes and the states after it."""
        return self._parted(self._evaluated(self._back, x, states, constants, grads))

    def back_from(
        self, kept: Sequence[Tensor], constants: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Walked:
        """The same from what the step kept."""
        names, values = [*self.kept, *self.reads], [*kept, *constants]
        return self._parted(self._values(self._back, names, values, grads))

    def _parted(self, found: list[Tensor]) -> Walked:
        by_x, *rest = found
        count = len(self.states)
        return Walked(by_x, rest[:count], rest[count:-3], *rest[-3:])

    def _evaluated(
        self, wanted: Sequence[Value], x: Tensor, states: Sequence[Tensor], constants: Sequence[Tensor],
        grads: Sequence[Tensor] = (),
    ) -> list[Tensor]:  # fmt: skip
        names = [self.x, *self.before, *self.reads]
        return self._values(wanted, names, [x, *states, *constants], grads)

    def _values(
        self,
        wanted: Sequence[Value],
        names: list[Ref],
        values: list[Tensor],
        grads: Sequence[Tensor],
    ) -> list[Tensor]:
        """What is wanted, from the values of these nodes and the gradients, where there are any."""
        if grads:
            names, values = [*names, self.grad, *self.grads], [*values, *grads]
        found, like = evaluate(self.graph, dict(zip(names, values, strict=True)), wanted), values[0]
        return [
            torch.as_tensor(v, dtype=like.dtype, device=like.device).expand_as(like) for v in found
        ]

    # ---- printed

    def _forth(self, cpp: bool) -> Writer:
        """What writes the way forth, from the current and the states before it."""
        names = {self.x: "x", **dict(zip(self.before, self.states, strict=True))}
        return Writer(self.graph, names | self._read(cpp), cpp)

    def _walk(self, cpp: bool) -> Writer:
        """What writes the way back, from what is kept and the gradients."""
        names = {ref: f"k{i}" for i, ref in enumerate(self.kept)} | {self.grad: "grad"}
        names |= {g: f"by_{name}" for g, name in zip(self.grads, self.states, strict=True)}
        fused = () if cpp else self.graph.after([self.grad, *self.grads])
        return Writer(self.graph, self._read(cpp) | names, cpp, fused)

    def _read(self, cpp: bool) -> dict[Ref, str]:
        place = "c." if cpp else ""
        return {ref: place + name for ref, name in zip(self.reads, self.constants, strict=True)}

    # ---- in C++

    @functools.cached_property
    def cpp(self) -> str:
        """The header that native.cpp is compiled with."""
        return header(self.name, [self])

    def alike_in_cpp(self, *more: Value) -> str:
        """What computes its spikes, the states after it and more, alike where it is the same."""
        forth, wanted = self._forth(cpp=True), [*self.after, *more]
        text = "\n".join([*forth.lines([self.spikes, *wanted]), *map(forth.of, wanted)])
        order = list(dict.fromkeys(re.findall(r"\bt\d+\b", text)))
        return re.sub(r"\bt\d+\b", lambda found: f"t{order.index(found[0])}", text)

    def struct(self, number: int, constants: Sequence[str]) -> str:
        """Its functions, by its number in a header of steps with these constants."""
        S, K = len(self.states), len(self.kept)
        places = ", ".join(f"at({constants.index(name)})" for name in self.constants)
        forth = self._forth(cpp=True)
        body = [f"const V {name} = states[{i}];" for i, name in enumerate(self.states)]
        body += forth.lines([self.spikes, *self.after, *self.kept])
        body += [f"states[{i}] = {forth.of(v)};" for i, v in enumerate(self.after)]
        body += [f"kept[{i}] = {forth.of(v)};" for i, v in enumerate(self.kept)]
        spikes = self.graph.nodes[self.spikes].args[0] if self.is_binary else self.spikes  # type: ignore[index]
        body += [f"return {forth.of(spikes)};"]  # type: ignore[arg-type]

        back = self._walk(cpp=True)
        walk = [f"const V k{i} = kept[{i}];" for i in range(K)]
        walk += [f"const V by_{name} = by[{i}];" for i, name in enumerate(self.states)]
        walk += back.lines(self._back)
        walk += ["Walked w;"]
        fields = [("x", self.by_x), ("jump", self.jump), ("unit", self.unit)]
        fields.append(("spikes", self.spikes))
        fields += [(f"states[{i}]", v) for i, v in enumerate(self.by_states)]
        pairs = zip(self.constants, self.by_constants, self.learns, strict=True)
        fields += [(f"learnt[{constants.index(c)}]", v) for c, v, learns in pairs if learns]
        walk += [f"w.{name} = {back.of(value)};" for name, value in fields] + ["return w;"]
        declared = f"V {', '.join(self.constants)}; " if self.constants else ""
        # groups are passed through memory
        inlined = f"{'__attribute__((always_inline)) ' * (self.group > 1)}static inline"
        return f"""\
struct Step{number} {{
    struct Constants {{ {declared}}};
    struct Walked {{ V x, states[{S}], learnt[CONSTANTS + 1], jump, unit, spikes; }};

    template <class At>
    static Constants of(At at) {{ return {{{places}}}; }}

    {inlined} {"Mask" if self.is_binary else "V"} forth(const Constants &c, V x, V *states, V *kept) {{
        {_indented(body, 8)}
    }}

    {inlined} Walked back(const Constants &c, const V *kept, V grad, const V *by) {{
        {_indented(walk, 8)}
    }}
}};
"""

    # ---- in Triton

    @functools.cached_property
    def triton(self) -> str:
        """The module with ``forth`` and ``back``, two functions that the kernels are compiled with."""
        forth = self._forth(cpp=False)
        made = forth.lines([self.spikes, *self.after, *self.kept])
        outs = [forth.of(v) for v in (self.spikes, *self.after, *self.kept)]
        body = [f"{name} = states[{i}]" for i, name in enumerate(self.states)]
        body += [*self._of_constants([*made, *outs]), *made]
        moving = self.graph.after([self.x, *self.before, self.grad, *self.grads])

        def tile(writer: Writer, value: Value, like: str) -> str:
            text = writer.of(value)
            return (
                text
                if value in moving and isinstance(value, Ref)
                else f"{text} + tl.zeros({like}.shape, tl.float32)"
            )

        after = [tile(forth, v, "x") for v in self.after]
        kept = [tile(forth, v, "x") for v in self.kept]
        body += [f"return {tile(forth, self.spikes, 'x')}, {_tuple(after)}, {_tuple(kept)}"]

        back = self._walk(cpp=False)
        made = back.lines(self._back)
        walk = [f"k{i} = kept[{i}]" for i in range(len(self.kept))]
        walk += self._of_constants([*made, *map(back.of, self._back)])
        walk += [f"by_{name} = by[{i}]" for i, name in enumerate(self.states)]
        walk += made
        by_states = _tuple([tile(back, v, "grad") for v in self.by_states])
        learnt = [v for v, learns in zip(self.by_constants, self.learns, strict=True) if learns]
        by_constants = _tuple([tile(back, v, "grad") for v in learnt or (0.0,)])
        rest = [tile(back, v, "grad") for v in (self.jump, self.unit, self.spikes)]
        walk += [
            f"return {tile(back, self.by_x, 'grad')}, {by_states}, {by_constants}, {', '.join(rest)}"
        ]
        used = "\n".join([*body, *walk])
        package = __name__.partition(".")[0]
        imports = f"from {package}.triton_import import jit, tl"
        called = [f for f in _POINTWISE if re.search(rf"(?<![.\w]){f}\(", used)]
        if called:
            imports += f"\nfrom {package}.backends.triton_pointwise import {', '.join(called)}"
        return f'''\
"""{self.name}: what a step makes of its current x and the states before it, and the gradient's way back.

Printed from its step in PyTorch by spiketriton_kernels/steps; c: constants, kept: what the way back reads.
"""

{imports}


@jit
def forth(x, states, c):
    """(spikes, states after, kept)"""
    {_indented(body)}


@jit
def back(kept, c, grad, by, own_slope: tl.constexpr, own_area: tl.constexpr):
    """(gradient by x, by the states before, by the constants that learn, jump, unit, spikes)"""
    {_indented(walk)}
'''

    def _of_constants(self, lines: Sequence[str]) -> list[str]:
        """In Triton, what makes those that these lines read."""
        words = set(re.findall(r"\w+", " ".join(lines)))
        return [f"{c} = c[{i}]" for i, c in enumerate(self.constants) if c in words]

    @functools.cached_property
    def functions(self) -> tuple[Any, Any]:
        """``forth`` and ``back`` in Triton."""
        path = written(self.name, self.triton, "py")
        spec = importlib.util.spec_from_file_location(f"spiketriton_step_{self.name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.forth, module.back


class Walked(NamedTuple):
    """What the way back of a step finds."""

    x: Tensor
    states: Sequence[Tensor]
    constants: Sequence[Tensor]
    jump: Tensor
    unit: Tensor
    spikes: Tensor


_POINTWISE = (
    "divided", "expm1", "log1p", "nearest", "phi", "primitive", "sigmoid", "sign", "tanh", "trunc",
)  # fmt: skip


def header(name: str, steps: Sequence[Step], whole: bool = False) -> str:
    """What native.cpp is compiled with for these steps, of the same states, each by its number.

    whole: they are many, a kind's; what learns is then compiled once, in its rarer mode.
    """
    first, shared = steps[0], _first([step.alike_in_cpp() for step in steps])
    replayed = _first([step.alike_in_cpp(*step.kept) for step in steps])
    constants = constants_of(steps)

    def numbers(kind: str, field: str, values: Iterable[Any]) -> str:
        told = [str(value).lower() if isinstance(value, bool) else repr(value) for value in values]
        return f"constexpr {kind} {field} = {{{', '.join(told)}}};"

    of = [dict(zip(step.constants, step.learns, strict=True)) for step in steps]
    flags = [["01"[one.get(c, False)] for c in constants] + ["0"] for one in of]
    learns = ", ".join("{" + ", ".join(one) + "}" for one in flags)
    varies = [False] * len(steps)
    for i, step in enumerate(steps):
        for place in (i, shared[i], replayed[i]):
            varies[place] |= step.takes_tensors
    waits = any(step.waits and step.group == 1 for step in steps)  # of a group no vector need wait
    return f"""\
// {name}: what a step makes of its current x and the states before it, and the gradient's way back.
// Printed from its step in PyTorch by spiketriton_kernels/steps; c: constants, kept: what the way back reads.

#pragma once

constexpr int FORMS = {len(steps)}, STATES = {len(first.states)}, CONSTANTS = {len(constants)};
constexpr int KEPT = {max(len(s.kept) for s in steps)};
{numbers("int", "KEEPS[FORMS]", (len(step.kept) for step in steps))}
{numbers("int", "FORTH_AS[FORMS]", shared)}  // the first step of the same spikes and states
{numbers("int", "REPLAY_AS[FORMS]", replayed)}  // and of the same that is kept
constexpr bool LEARNS[FORMS][CONSTANTS + 1] = {{{learns}}};  // the gradient of another is 0
{numbers("bool", "LEARNING[FORMS]", (any(step.learns) for step in steps))}
{numbers("bool", "VARIES[FORMS]", varies)}  // whether a constant of one that it serves may differ between neurons
constexpr bool WHOLE = {str(whole).lower()};  // whether what learns is compiled once
constexpr bool WAITS = {str(waits).lower()};  // whether a step waits long for the one before
constexpr bool CALLS = {str(any(step.calls for step in steps)).lower()};  // whether one calls functions of PyTorch's

{"".join(step.struct(i, constants) for i, step in enumerate(steps))}
using Steps = std::tuple<{", ".join(f"Step{i}" for i in range(len(steps)))}>;
"""


def _first(alike: Sequence[str]) -> list[int]:
    """By place the first one that is the same."""
    return [alike.index(text) for text in alike]


def constants_of(steps: Sequence[Step]) -> list[str]:
    """What they read together, in the order in which C++ is given it."""
    return [*dict.fromkeys(name for step in steps for name in step.constants)]


def _indented(lines: Sequence[str], by: int = 4) -> str:
    return ("\n" + " " * by).join(lines)


def _tuple(values: Sequence[str]) -> str:
    return f"({', '.join(values)},)"


def written(name: str, text: str, ending: str) -> Path:
    """The file in the cache that has this source."""
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    return write_once(cache_folder() / "steps" / f"{name}_{key}.{ending}", text)


_steps: dict[str, Step] = {}
"""By name."""
by_word: dict[str, Step] = {}


def trace(
    name: str,
    function: Function,
    code: CodeType,
    states: tuple[str, ...],
    starts: tuple[float, ...],
    constants: Mapping[str, bool],
    shape: torch.Size,
    dtype: torch.dtype,
    form: Any = None,
) -> tuple[Step, Hoisted]:
    """The step, and the constants that it reads.

    Args:
        name: of the class. function: its step. code: whose lines an error names.
        constants: the names of tensors that it may read, and whether they may learn.
        shape, dtype: of the tensors that it is traced with, on the CPU.
        form: of a neuron of ours, see ``Step``.

    Raises:
        Refused (a ValueError): no kernel can be made of it. TypeError: it does not return what a step has to.
    """
    recorder = Recorder(name, code, shape, dtype)
    graph = recorder.graph

    def leaf(seed: int, learns: bool = True) -> Tensor:
        values = (
            torch.linspace(0.1, 0.9, shape.numel(), dtype=dtype, device="cpu")
            .add(seed / 16)
            .view(shape)
        )
        # not a leaf, of which torch itself refuses that it is written in place, without a line
        return values.requires_grad_(learns).clone()

    with torch.inference_mode(False), torch.enable_grad():
        x, *before = (leaf(i) for i in range(1 + len(states)))
        given = {key: leaf(2, learns) for key, learns in constants.items()}
    own = {recorder.input(key, value): key for key, value in given.items()}
    refs = [
        recorder.input("x", x),
        *(recorder.input(f"state {s}", b) for s, b in zip(states, before, strict=True)),
    ]
    with recorded(recorder):
        spikes, after = returned(name, states, function(x, before, given), shape)
        end = len(graph.nodes)
        values = [recorder.value(out) for out in (spikes, *after)]
        values = [graph.add("count", v) if graph.is_boolean(v) else v for v in values]
        recorder.goes_back = True
        outputs = [*values, *recorder.later]
        number = graph.add("input", "shape") if any(f[3] == ANY for f in recorder.fired) else None
        own |= {} if number is None else {number: "shape"}
        learning = [ref for ref, key in own.items() if constants.get(key)]
        reads = _hoisted(graph, own, learning, graph.after(refs), outputs, recorder.fired)
        reads += [
            w for w in dict.fromkeys(recorder.widths) if isinstance(w, Ref) and w not in reads
        ]
        grads = [torch.ones(shape, dtype=dtype, device="cpu") for _ in (spikes, *after)]
        grad_refs = [recorder.input(f"gradient {i}", grad) for i, grad in enumerate(grads)]
        found = _walked(recorder, (spikes, *after), grads, [x, *before], reads)
        one = torch.ones_like(x)
        jump = _walked(recorder, after[:1], [one], before[:1], [])[0]
        units = [_unit(recorder, *fired) for fired in recorder.fired] + recorder.inside
    unit: Value = 1.0
    for i, one_unit in enumerate(units):
        unit = graph.add("maximum", unit, one_unit) if i else one_unit
    back = [*found, jump, unit, values[0]]
    kept = _kept(graph, refs, grad_refs, back, end)
    count = len(states)
    variables = tuple(_word(s, ()) for s in states)
    names = [_word(_told(graph, ref, own), variables) for ref in reads]
    text = repr((graph.nodes, states, starts, names, reads, values, found, jump, unit, kept))
    key = f"{_word(name, ())}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if key not in _steps:
        _steps[key] = Step(
            key, graph, variables, starts, tuple(names), refs[0], tuple(refs[1:]), tuple(reads), values[0],
            tuple(values[1:]), grad_refs[0], tuple(grad_refs[1:]), found[0], tuple(found[1 : count + 1]),
            tuple(found[count + 1 :]), jump, unit, tuple(kept), form,
            (form and form.word) or key,
        )  # fmt: skip
        by_word[_steps[key].word] = _steps[key]
    return _steps[key], _calls(recorder, own, reads)


def _told(graph: Graph, ref: Value | str, own: Mapping[Ref, str]) -> str:
    """A constant in words: its name, or how it is made of others."""
    if not isinstance(ref, Ref):
        return f"{ref:g}" if isinstance(ref, float) else ref
    if ref in own:
        return own[ref]
    op, args = graph.nodes[ref]
    words = [_told(graph, arg, own) for arg in args]
    if words[0] == "1" and op in ("sub", "div"):
        return f"{'one_minus' if op == 'sub' else 'one_over'}_{words[1]}"
    text = "_".join((op, *words))
    return text if len(text) <= 40 else f"{op}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def returned(
    name: str, states: Sequence[str], out: Any, shape: torch.Size
) -> tuple[Tensor, list[Tensor]]:
    """(spikes, states after) of what a step returned. TypeError: something else."""
    expected = ", ".join(("spikes", *states))
    if not isinstance(out, tuple | list) or len(out) != 1 + len(states):
        what = f"{len(out)} values" if isinstance(out, tuple | list) else f"a {type(out).__name__}"
        raise TypeError(f"{name}.step returned {what}; accepted: {expected}")
    for key, value in zip(("spikes", *states), out, strict=True):
        if not isinstance(value, Tensor):
            what = type(value).__name__
            raise TypeError(f"{name}.step returned a {what} as {key}; accepted: tensors {expected}")
        if value.shape != shape:
            raise TypeError(
                f"{name}.step returned {key} of shape {tuple(value.shape)}; accepted: {expected}, each of the shape of "
                f"x, here {tuple(shape)}"
            )
    return out[0], list(out[1:])


def _hoisted(graph, own, learning, moving, outputs, fired) -> list[Ref]:
    """The nodes made of constants alone that the rest reads; of what learns none is made of another one."""
    alone = graph.after(own) - moving
    free = alone - graph.after(learning)
    while True:
        readers = [n for i, n in enumerate(graph.nodes) if i not in alone and n.op != "input"]
        read = {ref for node in readers for ref in node.read} | set(outputs)
        read |= {value for u, _, reads, *_ in fired for value in (u, reads)}
        used = {ref for ref in read if isinstance(ref, Ref) and ref in alone}
        learnt = used - free
        later = {ref for ref in learnt if ref in graph.after([r for r in learnt if r != ref])}
        later |= {ref for ref in used if graph.is_boolean(ref)}
        if not later:
            return sorted(used)
        alone -= graph.after(later)


def _walked(recorder, outs, grads, inputs, reads) -> list[Value]:
    """The gradients by the inputs and by the constants, as values."""
    pairs = [(out, grad) for out, grad in zip(outs, grads, strict=True) if out.requires_grad]
    made = [[t for t in recorder.made.get(ref, ()) if t.requires_grad] for ref in reads]
    by = [*([t] for t in inputs), *made]
    flat = [t for ts in by for t in ts]
    if not pairs or not flat:
        return [0.0] * len(by)
    # torch.autograd.grad, without its look at the gradients' shapes, which imports sympy: a third of a second
    found = _engine_run_backward(
        tuple(out for out, _ in pairs),
        tuple(grad for _, grad in pairs),
        True,
        False,
        tuple(flat),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    left, values = iter(found), []
    for ts in by:
        total: Value = 0.0
        for grad in (next(left) for _ in ts):
            if grad is not None:
                value = recorder.value(grad)
                total = (
                    value
                    if total == 0.0 and not isinstance(total, Ref)
                    else recorder.graph.add("add", total, value)
                )
        values.append(total)
    return values


def _unit(recorder: Recorder, u: Value, width: Value, _: Value, shape: str, z: Any) -> Value:
    """phi of a spike."""
    own = own_surrogate(shape)
    if own is not None and not own.compiled:
        with contextlib.suppress(Refused):
            return recorder.value(unit_slope(shape, z()))
    return recorder.of_surrogate("phi", shape, u, width)


def _kept(graph, sources, grads, back, end) -> list[Ref]:
    """What of a step its way back starts from."""
    flowing = graph.after(grads)
    needed = graph.needed(back)
    targets = {
        ref for r in needed if r in flowing for ref in graph.nodes[r].read if ref not in flowing
    }
    targets |= {value for value in back if isinstance(value, Ref) and value not in flowing}
    return graph.cut(sources, sorted(targets), end) or [sources[0]]


def _word(name: str, taken: Sequence[str]) -> str:
    """A name for a variable."""
    word = re.sub(r"\W", "_", name)
    word = f"own_{word}" if word.startswith("by_") else word
    return f"{word}_" if word in (*taken, *_TAKEN) or re.fullmatch(r"[tk]\d+", word) else word


_TAKEN = (
    "x", "c", "grad", "by", "kept", "states", "w", "V", "A", "tl", "number", *_POINTWISE
)  # fmt: skip
