"""How values of a recipe are written, in TOML and in errors."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def short(value: Any, limit: int = 80) -> str:
    """The text of a value, cut after `limit` characters."""
    if type(value) is int and value.bit_length() > 128:  # Python refuses to print huge integers
        return f"an integer of {value.bit_length()} bits"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def number(value: float) -> str:
    """The bound of a range as people write it: 1000, 1e6, 1e-6."""
    return str(value) if isinstance(value, int) else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:g}")


def shown(value: Any) -> str:
    """A value in TOML, cut if it is long; a table is only named."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(short(value))
    if isinstance(value, (int, float)):
        return short(value)
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        parts = ["an array" if isinstance(part, list) else shown(part) for part in value[:8]]
        return f"[{', '.join([*parts, *['...'] * (len(value) > 8)])}]"
    return f"{short(value)} ({type(value).__name__})"


def whole(value: Any) -> str:
    """A value in TOML, however long."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name_of(key)} = {whole(item)}' for key, item in value.items())}}}"
    return f"[{', '.join(map(whole, value))}]" if isinstance(value, tuple) else shown(value)


def name_of(key: str) -> str:
    """A key as TOML writes it: in quotes where it has to be."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else quoted(key)


def quoted(text: str) -> str:
    """A TOML basic string; characters that do not print are escaped."""

    def escaped(c: str) -> str:
        if c in '"\\':
            return "\\" + c
        if c.isprintable():
            return c
        return f"\\u{ord(c):04X}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08X}"

    return '"' + "".join(map(escaped, text)) + '"'


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are: `a, b and 3 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
