"""A neuron's `step` as one membrane of NIR: read from what was traced of it, whoever wrote it.

Between two spikes a membrane of NIR is linear. So is a step if the potential h, on which a spike is decided, is a sum
of the input, the states and a constant, each with a factor, and a spike sets the membrane to a number or takes a number
from it. Several spikes of a step (`count`) are those of as many thresholds.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from spiketriton.neurons import SpikingNeuron
from spiketriton_kernels.neurons.psn import ParallelNeuron
from spiketriton_kernels.steps.graph import Ref, Value
from spiketriton_kernels.steps.step import Step


class NotLinearError(ValueError):
    """Why NIR has no nodes for a step, in words that follow "whose step"."""


@dataclass(frozen=True)
class Membrane:
    """h[t] = keeps * v[t-1] + gain * i[t] + rest, in float64, each [] or [C].

    Attributes:
        thresholds: a spike for each that h reaches.
        reset: where a spike sets v; None: it takes `drop` from h, 0 where it leaves h as it is.
        start: v[-1].
        synapse: (keeps, gain) of the current that it reads, i[t] = keeps * i[t-1] + gain * x[t]; None: i is x.
    """

    keeps: Tensor
    gain: Tensor
    rest: Tensor
    thresholds: list[Tensor]
    reset: Tensor | None
    drop: Tensor
    start: float
    synapse: tuple[Tensor, Tensor] | None


Form = dict[tuple[str, bool], Tensor]
"""A sum: by (input, state or "" for a constant; whether times the spikes) the factor, float64."""

_CONSTANT, _SPIKES = ("", False), ("", True)


def membrane_of(neuron: SpikingNeuron) -> Membrane:
    """NotLinearError: its step is no such membrane."""
    if isinstance(neuron, ParallelNeuron):
        raise NotLinearError("reads all steps of a window at once")
    if not type(neuron).forward.__module__.startswith("spiketriton_kernels."):
        raise NotLinearError("is called by a forward of its own")
    if neuron.backend == "eager":
        raise NotLinearError('is not traced (backend="eager")')
    record = neuron.record(torch.zeros(1, 1, 1))
    return _Reader(record.step, record.constants).membrane(record.starts)


class _Reader:
    """Sums of a step's graph."""

    def __init__(self, step: Step, constants: Any) -> None:
        self.step, self.graph = step, step.graph
        self.known: dict[Ref, Form] = {step.x: {("x", False): _number(1)}}
        for name, ref in zip(step.states, step.before, strict=True):
            self.known[ref] = {(f"state {name}", False): _number(1)}
        for ref, value in zip(step.reads, constants, strict=True):
            self.known[ref] = {_CONSTANT: torch.as_tensor(value).detach().double().cpu()}
        self.truth: Ref | None = None  # of a spike of 0 or 1
        self.decides, self.levels = self._decision(step.spikes)
        self.known[_ref(step.spikes)] = {_SPIKES: _number(1)}

    def _decision(self, spikes: Value) -> tuple[Form, list[float]]:
        """What is compared with 0, or counted, and where: u with [0], z with [0.5, 1.5, ...]."""
        node = self.graph.nodes[_ref(spikes)]
        if node.op == "count":
            (self.truth,) = node.read
            compared = self.graph.nodes[self.truth]
            if compared.op not in ("ge", "gt"):
                self._refuse(compared.op)
            one, other = (self.of(value) for value in compared.args)
            return _sum(one, other, -1), [0.0]
        ends: dict[str, float] = {}
        while node.op in ("round", "minimum", "maximum"):
            inner, *end = node.args
            if end:
                form = self.of(end[0])
                if set(form) > {_CONSTANT}:
                    self._refuse(node.op)
                ends[node.op] = float(form.get(_CONSTANT, _number(0)))
            if not isinstance(inner, Ref):
                break
            node, last = self.graph.nodes[inner], inner
        if set(ends) != {"minimum", "maximum"} or ends["maximum"] != 0:
            self._refuse(self.graph.nodes[_ref(spikes)].op)
        return self.of(last), [k + 0.5 for k in range(round(ends["minimum"]))]

    def membrane(self, starts: tuple[float, ...]) -> Membrane:
        """The equations, where there are such."""
        names = [f"state {name}" for name in self.step.states]
        after = dict(zip(names, map(self.of, self.step.after), strict=True))
        spared = {n: _part(form, False) for n, form in after.items()}  # by a spike
        fired = {n: _part(form, True) for n, form in after.items()}
        synapses = [
            n for n in names[1:] if not fired[n] and set(spared[n]) <= {"x", n} and "x" in spared[n]
        ]
        if len(names) != 1 + len(synapses) or len(synapses) > 1:
            raise NotLinearError("carries more than a membrane and a synaptic current")
        v, h, zero = names[0], spared[names[0]], _number(0)
        keeps, gain, synapse = h.get(v, zero), h.get("x", zero), None
        if bool((gain == 0).any()):
            raise NotLinearError("has no factor of its input in its membrane")
        if synapses:
            own = spared[synapses[0]]
            synapse = own.get(synapses[0], zero), own["x"]
            gain = gain / synapse[1]
            _same(
                gain * synapse[0],
                h.get(synapses[0], zero),
                "reads its synaptic current before its step",
            )
        kappa = self.decides.get(("x", False), zero) / h["x"]
        if not bool((kappa > 0).all()) or any(fires for _, fires in self.decides):
            raise NotLinearError("decides on its spikes by something else than its membrane")
        for name in {*h, *_part(self.decides, False)} - {""}:
            found = self.decides.get((name, False), zero)
            _same(
                found,
                kappa * h.get(name, zero),
                "decides on its spikes by something else than its membrane",
            )
        rest, shift = h.get("", zero), self.decides.get(_CONSTANT, zero)
        thresholds = [rest + (level - shift) / kappa for level in self.levels]
        jump, reset = fired[v], None
        if set(jump) - {""}:
            for name in {*h, *jump} - {""}:
                _same(jump.get(name, zero), -h.get(name, zero), "sets its membrane to no number")
            reset = rest + jump.get("", zero)
        return Membrane(
            keeps, gain, rest, thresholds, reset, -jump.get("", zero), starts[0], synapse
        )

    def of(self, value: Value | str) -> Form:
        """The sum that a value is."""
        if not isinstance(value, Ref):
            return {_CONSTANT: _number(float(value))}
        if value not in self.known:
            self.known[value] = self._computed(value)
        return self.known[value]

    def _computed(self, ref: Ref) -> Form:
        op, args = self.graph.nodes[ref]
        if op == "where":
            test, yes, no = args
            if test != self.truth:
                self._refuse("where")
            return _sum(self.of(no), self._times_spikes(_sum(self.of(yes), self.of(no), -1)))
        if op == "neg":
            return _sum({}, self.of(args[0]), -1)
        if op not in ("add", "sub", "mul", "div"):
            self._refuse(op)
        one, other = map(self.of, args)
        if op in ("add", "sub"):
            return _sum(one, other, 1 if op == "add" else -1)
        if op == "div":
            if set(other) != {_CONSTANT}:
                self._refuse("div")
            return {key: factor / other[_CONSTANT] for key, factor in one.items()}
        for a, b in ((one, other), (other, one)):
            if {name for name, _ in a} <= {""}:
                zero = _number(0)
                scaled = {key: factor * a.get(_CONSTANT, zero) for key, factor in b.items()}
                if _SPIKES not in a:
                    return scaled
                by = {key: factor * a[_SPIKES] for key, factor in b.items()}
                return _sum(scaled, self._times_spikes(by))
        self._refuse("mul")

    def _times_spikes(self, form: Form) -> Form:
        """Of spikes of 0 or 1, of which the square is no other."""
        if len(self.levels) > 1 and set(form) - {_CONSTANT}:
            self._refuse("mul")
        out: Form = {}
        for (name, _), factor in form.items():
            out = _sum(out, {(name, True): factor})
        return out

    def _refuse(self, op: str) -> NoReturn:
        raise NotLinearError(f"is not linear between two spikes ({op})")


def _ref(value: Value) -> Ref:
    if not isinstance(value, Ref):
        raise NotLinearError("always gives the same spikes")
    return value


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _sum(one: Form, other: Form, sign: int = 1) -> Form:
    out = dict(one)
    for key, factor in other.items():
        out[key] = out[key] + sign * factor if key in out else sign * factor
    return {key: factor for key, factor in out.items() if bool((factor != 0).any())}


def _part(form: Form, fires: bool) -> dict[str, Tensor]:
    return {name: factor for (name, times), factor in form.items() if times == fires}


def _same(one: Tensor, other: Tensor, what: str) -> None:
    if not torch.allclose(one, other, rtol=1e-6, atol=0.0):
        raise NotLinearError(what)
