"""Three tables: what of PyTorch becomes which operation of a graph, how each is written in C++, Triton and PyTorch, and
how a graph becomes the two functions that the backends call for a step: ``forth`` and ``back``."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..surrogate import SHAPES, unit_primitive, unit_slope
from .graph import Graph, Node, Ref, Value


class Untranslated(Exception):
    """No operation of a graph is this call."""


# ---- from PyTorch's operators; the order of operations is that of its CPU kernels


def _number(graph: Graph, value: Any) -> Value:
    """1 or 0 of what is true or false."""
    return graph.add("count", value) if graph.is_boolean(value) else _as(value)


def _as(value: Any) -> Value:
    return value if isinstance(value, Ref) else float(value)


def _truth(graph: Graph, value: Any) -> Value:
    if graph.is_boolean(value):
        return value
    counted = graph.counted(value)
    return graph.add("ne", _as(value), 0.0) if counted is None else counted


def _binary(op: str, neutral: float | None = None, swapped: bool = False) -> Callable[..., Value]:
    """Of two numbers; times or divided by ``neutral`` a number stays as it is."""

    def translate(
        graph: Graph, out: Any, a: Any, b: Any, alpha: Any = 1, rounding_mode: Any = None
    ) -> Value:
        if alpha != 1 or rounding_mode is not None or out.dtype == torch.bool:
            raise Untranslated(
                f"with alpha={alpha}" if alpha != 1 else f"in {out.dtype}, {rounding_mode}"
            )
        if swapped:
            a, b = b, a
        a, b = _number(graph, a), _number(graph, b)
        if b == neutral and not isinstance(b, Ref):
            return a
        if op == "mul" and a == 1.0 and not isinstance(a, Ref):
            return b
        return graph.add(op, a, b)

    return translate


def _unary(op: str) -> Callable[..., Value]:
    return lambda graph, out, a: graph.add(op, _number(graph, a))


def _compared(op: str) -> Callable[..., Value]:
    """Of two numbers; of a 1 or 0 with a number, what the 1 or 0 was made of."""
    function = getattr(operator, op)

    def translate(graph: Graph, out: Any, a: Any, b: Any) -> Value:
        truth = graph.counted(a)
        if truth is not None and not isinstance(b, Ref):
            one, none = function(1.0, b), function(0.0, b)
            if one != none:
                return truth if one else graph.add("not", truth)
        return graph.add(op, _number(graph, a), _number(graph, b))

    return translate


def _joined(op: str) -> Callable[..., Value]:
    return lambda graph, out, a, b: graph.add(op, _truth(graph, a), _truth(graph, b))


def _same(graph: Graph, out: Any, a: Any, *_: Any, **__: Any) -> Value:
    return a


def _filled(place: int) -> Callable[..., Value]:
    """A tensor of one number: the argument at this place."""
    return lambda graph, out, *args, **_: float(args[place])


def _all(value: float) -> Callable[..., Value]:
    return lambda graph, out, *_, **__: value


def _copied(graph: Graph, out: Any, a: Any, dtype: Any = None, **_: Any) -> Value:
    if not isinstance(a, Ref):
        return float(a)
    if out.dtype == torch.bool:
        return _truth(graph, a)
    return _number(graph, a)


def _where(graph: Graph, out: Any, condition: Any, a: Any, b: Any) -> Value:
    if not isinstance(condition, Ref):
        return _number(graph, a if condition else b)
    a, b = _number(graph, a), _number(graph, b)
    return a if repr(a) == repr(b) else graph.add("where", _truth(graph, condition), a, b)


def _masked_fill(graph: Graph, out: Any, a: Any, mask: Any, value: Any) -> Value:
    return _where(graph, out, mask, value, a)


def _power(graph: Graph, out: Any, a: Any, exponent: Any) -> Value:
    if isinstance(exponent, Ref) or not isinstance(a, Ref) or exponent not in _POWERS:
        raise Untranslated(
            f"with the exponent {'of a tensor' if isinstance(exponent, Ref) else exponent}, not "
            f"{', '.join(map(str, _POWERS))}"
        )
    return _POWERS[exponent](graph, a)


_POWERS: dict[float, Callable[[Graph, Ref], Value]] = {
    1: lambda g, a: a,
    2: lambda g, a: g.add("mul", a, a),
    3: lambda g, a: g.add("mul", g.add("mul", a, a), a),
    0.5: lambda g, a: g.add("sqrt", a),
    -0.5: lambda g, a: g.add("div", 1.0, g.add("sqrt", a)),
    -1: lambda g, a: g.add("div", 1.0, a),
    -2: lambda g, a: g.add("div", 1.0, g.add("mul", a, a)),
    -3: lambda g, a: g.add("div", 1.0, g.add("mul", g.add("mul", a, a), a)),
}


def _clamped(graph: Graph, out: Any, a: Any, min: Any = None, max: Any = None) -> Value:
    a = _number(graph, a)
    if min is not None:
        a = graph.add("maximum", a, _number(graph, min))
    return a if max is None else graph.add("minimum", a, _number(graph, max))


def _clamped_above(graph: Graph, out: Any, a: Any, max: Any) -> Value:
    return _clamped(graph, out, a, None, max)


def _threshold_back(graph: Graph, out: Any, grad: Any, a: Any, threshold: Any) -> Value:
    return graph.add("where", graph.add("le", a, float(threshold)), 0.0, grad)


def _sigmoid_back(graph: Graph, out: Any, grad: Any, s: Any) -> Value:
    return graph.add("mul", graph.add("mul", grad, graph.add("sub", 1.0, s)), s)


def _tanh_back(graph: Graph, out: Any, grad: Any, s: Any) -> Value:
    return graph.add("mul", grad, graph.add("sub", 1.0, graph.add("mul", s, s)))


def _softplus(graph: Graph, out: Any, a: Any, beta: Any = 1, threshold: Any = 20) -> Value:
    z = _scaled(graph, a, beta)
    soft = graph.add("log1p", graph.add("exp of softplus", z))
    soft = soft if beta == 1 else graph.add("div", soft, float(beta))
    return graph.add("where", graph.add("gt", z, float(threshold)), a, soft)


def _softplus_back(graph: Graph, out: Any, grad: Any, a: Any, beta: Any, threshold: Any) -> Value:
    z = _scaled(graph, a, beta)
    e = graph.add("exp of softplus", z)
    soft = graph.add("div", graph.add("mul", grad, e), graph.add("add", e, 1.0))
    return graph.add("where", graph.add("gt", z, float(threshold)), grad, soft)


def _scaled(graph: Graph, a: Any, factor: Any) -> Value:
    return a if factor == 1 else graph.add("mul", a, float(factor))


TRANSLATIONS: dict[str, Callable[..., Value]] = {
    "add": _binary("add"),
    "sub": _binary("sub"),
    "rsub": _binary("sub", swapped=True),
    "mul": _binary("mul", neutral=1.0),
    "div": _binary("div", neutral=1.0),
    "maximum": _binary("maximum"),
    "minimum": _binary("minimum"),
    "pow": _power,
    "reciprocal": lambda graph, out, a: graph.add("div", 1.0, a),
    "rsqrt": lambda graph, out, a: graph.add("div", 1.0, graph.add("sqrt", a)),
    "sgn": _unary("sign"),
    **{
        op: _unary(op)
        for op in (
            "neg", "abs", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sin", "cos", "erf", "floor",
            "ceil", "trunc", "round", "sign",
        )
    },
    **{op: _compared(op) for op in ("ge", "gt", "le", "lt", "eq", "ne")},
    "logical_and": _joined("and"),
    "bitwise_and": _joined("and"),
    "logical_or": _joined("or"),
    "bitwise_or": _joined("or"),
    "logical_not": lambda graph, out, a: graph.add("not", _truth(graph, a)),
    "bitwise_not": lambda graph, out, a: graph.add("not", _truth(graph, a)),
    "where": _where,
    "masked_fill": _masked_fill,
    "clamp": _clamped,
    "clamp_min": _clamped,
    "clamp_max": _clamped_above,
    "relu": lambda graph, out, a: graph.add("maximum", a, 0.0),
    "threshold_backward": _threshold_back,
    "sigmoid_backward": _sigmoid_back,
    "tanh_backward": _tanh_back,
    "softplus": _softplus,
    "softplus_backward": _softplus_back,
    "_to_copy": _copied,
    **dict.fromkeys(
        ("detach", "alias", "clone", "lift_fresh", "view", "_unsafe_view", "expand"), _same
    ),
    "scalar_tensor": _filled(0),
    "full": _filled(1),
    "full_like": _filled(1),
    "new_full": _filled(2),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _all(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _all(1.0)),
}  # fmt: skip
"""By the operator's name: (graph, what came out, arguments as values) -> the value of the result."""


# ---- to C++, Triton and PyTorch


class Written(NamedTuple):
    """An operation in the three languages."""

    cpp: str
    triton: str
    torch: Callable[..., Any]


def _infix(sign: str, function: Callable[..., Any]) -> Written:
    return Written(f"{{0}} {sign} {{1}}", f"{{0}} {sign} {{1}}", function)


def _lanes(name: str, triton: str, function: Callable[..., Any]) -> Written:
    """A function of the C++ library, number by number."""
    return Written(
        f"lane_by_lane({{0}}, [](A x) {{{{ return std::{name}(x); }}}})", triton, function
    )


def _called(name: str, triton: str, function: Callable[..., Any]) -> Written:
    """A function that rounds as PyTorch's does on a CPU."""
    return Written(f"of_library<{name}>({{0}})", triton, function)


_NAN = "propagate_nan=tl.PropagateNan.ALL"

OPERATIONS: dict[str, Written] = {
    "add": _infix("+", torch.add),
    "sub": _infix("-", torch.sub),
    "mul": _infix("*", torch.mul),
    "div": Written("{0} / {1}", "divided({0}, {1})", torch.div),
    "neg": Written("-{0}", "-{0}", torch.neg),
    "abs": Written("absolute({0})", "tl.abs({0})", torch.abs),
    "sqrt": _lanes("sqrt", "tl.sqrt_rn({0})", torch.sqrt),
    "exp": _called("EXP", "tl.exp({0})", torch.exp),
    "exp of softplus": _called("SIGMOID_EXP", "tl.exp({0})", torch.exp),
    "expm1": _called("EXPM1", "expm1({0})", torch.expm1),
    "log": _called("LOG", "tl.log({0})", torch.log),
    "log1p": _called("LOG1P", "log1p({0})", torch.log1p),
    "tanh": _called("TANH", "tanh({0})", torch.tanh),
    "sigmoid": Written("sigmoid({0})", "sigmoid({0})", torch.sigmoid),
    "sin": _called("SIN", "tl.sin({0})", torch.sin),
    "cos": _called("COS", "tl.cos({0})", torch.cos),
    "erf": _called("ERF", "tl.erf({0})", torch.erf),
    "floor": _lanes("floor", "tl.floor({0})", torch.floor),
    "ceil": _lanes("ceil", "tl.ceil({0})", torch.ceil),
    "trunc": _lanes("trunc", "trunc({0})", torch.trunc),
    "round": Written("nearest({0})", "nearest({0})", torch.round),
    "sign": Written("sign({0})", "sign({0})", torch.sign),
    "maximum": Written("maximum({0}, {1})", f"tl.maximum({{0}}, {{1}}, {_NAN})", torch.maximum),
    "minimum": Written("minimum({0}, {1})", f"tl.minimum({{0}}, {{1}}, {_NAN})", torch.minimum),
    "where": Written("chosen({0}, {1}, {2})", "tl.where({0}, {1}, {2})", torch.where),
    "count": Written("counted({0})", "tl.where({0}, 1.0, 0.0)", lambda a: a.to(torch.get_default_dtype())),
    "ge": _infix(">=", torch.ge),
    "gt": _infix(">", torch.gt),
    "le": _infix("<=", torch.le),
    "lt": _infix("<", torch.lt),
    "eq": _infix("==", torch.eq),
    "ne": _infix("!=", torch.ne),
    "and": _infix("&", torch.logical_and),
    "or": _infix("|", torch.logical_or),
    "not": Written("~{0}", "{0} == 0", torch.logical_not),
}  # fmt: skip
"""How a node's operation is written; {0} and {1} are what it is given."""

_ENDS = {
    "maximum": "chosen({0} < {1}, {1}, {0})",
    "minimum": "chosen({0} > {1}, {1}, {0})",
}
"""In C++ with what is no NaN."""

CALLED = frozenset(op for op, written in OPERATIONS.items() if "of_library" in written.cpp)
"""Functions that are PyTorch's own in C++, where they are found; and in a sigmoid is one, too."""

OF_ARRAYS = CALLED - {"expm1", "log1p", "exp of softplus"}
"""Those that a library may have for arrays alone."""

LONG = (
    frozenset(op for op, written in OPERATIONS.items() if "lane_by_lane" in written.cpp)
    | CALLED
    | {"sigmoid"}
)
"""Operations that take tens of cycles and more in C++."""

EXPONENTIAL = LONG - {"sqrt", "floor", "ceil", "trunc"}
"""Those that take many instructions on a GPU, too."""


ANY = "any"
"""In C++ a surrogate whose number is the constant "shape"."""


def _of_surrogate(op: str, shape: str, z: str, cpp: bool, more: Sequence[str]) -> str:
    """phi(z), and its primitive, as the backends have them."""
    if not cpp and shape not in SHAPES:
        return f"{'own_slope' if op == 'phi' else 'own_area'}({z})"
    if not cpp:
        return f'{"phi" if op == "phi" else "primitive"}({z}, "{shape}")'
    if shape == ANY:
        *more, number = more
        return f"{'phi' if op == 'phi' else 'primitive'}_of({', '.join((number, z, *more))})"
    if op == "phi":
        return f"phi<{shape.upper()}>({z}, number(1), number(1))"
    return f"lane_by_lane({z}, [](A z) {{ return primitive(z, {shape.upper()}); }})"


class Writer:
    """Lines that compute nodes of a graph, in one language.

    Args:
        names: of what is there already.
        fused: nodes of gradients, in which a product and the sum that it goes into may round once.
    """

    def __init__(
        self, graph: Graph, names: Mapping[Ref, str], cpp: bool, fused: Iterable[Ref] = ()
    ) -> None:
        self.graph, self.names, self.cpp, self.fused = graph, dict(names), cpp, set(fused)

    def of(self, value: Value) -> str:
        """A value in an expression."""
        if isinstance(value, Ref):
            return self.names[value]
        if not self.cpp:
            return repr(value) if math.isfinite(value) else f'float("{value}")'
        if math.isfinite(value):
            return f"number({value!r})"
        limit = "quiet_NaN" if math.isnan(value) else "infinity"
        return f"number({'-' if value < 0 else ''}std::numeric_limits<double>::{limit}())"

    def lines(self, wanted: Iterable[Value]) -> list[str]:
        """What computes these values."""
        made, wanted = [], list(wanted)
        needed = self.graph.needed(wanted, self.names.keys())
        products = self._products(needed, wanted)
        for ref in needed:
            node = self.graph.nodes[ref]
            if ref in products.values():
                continue
            if ref in products:
                text = self._fused(node, products[ref])
            elif node.op == "round" and self._is_small(node.args[0]):
                what = self.of(node.args[0])  # type: ignore[arg-type]
                text = f"({what} + 12582912.0) - 12582912.0"
                text = f"nearest_small({what})" if self.cpp else text
            elif self.cpp and node.op in _ENDS and self._is_number(node.args[1]):
                text = _ENDS[node.op].format(*map(self.of, node.args))  # type: ignore[arg-type]
            elif node.op in ("phi", "area"):
                shape, z, *more = node.args
                rest = list(map(self.of, more))  # type: ignore[arg-type]
                text = _of_surrogate(node.op, str(shape), self.of(z), self.cpp, rest)  # type: ignore[arg-type]
            else:
                args = [self.of(arg) for arg in self._compared(node)]
                written = OPERATIONS[node.op]
                text = (written.cpp if self.cpp else written.triton).format(*args)
            name = self.names[ref] = f"t{int(ref)}"
            kind = "const Mask " if self.graph.is_boolean(ref) else "const V "
            made.append(f"{kind}{name} = {text};" if self.cpp else f"{name} = {text}")
        return made

    def _compared(self, node: Node) -> Sequence[Any]:
        """What an operation is given; of a difference that is compared with 0 both sides, where they are there."""
        u = node.args[0]
        if (
            node.op == "ge"
            and isinstance(u, Ref)
            and node.args[1] == 0.0
            and not isinstance(node.args[1], Ref)
        ):
            op, sides = self.graph.nodes[u]
            if op == "sub" and all(
                not isinstance(side, Ref) or side in self.names for side in sides
            ):
                return sides
        return node.args

    def _is_small(self, value: Value | str) -> bool:
        """Whether it was clamped to what ``nearest`` rounds without a look at its size."""
        ends = []
        while isinstance(value, Ref) and self.graph.nodes[value].op in ("minimum", "maximum"):
            value, end = self.graph.nodes[value].args
            ends.append(self._is_number(end) and (isinstance(end, Ref) or abs(end) < 4194304.0))  # type: ignore[arg-type]
        return ends == [True, True]

    def _is_number(self, value: Value | str) -> bool:
        """Whether it is none that may be NaN."""
        if isinstance(value, Ref):
            return value in self.graph.small
        return isinstance(value, float) and value == value

    def _products(self, needed: Sequence[Ref], wanted: Sequence[Value]) -> dict[Ref, Ref]:
        """Of sums the product in them that nothing else reads."""
        nodes = self.graph.nodes
        readers = Counter(read for ref in needed for read in nodes[ref].read)
        readers.update(value for value in wanted if isinstance(value, Ref))
        found: dict[Ref, Ref] = {}
        for ref in self.fused & set(needed):
            if nodes[ref].op in ("add", "sub"):
                for value in nodes[ref].read:
                    if readers[value] == 1 and value in self.fused and nodes[value].op == "mul":
                        found[ref] = value
        return found

    def _fused(self, node: Node, product: Ref) -> str:
        first = node.args[0] == product
        a, b = map(self.of, self.graph.nodes[product].args)  # type: ignore[arg-type]
        other = self.of(node.args[1] if first else node.args[0])  # type: ignore[arg-type]
        minus = node.op == "sub"
        return f"tl.fma({'-' * (minus and not first)}{a}, {b}, {'-' * (minus and first)}{other})"


def evaluate(graph: Graph, given: Mapping[Ref, torch.Tensor], wanted: Sequence[Value]) -> list[Any]:
    """The values in PyTorch, from tensors; a number where one is wanted."""
    values: dict[Ref, Any] = dict(given)
    like = next(iter(given.values()))

    def tensor(value: Value | str) -> Any:
        if isinstance(value, Ref):
            return values[value]
        return torch.tensor(value, dtype=like.dtype, device=like.device)

    for ref in graph.needed(wanted, values.keys()):
        node = graph.nodes[ref]
        if node.op in ("phi", "area"):
            shape, z = node.args
            function = unit_slope if node.op == "phi" else unit_primitive
            values[ref] = function(str(shape), tensor(z))
        elif node.op == "count":
            values[ref] = tensor(node.args[0]).to(like.dtype)
        else:
            values[ref] = OPERATIONS[node.op].torch(*map(tensor, node.args))
    return [values[value] if isinstance(value, Ref) else value for value in wanted]
