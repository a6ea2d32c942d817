"""Plain data, as JSON and checkpoints hold them, as the records that they were: checked by the records' annotations."""

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def of_plain(kind: Any, value: Any, where: str = "") -> Any:
    """`value` as `kind`: a dataclass, a container or a plain type; lists become tuples, None of a float nan.

    ValueError: naming the place, what is there and what belongs there.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        for one in args:
            try:
                return of_plain(one, value, where)
            except ValueError:
                continue
    elif origin is Literal:
        if isinstance(value, str | int | bool) and value in args:
            return value
    elif is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, dict):
            return _record(kind, value, where)
    elif origin in (list, tuple):
        if isinstance(value, list | tuple):
            fixed = origin is tuple and args[-1:] != (...,)
            if not fixed or len(value) == len(args):
                kinds = args if fixed else args[:1] * len(value)
                pairs = enumerate(zip(kinds, value, strict=True))
                found = (of_plain(one, inner, f"{where}[{at}]") for at, (one, inner) in pairs)
                return origin(found)
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: of_plain(args[1], inner, f"{where}.{key}") for key, inner in value.items()}
    elif kind is float:
        if value is None:
            return math.nan
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1000:
            return float(value)
        if isinstance(value, float):  # infinite, or nan
            return value
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ValueError(f"{where or 'it'} is {_short(value)}, not {name}")


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}
    for name in value:
        if name not in known:
            raise ValueError(f"{where}{'.' * bool(where)}{_short(name)} is not known")
    found = {}
    for name, field in known.items():
        place = f"{where}.{name}" if where else name
        if name in value:
            found[name] = of_plain(hints[name], value[name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{place} is missing")
    return kind(**found)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
