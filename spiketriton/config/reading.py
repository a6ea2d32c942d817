"""Recipes from TOML files and `key=value` overrides, and back to TOML.

A recipe is refused in one line (`UserError`), before any work starts: docs/recipes.md says for what.
"""

import contextlib
import copyreg
import dataclasses
import difflib
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from spiketriton.config import parts
from spiketriton.config.recipe import (
    KEYS,
    SELECTORS,
    TABLES,
    Arguments,
    Recipe,
    Spec,
    Table,
    idle,
    join,
    no_effect,
    own_part,
)
from spiketriton.config.removed import REMOVED, taken_out
from spiketriton.config.shipped import find_recipe
from spiketriton.config.words import quoted, short, shown
from spiketriton.system.errors import UnknownKey, UserError

NEAR = 0.8  # likeness, 0 to 1, from which on a name is taken for a slip of another
PLUGINS = "plugins.modules"
ARGUMENTS = "model.arguments"


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """Reads a recipe and applies `key=value` overrides, in order; the last one wins.

    `path` is a file, or the name of a shipped recipe. A key of the file that an override leaves without effect falls
    back to its default. `values` are overrides as Python values, {dotted key: value}. UserError: any mistake.
    """
    path = find_recipe(path)
    text = _read(path)
    _load_plugins(overrides, values or {})
    with _named(path):
        given = _parse(text, path.parent)
    changes = _changes(overrides, values or {})
    with _named(path):
        return _assemble(given, changes, path.stem)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's path in front of mistakes."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def recipe_from_toml(
    text: str, name: str, values: Mapping[str, Any] | None = None, *, of_run: Path | None = None
) -> Recipe:
    """The recipe that a TOML text holds, with `values` as in `load_recipe`. UserError.

    of_run: the folder of the run that the text comes from. Its plugins need consent, and their relative files
    are in it.
    """
    _load_plugins((), values or {})
    given = _parse(text, of_run or Path(), values or {}, of_run is not None)
    return _assemble(given, _changes((), values or {}), name, of_run is not None)


def of_text(text: str, name: str) -> Recipe:
    """The recipe that `Recipe.to_toml` wrote, perhaps in another process."""
    return _assemble(_parse(text, Path()), {}, name, accepted=True)


def replace(recipe: Recipe, *overrides: str, values: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with `key=value` overrides and `values`, as in `load_recipe`. Raises UserError."""
    _load_plugins(overrides, values or {})
    changes = _changes(overrides, values or {})
    return _assemble(recipe.effective(), changes, recipe.name, accepted=True)


def values_by_key(keys: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} from keyword arguments; a bare name is a key of the top level or of [train]."""

    def dotted(key: str) -> str:
        return key if "." in key or key in KEYS or key in TABLES else f"train.{key}"

    return {dotted(key): value for key, value in keys.items()}


def _changes(overrides: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: checked value} of overrides, of which later ones win, and of Python values, which win over them."""
    changes = {}
    for text in overrides:
        dotted, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not dotted:
            raise UserError(f"override {short(text)!r}: accepted: key=value, as in train.epochs=1")
        _refuse_unknown(dotted, f"override {short(text)!r}: ")
        changes[dotted] = _parse_value(value, KEYS[ARGUMENTS if _is_argument(dotted) else dotted])
    for dotted in values:
        _refuse_unknown(dotted)
    changes = {dotted: _check(dotted, value) for dotted, value in {**changes, **values}.items()}
    if PLUGINS in changes:  # files of plugins with their whole paths
        changes[PLUGINS] = tuple(_absolute(one, Path()) for one in changes[PLUGINS])
    return changes


def _refuse_unknown(dotted: str, where: str = "") -> None:
    """UserError, which begins with `where`: it is no key."""
    if dotted in TABLES:
        known = next(k for k in KEYS if k.startswith(dotted))
        raise UserError(f"{where}{dotted} is a table; accepted: one of its keys, as in {known}=...")
    if dotted not in KEYS and not _is_argument(dotted):
        raise UserError(f"{where}{_unknown(dotted, is_table=False)}")


def _is_argument(dotted: str) -> bool:
    """Whether it is one of the arguments of a network: model.arguments.depths."""
    return dotted.startswith(f"{ARGUMENTS}.")


def _check(dotted: str, value: Any) -> Any:
    """The value as `Spec.check` has it."""
    if not _is_argument(dotted):
        return KEYS[dotted].check(value)
    name = dotted.removeprefix(f"{ARGUMENTS}.")
    return KEYS[ARGUMENTS].check({name: value})[name]


def _with_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with model.arguments.NAME in the table of model.arguments."""
    own = {k.removeprefix(f"{ARGUMENTS}."): v for k, v in values.items() if _is_argument(k)}
    rest = {k: v for k, v in values.items() if not _is_argument(k)}
    return {**rest, ARGUMENTS: Arguments({**rest[ARGUMENTS], **own})} if own else rest


# as text: another process imports the plugins before it reads the rest
copyreg.pickle(Recipe, lambda recipe: (of_text, (recipe.to_toml(), recipe.name)))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark first
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; TOML files are UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def moved_plugins(
    overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The plugins among overrides, {dotted key: value}: a run whose plugins have moved needs them first."""
    given = [text for text in overrides if text.partition("=")[0].strip() == PLUGINS]
    return _changes(given, {key: value for key, value in (values or {}).items() if key == PLUGINS})


def _load_plugins(overrides: Sequence[str], values: Mapping[str, Any]) -> None:
    """Imports the plugins that overrides name, so that their parts and keys are known."""
    parts.load(moved_plugins(overrides, values).get(PLUGINS, ()))


def _parse(
    text: str, folder: Path, values: Mapping[str, Any] = MappingProxyType({}), of_run: bool = False
) -> dict[str, Any]:
    """TOML text -> {dotted key: checked value}; its plugins are imported first, unless `values` name others.

    Files are relative to `folder`. of_run: code that the text names needs consent.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: Python's limit on long integers
        end = f"at the end, line {len(text.splitlines())}"
        reason = str(error).replace("at end of document", end)
        raise UserError(f"invalid TOML: {reason}") from None
    if of_run and (dropped := tuple(taken_out(document))):
        _say_once(folder, dropped)
    given, modules = _table(document, "plugins"), []
    if "modules" in given:
        modules = [_absolute(entry, folder) for entry in KEYS[PLUGINS].check(given["modules"])]
        given["modules"] = modules
    if PLUGINS in values:
        modules = []
    model = _table(document, "model")
    if model.get("name") == parts.FROM_NIR:
        _place_file(model.get("arguments"), folder, of_run)
    if of_run:
        call = _call(model.get("name"), model.get("arguments", {}))
        parts.refuse_unasked(modules, call, values.get(PLUGINS, ()))
    parts.load(modules)
    for path, dotted in SELECTORS.items():  # an installed package is imported when it is named
        table, name = _table(document, path), dotted.rpartition(".")[2]
        if name in table:
            KEYS[dotted].check(table[name])
    return dict(_flatten(document, ""))


@functools.cache  # a command may read a recipe several times
def _say_once(folder: Path, dropped: tuple[str, ...]) -> None:
    keys = ", ".join(dropped)
    print(f"{folder}: left out, for this version does so always: {keys}", file=sys.stderr)


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of the document; an empty one where there is none."""
    table = document.get(name)
    return table if isinstance(table, dict) else {}


def _place_file(arguments: object, folder: Path, of_run: bool) -> None:
    """Gives the file of an imported network its whole path: relative to `folder`, and of a run the copy in it."""
    if isinstance(arguments, dict) and isinstance(path := arguments.get("path"), str):
        own = folder / Path(path).name
        arguments["path"] = str((own if of_run and own.exists() else folder / path).absolute())


def _call(name: object, arguments: object) -> str:
    """In words, what a network of somebody else's is made by: NAME(ARGUMENTS); "" for others."""
    if not isinstance(name, str) or ":" not in name or name.startswith(f"{parts.IN_HAND}:"):
        return ""
    given = KEYS[ARGUMENTS].check(arguments)
    return f"{name}({', '.join(f'{key}={given[key]!r}' for key in sorted(given))})"


def _absolute(entry: str, folder: Path) -> str:
    """A plugin's file with its whole path, so that a resumed run finds it from anywhere."""
    return str((folder / entry).absolute()) if entry.endswith(".py") else entry


def _flatten(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        bare = re.fullmatch(r"[A-Za-z0-9_-]+", name)  # TOML allows any name in quotes
        dotted = join(path, name if bare else quoted(name))
        if dotted in KEYS:
            yield dotted, _check(dotted, value)
        elif dotted not in TABLES:
            if dotted in REMOVED:
                raise UnknownKey(
                    f"{dotted} = {shown(value)}: this key is gone, and only {shown(REMOVED[dotted])} is what "
                    "training does now"
                )
            raise UnknownKey(_unknown(dotted, is_table=isinstance(value, Mapping)))
        elif isinstance(value, Mapping):
            yield from _flatten(value, dotted)
        else:
            raise UserError(f"{dotted} = {shown(value)}: accepted: a table, [{dotted}]")


def _unknown(dotted: str, is_table: bool) -> str:
    tables = list(TABLES)[1:]  # without the top level, which has no name
    near = _near(short(dotted), tables if is_table else list(KEYS))
    table = dotted.rpartition(".")[0]
    siblings = [] if is_table else [k for k in KEYS if KEYS[k].table.path == table]
    if near:
        tip = f"did you mean {near}?"
    elif siblings:
        few = ", ".join(siblings[:12])
        tip = f"known keys: {few}" + ", ... (docs/recipes.md has all)" * (len(siblings) > 12)
    else:
        tip = f"known tables: {', '.join(tables)}"
    shown = short(dotted) if dotted.isprintable() else quoted(short(dotted))
    return f"unknown {'table' if is_table else 'key'} {shown}; {tip}"


def _near(dotted: str, known: Sequence[str]) -> str:
    """The known name that `dotted` may be a slip of, whose own name or the whole is near to it; "" for none."""
    owns = [other.rpartition(".")[2] for other in known]
    own = difflib.get_close_matches(dotted.rpartition(".")[2], owns, n=1, cutoff=NEAR)
    alike = [other for other, name in zip(known, owns, strict=True) if name in own]
    alike = alike or difflib.get_close_matches(dotted, known, n=1, cutoff=NEAR)
    return max(alike, key=lambda k: difflib.SequenceMatcher(None, dotted, k).ratio(), default="")


def _parse_value(text: str, spec: Spec) -> Any:
    """One TOML value, or the text itself where the key accepts a string and TOML reads no string."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        one = bool(text) and not set(text) & set("[]\"',")  # as in train.freeze=conv1
        return [text] if tuple[str, ...] in spec.kinds and one else text
    bare = set(spec.kinds) <= {str} and not isinstance(document["value"], str)  # data.root=2024
    return text if bare or len(document) > 1 else document["value"]


def _defaults() -> dict[str, Any]:
    return {dotted: spec.default for dotted, spec in KEYS.items()}


def _assemble(
    given: Mapping[str, Any], changes: Mapping[str, Any], name: str, accepted: bool = False
) -> Recipe:
    """The recipe `given`, overridden by `changes`; both are {dotted key: checked value}.

    accepted: `given` was a recipe before, in which a key without effect has its default.
    """
    defaults = _defaults()
    values = _with_arguments({**defaults, **given, **changes})
    for dotted, value in values.items():
        if value is None:
            raise UserError(f"{dotted} is missing; accepted: {KEYS[dotted].accepted}")
    idle_before = idle({**defaults, **given})
    for dotted, reason in idle(values).items():
        argued = dotted == ARGUMENTS and any(map(_is_argument, changes))
        before = dotted in given and dotted in idle_before and not accepted
        if dotted in changes or argued or before:
            raise UserError(no_effect(dotted, values[dotted], reason))
        values[dotted] = defaults[dotted]
    parts.asked_for.add(_call(values["model.name"], values[ARGUMENTS]))
    return _build(Recipe, values, name=name)


def _build(table: type[Table], values: Mapping[str, Any], **extra: Any) -> Any:
    hints = get_type_hints(table)
    for field in dataclasses.fields(table):
        dotted = join(table.path, field.name)
        if dotted in values:
            extra[field.name] = values[dotted]
        elif field.name == "options":
            selector = SELECTORS[table.path]
            part = own_part(selector, values[selector])
            if part is not None and part.options is not None:
                extra["options"] = _build(part.options, values)
        elif field.name not in extra:
            extra[field.name] = _build(hints[field.name], values)
    return table(**extra)
