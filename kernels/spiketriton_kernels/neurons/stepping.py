"""A neuron by its step: what a subclass of ``SpikingNeuron`` writes in plain PyTorch, how it is called and traced."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ..arguments import along_channels, check_float
from ..neuron import Call, Inputs, Neuron, Norm, Outputs, membrane_dtype
from ..steps import fire as spikes_of
from ..steps import forms
from ..steps.record import Refused
from ..steps.step import Hoisted, Step, returned, trace
from ..surrogate import Surrogate, own_surrogate
from ..window.fire import leaves
from .definition import (
    UNROLLED,
    OneStep,
    Walk,
    as_loop,
    normalised,
    scan_operator,
    without_autocast,
)

BACKENDS = ("auto", "eager")
_WIDTH, _HEIGHT = "surrogate.width", "surrogate.height"
_MATRIX = "matrix of its own spikes"
_PACKAGE = __name__.partition(".")[0]


class Stepping(nn.Module):
    """The part of ``SpikingNeuron`` that has to do with its ``step``."""

    states: tuple[str, ...] = ()
    """What a step hands to the next, in the order of its arguments. The first is the membrane of a probe."""

    start: Mapping[str, float] = {}
    """The states before the first step, where they are not 0."""

    constants: tuple[str, ...] = ()
    """Attributes that a step reads and that are not compiled in: numbers, or tensors [] or [C]."""

    companion: ClassVar[tuple[str, ...]] = ()
    """Of a neuron of ours constants that are often learnt together: what a first call compiles serves both with that
    and without."""

    complements: ClassVar[Mapping[str, str]] = {}
    """Constants that are 1 minus another one, by their names: of a number rounded once."""

    options: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Of a neuron of ours the attributes that a step reads besides, with what they may be: all that is compiled in.
    Neurons with the same share one compiled step."""

    kind = "step"
    """The neuron whose equations these are; of a step of one's own "step"."""

    smooth = False
    """Whether spikes are relaxed, as in a definition's ``smooth``."""

    plain = False
    """Whether a step's values alone are wanted, without their way back, as where it is written down."""

    surrogate: Surrogate
    backend: str = "auto"
    detach_reset: bool
    reset_mode: str
    _attributes = ""
    _family: ClassVar[type[Stepping] | None] = None

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "step" not in cls.__dict__ or "_is_twin" in cls.__dict__:
            return
        ours = "options" in cls.__dict__ and cls.__module__.partition(".")[0] == _PACKAGE
        cls._family = cls if ours else None
        if not ours:
            cls.kind = cls.__dict__.get("kind", "step")
            return
        learns = (*cls.constants, *cls.complements, _WIDTH)
        file = str(sys.modules[cls.__module__].__file__)
        forms.register(
            cls.kind, forms.Family(cls._trace_form, cls._choices, learns, file, cls.companion)
        )

    @classmethod
    def _check_step(cls, backend: str) -> None:
        """TypeError, ValueError: what a step needs beside it."""
        name = cls.__name__
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r} of {name}: accepted: {', '.join(BACKENDS)}")
        if not hasattr(cls, "step"):
            raise TypeError(f"{name} has no step; accepted: a subclass of SpikingNeuron with one")
        words = isinstance(cls.states, tuple) and all(
            isinstance(s, str) and s.isidentifier() for s in cls.states
        )
        if not words or not cls.states or len(set(cls.states)) < len(cls.states):
            raise TypeError(
                f'{name}.states = {cls.states!r}; accepted: the names of what step carries on, such as states = ("v",)'
            )

    # ---- what a step may call

    def fire(self, u: Tensor) -> Tensor:
        """1 where u >= 0, else 0, in the dtype of u; backward: the surrogate of u."""
        if self.plain:
            return (u >= 0).to(u.dtype)
        given, width = self.surrogate, self.__dict__.get(_WIDTH)
        height = self.__dict__.get(_HEIGHT, given.height)
        if not isinstance(width, Tensor):  # a number, or none: of a step that is called by hand
            width = given.width if width is None else width
            width = torch.as_tensor(width, dtype=u.dtype, device=u.device)
        function = spikes_of.relaxed if self.smooth else spikes_of.fire
        return function(u, given.shape, height, width)

    def count(self, h: Tensor, levels: int | float | Tensor, unit: float | Tensor = 1.0) -> Tensor:
        """round(h / unit) from 0 to ``levels``, a whole number up to 255: several spikes, each of which takes a unit.

        Backward: 1 / unit between these ends, 0 elsewhere; there is no surrogate.
        """
        if not isinstance(
            unit, Tensor
        ):  # a GPU multiplies by the reciprocal of a number, which moves ties
            unit = torch.full_like(h, unit)
        if self.smooth:
            return (h / unit).clamp(min=0).clamp(max=levels)
        if self.plain:
            return torch.round((h / unit).clamp(min=0).clamp(max=levels))
        return spikes_of.count(h, unit, levels)

    def discharge(self, h: Tensor, s: Tensor, level: float | Tensor) -> Tensor:
        """The membrane h behind spikes s of 0 or 1, by ``reset_mode`` and ``detach_reset``; "soft" takes ``level``."""
        kept = s.detach() if self.detach_reset else s
        if self.reset_mode == "soft":
            chosen = self.detach_reset or self.plain
            return torch.where(s > 0, h - level, h) if chosen else h - level * kept
        if self.reset_mode == "hard":
            to = self.v_reset if self.leaks_to_reset else 0.0
            if self.plain:
                return torch.where(s > 0, to, h)
            v = (1 - kept) * h
            v = v + kept * to if self.leaks_to_reset else v
            if not self.smooth:  # the same number, but exact, and free of 0 * inf
                v = spikes_of.with_gradient_of(torch.where(s > 0, to, h), v)
            return v
        return h

    leaks_to_reset: bool = False
    """Whether a hard reset is to another potential than 0."""
    v_reset: Any = None

    # ---- what it is made of

    def source(self, language: str) -> str:
        """What the kernels are made of, as it was printed: "triton" or "cpp".

        Raises:
            ValueError: another language; no kernel can be made of the step.
        """
        if language not in ("triton", "cpp"):
            raise ValueError(f"source({language!r}): accepted: triton, cpp")
        return getattr(self.traced(), language)

    def traced(self) -> Step:
        """Its step as the kernels take it, in float32."""
        return self._stepped(torch.float32, 4, self._given(torch.float32))[0]

    def changed(self) -> None:
        """An attribute has another value: what was traced of it holds no longer."""
        self.__dict__.pop("_steps", None)
        if self._family is not None:
            return
        plain = {k: v for k, v in self.__dict__.items() if isinstance(v, int | float | str)}
        for name in ("_attributes", *self.constants):
            plain.pop(name, None)
        given = self.__dict__.get("surrogate")
        if given is not None:
            plain["surrogate"] = f"{given.shape} {isinstance(given.width, Tensor)}"
        self.__dict__["_attributes"] = repr(plain)

    # ---- constants

    def _given(self, wide: torch.dtype) -> dict[str, Any]:
        """What step may read besides its arguments, by name: floats, and tensors in the membrane's dtype."""
        given: dict[str, Any] = {}
        if self._family is None:
            named = (*self._parameters.items(), *self._buffers.items())
            given = {
                name: as_wide(value, wide)
                for name, value in named
                if value is not None and value.is_floating_point() and value.dim() < 2
            }
        for name in self.constants:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                value = as_wide(value, wide)
            given[name] = 0.0 if value is None else value
        given |= {name: 1 - given[source] for name, source in self.complements.items()}
        return given | of_surrogate(self.surrogate, wide)

    def _starts(self) -> tuple[float, ...]:
        start = self.start
        unknown = set(start) - set(self.states)
        if unknown:
            raise ValueError(
                f"{type(self).__name__}.start names {', '.join(sorted(unknown))}; accepted: {', '.join(self.states)}"
            )
        for name, value in start.items():
            check_float(f"{type(self).__name__}.start[{name!r}]", value)
        return tuple([float(start.get(name, 0.0)) for name in self.states])

    # ---- by kernels

    def record(self, x: Tensor) -> Neuron:
        """The neuron as the kernels take it, for currents like x.

        Until an attribute changes, one of numbers alone is kept; of another what does not hang on its tensors.
        """
        wide, compiling = membrane_dtype(x.dtype), torch.compiler.is_compiling()
        kept = {} if compiling else self.__dict__.setdefault("_records", {})
        found = kept.get((wide, x.dim()))
        if found is None:
            given, starts = self._given(wide), self._starts()
            step, reads = self._stepped(wide, x.dim(), given)
        elif isinstance(found, Neuron):
            return found
        else:
            step, reads, starts, tensors, numbers = found
            given = numbers | {name: as_wide(getattr(self, name), wide) for name in tensors}
            for name, source in self.complements.items():
                given[name] = 1 - given[source]
        made = Neuron.made(step, reads.of(given, x), starts)
        if found is None and not compiling and _is_kept(type(self)):
            tensors = [name for name in self.constants if isinstance(given[name], Tensor)]
            own = own_surrogate(self.surrogate.shape)
            if made.is_plain:
                kept[wide, x.dim()] = made
            elif self._family is not None and not isinstance(given[_WIDTH], Tensor) and own is None:
                numbers = {key: v for key, v in given.items() if not isinstance(v, Tensor)}
                kept[wide, x.dim()] = step, reads, starts, tensors, numbers
        return made

    def _stepped(
        self, wide: torch.dtype, dims: int, given: Mapping[str, Any]
    ) -> tuple[Step, Hoisted]:
        """Its step for windows of so many dimensions, and what that reads."""
        if self._family is None:
            # torch.compile watches the text, and so learns when an attribute changes that is compiled in
            return self._traced(wide, dims, self._attributes)
        chosen = tuple([getattr(self, name) for name in self.options])
        return traced_form(self.kind, self._settled(chosen), self.surrogate.shape, _learnt(given))

    def _traced(self, dtype: torch.dtype, dims: int, _attributes: str = "") -> tuple[Step, Hoisted]:
        """The step of one's own. Kept until an attribute changes."""
        kept = self.__dict__.setdefault("_steps", {})
        own = own_surrogate(self.surrogate.shape)
        if (dtype, dims, own) not in kept:
            given = self._given(dtype)
            constants = {name: isinstance(value, Tensor) for name, value in given.items()}
            channels = max([3, *(v.numel() for v in given.values() if isinstance(v, Tensor))])
            shape = torch.Size([2, channels, *[2] * (dims - 3)][: max(1, dims - 1)])
            kept[dtype, dims, own] = self._traced_as(self.__dict__, constants, shape, dtype)
        return kept[dtype, dims, own]

    # what torch.compiler.assume_constant_result sets, without the import of dynamo
    _traced._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @classmethod
    def _traced_as(
        cls,
        attributes: Mapping[str, Any],
        constants: Mapping[str, bool],
        shape: torch.Size,
        dtype: torch.dtype,
        form: forms.Form | None = None,
    ) -> tuple[Step, Hoisted]:
        """The step with these attributes, and constants of which some learn."""
        name, code = cls.__name__, cls.step.__code__  # type: ignore[attr-defined]

        def function(x: Tensor, states: Sequence[Tensor], given: Mapping[str, Tensor]) -> Any:
            out, changed = cls._called(attributes, x, states, given)
            if changed:
                raise Refused(
                    f"{name}.step sets self.{', self.'.join(changed)}; accepted: what is carried on as one of "
                    'states; or backend="eager", which runs any step'
                )
            return out

        with temporarily_clear_interpreter_stack():  # of vmap, which may hold the first call
            starts = (0.0,) * len(cls.states)
            return trace(
                form.kind if form else name,
                function,
                code,
                cls.states,
                starts,
                constants,
                shape,
                dtype,
                form,
            )

    @classmethod
    def _called(
        cls,
        attributes: Mapping[str, Any],
        x: Tensor,
        states: Sequence[Tensor],
        constants: Mapping[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """What step returns, of a neuron with these constants in the place of its own, and what it sets of itself."""
        twin: Any = object.__new__(_twin(cls))
        before = {**attributes, **constants}
        twin.__dict__.update(before)
        out = twin.step(x, *states)
        changed = [k for k, value in twin.__dict__.items() if before.get(k, twin) is not value]
        changed = [key for key in changed if key not in ("_attributes", "_steps", "_records")]
        return out, {key: twin.__dict__[key] for key in changed}

    # ---- the forms of a neuron of ours

    @classmethod
    def _settled(cls, chosen: tuple[Any, ...]) -> tuple[Any, ...]:
        """The options that make a difference, the others as they are by default."""
        named = dict(zip(cls.options, chosen, strict=True))
        if named.get("reset_mode") == "none" and "detach_reset" in named:
            named["detach_reset"] = True
        if named.get("reset_mode") != "hard" and "leaks_to_reset" in named:
            named["leaks_to_reset"] = False
        return tuple(named.values())

    @classmethod
    def _choices(cls) -> list[tuple[Any, ...]]:
        """All that are different."""
        return [*dict.fromkeys(map(cls._settled, itertools.product(*cls.options.values())))]

    @classmethod
    def _trace_form(cls, form: forms.Form) -> tuple[Step, Hoisted]:
        names = (*cls.constants, *cls.complements, _WIDTH, _HEIGHT)
        constants = {name: name in form.learns for name in names}
        attributes = dict(zip(cls.options, form.options, strict=True))
        attributes["surrogate"] = _Shape(form.shape, 1.0, 1.0)
        return cls._traced_as(attributes, constants, torch.Size((2, 3)), torch.float32, form)

    # ---- by definition

    def _loop(
        self,
        current: Tensor,
        first: Tensor | None,
        smooth: bool = False,
        matrix: Tensor | None = None,
        trace: bool = False,
    ) -> Walk:
        """Currents [T, B, ...] step by step, from the first states on.

        matrix: by which the spikes of a step come back to the next; they are then the last of the states.
        """
        current = current.to(membrane_dtype(current.dtype))
        states = (
            [torch.full_like(current[0], start) for start in self._starts()]
            if first is None
            else list(first.to(current.dtype))
        )
        if matrix is not None and len(states) == len(self.states):
            states.append(torch.zeros_like(current[0]))
        return self.walk(self._stepper(current, smooth, matrix), current, states, trace)

    def _stepper(
        self, current: Tensor, smooth: bool = False, matrix: Tensor | None = None
    ) -> OneStep:
        """``step`` as it is, with the constants in a shape for one time step of these currents."""
        name, wide = type(self).__name__, current.dtype
        constants: dict[str, Any] = {
            key: along_channels(value, current, wide) for key, value in self._given(wide).items()
        }
        if matrix is not None:
            constants[_MATRIX] = matrix
        attributes = dict(self.__dict__)
        attributes |= {key: getattr(self, key) for key in self.options}
        attributes |= {"smooth": smooth, "plain": leaves()}

        def run(
            x: Tensor, states: Sequence[Tensor], constants: Mapping[str, Any]
        ) -> tuple[Tensor, list[Tensor]]:
            if _MATRIX in constants:
                *states, before = states
                x = x + nn.functional.linear(before, constants[_MATRIX])
            out, changed = self._called(attributes, x, states, constants)
            self.__dict__.update(changed)
            attributes.update(changed)
            s, after = returned(name, self.states, out, x.shape)
            return s, [*after, s] if _MATRIX in constants else after

        return OneStep(constants, run)

    def walk(self, step: OneStep, current: Tensor, states: Sequence[Tensor], trace: bool) -> Walk:
        """Steps over a window [T, B, ...]: one after the other, or as a loop where a long one is written down."""
        written = torch.compiler.is_exporting() and self.backend != "eager"
        if written and len(current) > UNROLLED and (scan := scan_operator()):
            return as_loop(scan, step, current, states, trace)
        spikes, first = [], []
        for x_t in current:
            s, states = step(x_t, states)
            spikes.append(s)
            first.append(states[0])
        return Walk(torch.stack(spikes), [*states], torch.stack(first) if trace else None)

    def _define(
        self,
        inputs: Inputs,
        call: Call,
        norm: Norm | None = None,
        probe: Tensor | None = None,
        smooth: bool = False,
        matrix: Tensor | None = None,
    ) -> Outputs:
        """What ``fire`` returns, or with a matrix ``recur``, by the step as it is: plain PyTorch and its autograd."""
        x, first, residual, spike_add = inputs
        group = None if norm is None else norm.process_group
        for name, value in (("a probe", probe), ("a process group", group)):
            if value is not None:
                raise ValueError(
                    f'{name} with {type(self).__name__}, whose backend is "eager"; accepted: none'
                )
        current = x.to(membrane_dtype(x.dtype)) if norm is None else normalised(x, norm)
        if residual is not None:
            current = current + residual.to(current.dtype)
        if matrix is not None:
            matrix = matrix.to(x.dtype).to(current.dtype)
        with without_autocast(x.device):
            spikes, states, trace_ = self._loop(current, first, smooth, matrix, call.return_trace)
        spikes = spikes if spike_add is None else spikes + spike_add
        return Outputs(
            spikes.to(x.dtype),
            torch.stack(states) if call.return_states else None,
            trace=trace_,
            current=current.to(x.dtype) if call.return_current else None,
        )


class _Shape(NamedTuple):
    """A surrogate whose numbers are constants."""

    shape: str
    height: float
    width: float


def _twin(cls: Any) -> Any:
    """The class of what a step is called on: constants and options are attributes, whatever they are of a neuron."""
    made = getattr(cls, "_made_twin", None)  # torch.compile looks into no __dict__ that has changed
    if made is None or made.__base__ is not cls:
        body = dict.fromkeys((*cls.constants, *cls.complements, *cls.options))
        made = cls._made_twin = type(cls.__name__, (cls,), {**body, "_is_twin": True})
    return made


def _is_kept(cls: Any) -> bool:
    """Whether numbers change by attributes alone: properties of a class of one's own may read anything."""
    if "_keeps_records" not in cls.__dict__:
        found = [next((c for c in cls.__mro__ if n in c.__dict__), None) for n in cls.constants]
        cls._keeps_records = all(
            c is None
            or not isinstance(c.__dict__[n], property)
            or c.__module__.partition(".")[0] == _PACKAGE
            for n, c in zip(cls.constants, found, strict=True)
        )
    return cls._keeps_records


def as_wide(value: Tensor, wide: torch.dtype) -> Tensor:
    """In the membrane's dtype; of one that has it ``to`` would take a microsecond."""
    return value if value.dtype == wide else value.to(wide)


def of_surrogate(surrogate: Surrogate, wide: torch.dtype) -> dict[str, Any]:
    """Its constants, by name; a number as wide as the membrane, of which the kernels have the reciprocal."""
    width = surrogate.width
    if isinstance(width, Tensor):
        width = width.to(wide)
    elif not torch.compiler.is_compiling():  # which has numbers that it does not know
        width = _rounded(width, wide)
    return {_WIDTH: width, _HEIGHT: surrogate.height}


@functools.lru_cache(maxsize=256)
def _rounded(value: float, wide: torch.dtype) -> float:
    return torch.tensor(value, dtype=wide).item()


def _learnt(given: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple([name for name, value in given.items() if isinstance(value, Tensor)])


def traced_form(
    kind: str, options: tuple[Any, ...], shape: str, learns: tuple[str, ...]
) -> tuple[Step, Hoisted]:
    """The step of a kind of ours, made once."""
    return forms.Form(kind, options, shape, learns, own_surrogate(shape)).traced()


traced_form._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Told:
    """A neuron of ours as functions are told of it: its class, options, constants and surrogate."""

    def __init__(
        self,
        neuron: type[Stepping],
        options: dict[str, Any],
        constants: dict[str, float | Tensor],
        surrogate: Surrogate,
        starts: tuple[float, ...],
    ) -> None:
        self.neuron, self.options, self.constants = neuron, options, constants
        self.surrogate, self.starts = surrogate, starts
        self.kept: dict[torch.dtype, Neuron] | None = None
        """Its records, where nothing of it may change."""

    def record(self, x: Tensor) -> Neuron:
        """As the kernels take it, for currents like x."""
        wide = membrane_dtype(x.dtype)
        if self.kept is None:
            return self._record(x, wide)
        if wide not in self.kept:
            self.kept[wide] = self._record(x, wide)
        return self.kept[wide]

    def _record(self, x: Tensor, wide: torch.dtype) -> Neuron:
        cls = self.neuron
        given = {n: c.to(wide) if isinstance(c, Tensor) else c for n, c in self.constants.items()}
        given |= {name: 1 - given[source] for name, source in cls.complements.items()}
        given |= of_surrogate(self.surrogate, wide)
        chosen = cls._settled(tuple([self.options[name] for name in cls.options]))
        step, reads = traced_form(cls.kind, chosen, self.surrogate.shape, _learnt(given))
        return Neuron.made(step, reads.of(given, x), self.starts)

    def define(
        self, inputs: Inputs, call: Call, norm: Norm | None = None, probe: Tensor | None = None,
        *, smooth: bool = False,
    ) -> Outputs:  # fmt: skip
        """By its definition."""
        group = None if norm is None else norm.process_group
        for name, value in (("probe", probe), ("process_group", group)):
            if value is not None:
                raise TypeError(f"{name} is given to a definition, which has none; accepted: None")
        bare: Any = object.__new__(_twin(self.neuron))
        bare.__dict__.update(self.options | self.constants, surrogate=self.surrogate)
        return bare._define(inputs, call, norm, probe, smooth)
