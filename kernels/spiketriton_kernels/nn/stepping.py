"""A neuron by its step: what a subclass of ``SpikingNeuron`` writes in plain PyTorch, how it is called and traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ..arguments import along_channels, check_float
from ..neuron import Neuron, membrane_dtype
from ..steps.fire import fire
from ..steps.record import Refused
from ..steps.step import Hoisted, Step, returned, trace
from ..surrogate import Surrogate, own_surrogate

BACKENDS = ("auto", "eager")
_WIDTH = "surrogate.width"


class Stepping(nn.Module):
    """The part of ``SpikingNeuron`` that has to do with a ``step`` of one's own."""

    states: tuple[str, ...] = ()
    """What a step hands to the next, in the order of its arguments. The first is the membrane of a probe."""

    start: Mapping[str, float] = {}
    """The states before the first step, where they are not 0."""

    surrogate: Surrogate
    backend: str
    _attributes = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.has_step() and "kind" not in cls.__dict__:
            cls.kind = "step"  # type: ignore[attr-defined]

    @classmethod
    def has_step(cls) -> bool:
        """Whether it is defined by a step of its own."""
        return hasattr(cls, "step")

    @classmethod
    def _check_step(cls, backend: str) -> None:
        """TypeError, ValueError: what a step needs beside it."""
        name = cls.__name__
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r} of {name}: accepted: {', '.join(BACKENDS)}")
        if not cls.has_step():
            if backend != "auto":
                raise ValueError(
                    f"backend {backend!r} of {name}, which has no step: accepted: auto"
                )
            return
        words = isinstance(cls.states, tuple) and all(
            isinstance(s, str) and s.isidentifier() for s in cls.states
        )
        if not words or not cls.states or len(set(cls.states)) < len(cls.states):
            raise TypeError(
                f'{name}.states = {cls.states!r}; accepted: the names of what step carries on, such as states = ("v",)'
            )

    def fire(self, u: Tensor) -> Tensor:
        """1 where u >= 0, else 0, in the dtype of u; backward: the surrogate of u."""
        given, width = self.surrogate, self.__dict__.get(_WIDTH)
        if width is None:  # of a step that is called by hand
            width = torch.as_tensor(given.width, dtype=u.dtype, device=u.device)
        return fire(u, given.shape, given.height, width)

    def source(self, language: str) -> str:
        """What the kernels are made of, as it was printed: "triton" or "cpp".

        Raises:
            ValueError: another language; no kernel can be made of the step. TypeError: the neuron has none.
        """
        if language not in ("triton", "cpp"):
            raise ValueError(f"source({language!r}): accepted: triton, cpp")
        if not self.has_step():
            raise TypeError(
                f"{type(self).__name__} has no step of its own; accepted: a subclass of SpikingNeuron with one"
            )
        return getattr(self.traced(), language)

    def traced(self) -> Step:
        """Its step as the kernels take it, in float32."""
        return self._traced(torch.float32, 4)[0]

    # ---- constants

    def changed(self) -> None:
        """An attribute has another value: what was traced holds no longer."""
        self.__dict__.pop("_steps", None)
        plain = {k: v for k, v in self.__dict__.items() if isinstance(v, int | float | str)}
        plain.pop("_attributes", None)
        given = self.__dict__.get("surrogate")
        if given is not None:
            plain["surrogate"] = f"{given.shape} {given.height} {isinstance(given.width, Tensor)}"
        self.__dict__["_attributes"] = repr(plain)

    def _constants(self, wide: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """What step may read besides its arguments, by name, in the membrane's dtype; the surrogate's width, too."""
        named = (*self._parameters.items(), *self._buffers.items())
        given = {
            name: value.to(wide)
            for name, value in named
            if value is not None and value.is_floating_point() and value.dim() < 2
        }
        width = self.surrogate.width
        if isinstance(width, Tensor):
            given[_WIDTH] = width.to(wide)
        else:
            given[_WIDTH] = torch.full((), width, dtype=wide, device=device)
        return given

    def _called(self, x: Tensor, states: Sequence[Tensor], constants: Mapping[str, Tensor]) -> Any:
        """What step returns, and its neuron with these constants in the place of its own."""
        twin = object.__new__(type(self))
        before = self.__dict__ | dict(constants)
        twin.__dict__.update(before)
        out = twin.step(x, *states)  # type: ignore[operator]
        changed = [
            key for key, value in twin.__dict__.items() if before.get(key, twin) is not value
        ]
        changed = [key for key in changed if key not in ("_attributes", "_steps")]
        return out, {key: twin.__dict__[key] for key in changed}

    def _starts(self) -> tuple[float, ...]:
        unknown = set(self.start) - set(self.states)
        if unknown:
            raise ValueError(
                f"{type(self).__name__}.start names {', '.join(sorted(unknown))}; accepted: {', '.join(self.states)}"
            )
        for name, value in self.start.items():
            check_float(f"{type(self).__name__}.start[{name!r}]", value)
        return tuple(float(self.start.get(name, 0.0)) for name in self.states)

    # ---- by kernels

    def _traced(self, dtype: torch.dtype, dims: int, _attributes: str = "") -> tuple[Step, Hoisted]:
        """The step for windows of so many dimensions, and what it reads. Kept until an attribute changes."""
        kept = self.__dict__.setdefault("_steps", {})
        if (dtype, dims) not in kept:
            own = own_surrogate(self.surrogate.shape)
            if own is not None and own.compiled:
                raise ValueError(
                    f"surrogate {own.name!r} of {type(self).__name__} is written in Triton; accepted with a step of "
                    "one's own: one of torch functions"
                )
            given = self._constants(dtype, torch.device("cpu"))
            constants = dict.fromkeys(given, True)
            constants[_WIDTH] = isinstance(self.surrogate.width, Tensor)
            channels = max([3, *(v.numel() for v in given.values() if v.dim())])
            shape = torch.Size([2, channels, *[2] * (dims - 3)][: max(1, dims - 1)])
            name, code = type(self).__name__, type(self).step.__code__  # type: ignore[attr-defined]

            def function(x: Tensor, states: Sequence[Tensor], given: Mapping[str, Tensor]) -> Any:
                out, changed = self._called(x, states, given)
                if changed:
                    raise Refused(
                        f"{name}.step sets self.{', self.'.join(changed)}; accepted: what is carried on as one of "
                        'states; or backend="eager", which runs any step'
                    )
                return out

            with temporarily_clear_interpreter_stack():  # of vmap, which may hold the first call
                kept[dtype, dims] = trace(
                    name, function, code, self.states, self._starts(), constants, shape, dtype
                )
        return kept[dtype, dims]

    # what torch.compiler.assume_constant_result sets, without the import of dynamo
    _traced._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _own_record(self, x: Tensor) -> Neuron:
        """The neuron as the kernels take it, for currents like x."""
        wide = membrane_dtype(x.dtype)
        # torch.compile watches the text, and so learns when an attribute changes that is compiled in
        step, reads = self._traced(wide, x.dim(), self._attributes)
        stacked = None
        numbers = reads.names == (_WIDTH,) and not isinstance(self.surrogate.width, Tensor)
        kept = {} if torch.compiler.is_compiling() else self.__dict__["_steps"]
        if numbers and (wide, x.device) in kept:
            stacked = kept[wide, x.device]
        elif reads.reads:
            values = reads.of(self._constants(wide, x.device))
            size = max(value.numel() for value in values)
            stacked = torch.stack([v if v.shape == (size,) else v.expand(size) for v in values])
            if numbers and not stacked.is_inference():
                kept[wide, x.device] = stacked
        return _NO_CONSTANTS._replace(kind=step.name, constants=stacked)

    # ---- by definition

    def _loop(
        self, current: Tensor, first: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(spikes of all steps, states after the last, the first state after each) of currents [T, B, ...]."""
        name, wide = type(self).__name__, membrane_dtype(current.dtype)
        current = current.to(wide)
        constants = {
            key: along_channels(value, current, wide)
            for key, value in self._constants(wide, current.device).items()
        }
        states = (
            [torch.full_like(current[0], start) for start in self._starts()]
            if first is None
            else list(first.to(wide))
        )
        spikes, trace_ = [], []
        for x_t in current:
            out, changed = self._called(x_t, states, constants)  # type: ignore[arg-type]
            self.__dict__.update(changed)
            s, states = returned(name, self.states, out, x_t.shape)
            spikes.append(s)
            trace_.append(states[0])
        return torch.stack(spikes), states, trace_


_NO_CONSTANTS = Neuron(0.0, 1.0, 1.0, "none", 0.0, True, "atan", 1.0, 1.0)
