"""The JSON schema of a recipe, by which editors complete keys and mark mistakes: python -m spiketriton.config --schema.

It knows each key alone. What keys mean together, and parts of one's own, a run checks.
"""

import json
from typing import Any, get_args, get_origin

from spiketriton.config import parts
from spiketriton.config.recipe import KEYS, TABLES, Arguments, Range, Spec, TableOfPart

TEXT = {"type": "string", "minLength": 1}


def schema() -> dict[str, Any]:
    """Of the built-in keys, JSON Schema 2020-12."""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of spiketriton",
        **_table(""),
    }
    for dotted, spec in KEYS.items():
        path, _, name = dotted.rpartition(".")
        table, here = root, ""
        for part in path.split(".") if path else ():
            here = f"{here}.{part}".lstrip(".")
            table = table["properties"].setdefault(part, _table(here))
        table["properties"][name] = _key(spec)
        if spec.required:
            table.setdefault("required", []).append(name)
            if path:
                root["required"] = [*dict.fromkeys([*root.get("required", []), path])]
    return root


def _table(path: str) -> dict[str, Any]:
    own = issubclass(TABLES[path], TableOfPart)  # [model.NAME] has the keys of a part of one's own
    others = {"type": "object"} if own else False
    return {"type": "object", "properties": {}, "additionalProperties": others}


def _key(spec: Spec) -> dict[str, Any]:
    accepted: list[dict[str, Any]] = [{"enum": [*spec.words]}] if spec.words else []
    accepted += [_kind(kind, spec.field.metadata["numbers"]) for kind in spec.kinds]
    if spec.dotted in parts.KIND_OF:  # a part of one's own
        accepted.append(TEXT)
    said: dict[str, Any] = {"description": spec.doc}
    if not spec.required and not isinstance(spec.default, Arguments):
        said["default"] = spec.default
    return said | (accepted[0] if len(accepted) == 1 else {"anyOf": accepted})


def _kind(kind: Any, numbers: Range) -> dict[str, Any]:
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _kind(get_args(kind)[0], numbers)}
    if kind in (int, float):
        low = "exclusiveMinimum" if numbers.open == "low" else "minimum"
        high = "exclusiveMaximum" if numbers.open == "high" else "maximum"
        named = "integer" if kind is int else "number"
        return {"type": named, low: numbers.low, high: numbers.high}
    return TEXT if kind is str else {"type": "boolean" if kind is bool else "object"}


def text() -> str:
    """The schema as the file docs/recipe.schema.json holds it."""
    return json.dumps(schema(), indent=1) + "\n"
