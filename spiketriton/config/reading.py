"""Recipes from TOML files and `key=value` overrides, and back to TOML.

A recipe is refused in one line (`UserError`), before any work starts, when it holds an unknown key,
a value of the wrong type or out of range, keys that contradict each other, or a key that would have
no effect.
"""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from spiketriton.config import rules
from spiketriton.config.recipe import KEYS, TABLES, Recipe, Spec, Table, join, values_of
from spiketriton.config.words import quoted, short, shown
from spiketriton.errors import UserError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides, in order; the last one wins.

    Values are TOML; a string may be given without its quotes (`data.root=/data`). A key of the file
    that an override leaves without effect falls back to its default.
    Raises UserError for any mistake in the file, the overrides or the recipe.
    """
    path = Path(path)
    text, changes = _read(path), _parse_overrides(overrides)
    try:
        return _assemble(_parse(text), changes, path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def recipe_from_toml(text: str, name: str) -> Recipe:
    """The recipe that a TOML text holds. Raises UserError."""
    return _assemble(_parse(text), {}, name)


def replace(recipe: Recipe, *overrides: str) -> Recipe:
    """The recipe with `key=value` overrides, as in `load_recipe`. Raises UserError."""
    return _assemble(_effective(recipe), _parse_overrides(overrides), recipe.name)


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe: every key that has an effect in it, always in the same order.

    `recipe_from_toml(to_toml(recipe), recipe.name) == recipe`.
    """
    lines, table = [], ""
    for dotted, value in _effective(recipe).items():
        path, _, name = dotted.rpartition(".")
        if path != table:
            lines += ["", f"[{path}]"]
            table = path
        lines.append(f"{name} = {quoted(value) if isinstance(value, str) else shown(value)}")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; accepted: a recipe file (TOML)")
        if not path.is_file():
            raise UserError(f"{path}: no such recipe file{_near_file(path)}")
        return path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark first
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; TOML files are UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _near_file(path: Path) -> str:
    there = {p.stem: p for p in sorted(path.parent.glob("*.toml"))}
    near = difflib.get_close_matches(path.stem, there)
    return f"; did you mean {there[near[0]]}?" if near else ""


def _parse(text: str) -> dict[str, Any]:
    """TOML text -> {dotted key: checked value}."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: Python's limit on long integers
        end = f"at the end, line {len(text.splitlines())}"
        reason = str(error).replace("at end of document", end)
        raise UserError(f"invalid TOML: {reason}") from None
    return dict(_flatten(document, ""))


def _flatten(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        bare = re.fullmatch(r"[A-Za-z0-9_-]+", name)  # TOML allows any name in quotes
        dotted = join(path, name if bare else quoted(name))
        if dotted in KEYS:
            yield dotted, KEYS[dotted].check(value)
        elif dotted not in TABLES:
            raise UserError(_unknown(dotted, is_table=isinstance(value, Mapping)))
        elif isinstance(value, Mapping):
            yield from _flatten(value, dotted)
        else:
            raise UserError(f"{dotted} = {shown(value)}: accepted: a table, [{dotted}]")


def _unknown(dotted: str, is_table: bool) -> str:
    tables = list(TABLES)[1:]  # without the top level, which has no name
    table, _, name = dotted.rpartition(".")
    known = tables if is_table else list(KEYS)
    near = [k for k in known if k.rpartition(".")[2] == name]  # right key, wrong or missing table
    near = near or difflib.get_close_matches(short(dotted), known)
    siblings = [] if is_table else [k for k in KEYS if KEYS[k].table.path == table]
    if near:
        tip = f"did you mean {near[0]}?"
    elif siblings:
        tip = f"known keys: {', '.join(siblings)}"
    else:
        tip = f"known tables: {', '.join(tables)}"
    shown = short(dotted) if dotted.isprintable() else quoted(short(dotted))
    return f"unknown {'table' if is_table else 'key'} {shown}; {tip}"


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    changes = {}
    for text in overrides:
        dotted, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not dotted:
            raise UserError(f"override {short(text)!r}: accepted: key=value, as in train.epochs=1")
        if dotted in TABLES:
            raise UserError(
                f"override {short(text)!r}: {dotted} is a table; accepted: one of its keys, as in "
                f"{next(k for k in KEYS if k.startswith(dotted))}=..."
            )
        if dotted not in KEYS:
            raise UserError(f"override {short(text)!r}: {_unknown(dotted, is_table=False)}")
        changes[dotted] = KEYS[dotted].check(_parse_value(value, KEYS[dotted]))
    return changes


def _parse_value(text: str, spec: Spec) -> Any:
    """One TOML value, or the text itself where the key accepts a string and TOML reads no string."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = document["value"]
    bare = spec.base in (str, None) and not isinstance(value, str)  # data.root=2024
    return text if bare or len(document) > 1 else value


def _assemble(given: Mapping[str, Any], changes: Mapping[str, Any], name: str) -> Recipe:
    """The recipe `given`, overridden by `changes`; both are {dotted key: checked value}."""
    defaults = {dotted: spec.default for dotted, spec in KEYS.items()}
    values = {**defaults, **given, **changes}
    for dotted, spec in KEYS.items():
        if spec.required and values[dotted] is None:
            raise UserError(f"{dotted} is missing; accepted: {spec.accepted}")
    idle_before = rules.idle({**defaults, **given})
    for dotted, reason in rules.idle(values).items():
        if dotted in changes or (dotted in given and dotted in idle_before):
            raise UserError(rules.no_effect(dotted, values[dotted], reason))
        values[dotted] = defaults[dotted]
    return _build(Recipe, values, name=name)


def _build(table: type[Table], values: Mapping[str, Any], **extra: Any) -> Any:
    hints = get_type_hints(table)
    for field in dataclasses.fields(table):
        dotted = join(table.path, field.name)
        if dotted in values:
            extra[field.name] = values[dotted]
        elif field.name not in extra:
            extra[field.name] = _build(hints[field.name], values)
    return table(**extra)


def _effective(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of the keys that have an effect; the others are at their defaults."""
    values = values_of(recipe)
    idle = rules.idle(values)
    return {dotted: value for dotted, value in values.items() if dotted not in idle}
