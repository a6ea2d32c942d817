"""Records a step: what PyTorch computes in it, and what its autograd computes on the way back, as one ``Graph``.

The step runs once, on a few numbers, under a dispatch mode that sees every operation below autograd. What it calls on
the way back (``torch.autograd.grad``) is seen likewise, so that detached values, resets and constants that learn get
the gradients that autograd gives them.
"""

from __future__ import annotations

import linecache
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .graph import Graph, Ref, Value
from .printed import ANY, TRANSLATIONS, Untranslated

_at_work = threading.local()


def recording() -> Recorder | None:
    """The recorder of this thread."""
    return getattr(_at_work, "recorder", None)


class Refused(ValueError):
    """A step that no kernel can be made of: why, and the line."""


class Recorder(TorchDispatchMode):
    """Writes down, in ``graph``, what is computed of tensors that it was told of.

    Args:
        name: of the neuron's class. code: of its step, whose lines are named.
        shape, dtype: of the tensors that a step is given.
    """

    def __init__(self, name: str, code: CodeType, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.graph, self.name, self.code, self.shape, self.dtype = Graph(), name, code, shape, dtype
        self.fired: list[tuple[Value, Value, Value, str, Callable[[], Tensor]]] = []
        self.inside: list[Value] = []
        self.later: list[Value] = []  # constants that the way back reads
        self.widths: list[Value] = []
        self.calls: dict[Ref, tuple[str, tuple[Any, ...], dict[str, Any]]] = {}
        self.made: dict[Ref, list[Tensor]] = {}
        self.goes_back = False
        self._known: dict[int, Value] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets an id of theirs

    @classmethod
    def _should_skip_dynamo(
        cls,
    ) -> bool:  # the wrapper that torch would make imports its compiler, for seconds
        return False

    def input(self, name: str, tensor: Tensor) -> Ref:
        """The node of a tensor that the step is given."""
        ref = self.graph.add("input", name)
        self._keep(tensor, ref)
        self.made.setdefault(ref, []).append(tensor)
        return ref

    def _keep(self, tensor: Tensor, value: Value) -> None:
        self._known[id(tensor)] = value
        self._kept.append(tensor)

    def value(self, tensor: Tensor) -> Value:
        """What a tensor is in the graph."""
        found = self._known.get(id(tensor))
        if found is not None:
            return found
        raise self.refused(
            f"reads a tensor of shape {tuple(tensor.shape)} that it was not given",
            "its arguments, and parameters and buffers of the module, of shape () or (C,)",
        )

    def fires(self, u: Tensor, width: Tensor, shape: str, height: Any) -> None:
        """Notes the argument of a spike, the width of its surrogate, and what the way back reads of that."""
        by = reads = self.value(width)
        self.widths.append(by)
        if shape not in ("rectangle", ANY) and not width.requires_grad:
            reads = self.graph.add(
                "div", 1.0, by
            )  # once a call; of a width that learns both are needed
            if isinstance(reads, Ref):
                self.calls.setdefault(reads, ("aten.reciprocal.default", (by,), {}))
        if isinstance(height, Tensor):
            self.later.append(self.value(height))
        if shape == ANY:
            self.later.append(self.graph.add("input", "shape"))
        self.fired.append((self.value(u), by, reads, shape, lambda: u / width))

    def passes(self, inside: Tensor, levels: Any) -> None:
        """Notes where a spike of several passes a gradient, and that the most of them are a small whole number."""
        self.inside.append(self.graph.add("count", self.value(inside)))
        most = self.value(levels) if isinstance(levels, Tensor) else levels
        if isinstance(most, Ref):
            self.graph.small.add(most)

    def surrogate(self, op: str, shape: str, u: Tensor, width: Tensor, out: Tensor) -> Tensor:
        """phi(u / width), its primitive ("area"), or u / width ("z"), as one operation whose result is known."""
        self._keep(out, self.of_surrogate(op, shape, self.value(u), self.value(width)))
        return out

    def of_surrogate(self, op: str, shape: str, u: Value, width: Value) -> Value:
        add = self.graph.add
        if op == "z":  # by the reciprocal, which is there
            return add("mul", u, add("div", 1.0, width))
        if shape == ANY:
            more = (u, width) if op == "phi" else ()
            z = add("mul", u, add("div", 1.0, width))
            return add(op, shape, z, *more, add("input", "shape"))
        if op == "phi" and shape == "rectangle":  # its edge is compared, not divided
            return add("count", add("lt", add("abs", u), width))
        return add(op, shape, add("mul", u, add("div", 1.0, width)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.")
        op, _, _overload = name.partition(".")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self.refused(f"draws random numbers ({op})", "the same step at every call")
        if op in ("_local_scalar_dense", "is_nonzero", "item", "equal"):
            raise self.refused(_LOOKS, "torch.where, and fire")
        in_place = op.endswith("_") and not op.endswith("__")
        if in_place and not self.goes_back:
            raise self.refused(f"writes in place ({op})", f"a new value: {op.rstrip('_')}")
        out = func(*args, **kwargs)
        if op == "lift_fresh" and out.numel() == 1:  # torch.tensor(0.5)
            self._keep(out, _number(out))
            return out
        if not isinstance(out, Tensor):
            raise self.refused(f"calls {op}, which gives no tensor", _ACCEPTED)
        translate = TRANSLATIONS.get(op.rstrip("_") if in_place else op)
        if translate is None:
            raise self.refused(f"calls {op}", _ACCEPTED)
        given = [self._of(arg) for arg in args]
        named = {key: self._of(arg) for key, arg in kwargs.items()}
        try:
            value = translate(self.graph, out, *given, **named)
        except (Untranslated, TypeError) as error:
            raise self.refused(f"calls {op} {error}", _ACCEPTED) from None
        if isinstance(value, Ref) and not any(
            isinstance(v, Ref) for v in (*given, *named.values())
        ):
            value = _number(out)
        if isinstance(value, Ref):
            if out.shape != self.shape:
                raise self.refused(
                    f"changes shapes ({op}: {tuple(self.shape)} to {tuple(out.shape)})", _ACCEPTED
                )
            if out.dtype not in (self.dtype, torch.bool):
                raise self.refused(f"computes in {out.dtype} ({op})", f"{self.dtype}, and bool")
            if value not in [v for v in given if isinstance(v, Ref)]:
                self.made.setdefault(value, []).append(out)
                self.calls.setdefault(value, (str(func), tuple(given), named))
        self._keep(out, value)
        return out

    def _of(self, arg: Any) -> Any:
        return self.value(arg) if isinstance(arg, Tensor) else arg

    def refused(self, what: str, accepted: str) -> Refused:
        """With the line of the step at work."""
        where = ""
        frame: FrameType | None = None if self.goes_back else sys._getframe()
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back
        if frame is not None:
            file, number = frame.f_code.co_filename, frame.f_lineno
            line = linecache.getline(file, number).strip()
            where = f", line {number} of {file}: {line}" if line else f", line {number} of {file}"
            if re.match(r"(if|elif|while|assert)\b", line):
                what, accepted = _LOOKS, "torch.where, and fire"
        whose = f"the gradient of {self.name}.step" if self.goes_back else f"{self.name}.step"
        return Refused(
            f'{whose} {what}{where}; accepted: {accepted}; or backend="eager", which runs any step'
        )


def _number(tensor: Tensor) -> float:
    with torch._C._DisableTorchDispatch():
        return float(tensor.detach().flatten()[0])


_LOOKS = "looks at a value (if, while, float(), .item())"
_ACCEPTED = "operations on each element by itself, such as +, torch.where, torch.exp, and fire"


@contextmanager
def recorded(recorder: Recorder) -> Iterator[Recorder]:
    """Within the block what this thread computes is recorded."""
    _at_work.recorder = recorder
    try:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            recorder,
            torch.enable_grad(),
        ):
            yield recorder
    finally:
        _at_work.recorder = None
