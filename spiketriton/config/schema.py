"""The JSON schema of a recipe, by which editors complete keys and mark mistakes: python -m spiketriton.config --schema.

It knows each key alone. What keys mean together, and parts of one's own, a run checks.
"""

import json
from typing import Any

from spiketriton.config import parts
from spiketriton.config.recipe import KEYS, TABLES, Arguments, Spec, TableOfPart

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
    numbers = spec.field.metadata["numbers"]
    accepted: list[dict[str, Any]] = []
    if spec.words:
        accepted.append({"enum": [*spec.words]})
    if spec.items is not None:
        items = TEXT if spec.items is str else _number("number", numbers)
        accepted.append({"type": "array", "items": items})
    if spec.free:
        accepted.append({"type": "object"})
    if spec.base is bool:
        accepted.append({"type": "boolean"})
    elif spec.base in (int, float):
        accepted.append(_number("integer" if spec.base is int else "number", numbers))
    if spec.base is str or spec.text or parts.kind_of(spec.dotted):
        accepted.append(TEXT)
    said: dict[str, Any] = {"description": spec.field.metadata["doc"]}
    if not spec.required and not isinstance(spec.default, Arguments):
        said["default"] = spec.default
    return said | (accepted[0] if len(accepted) == 1 else {"anyOf": accepted})


def _number(kind: str, numbers: Any) -> dict[str, Any]:
    low = "exclusiveMinimum" if numbers.open == "low" else "minimum"
    high = "exclusiveMaximum" if numbers.open == "high" else "maximum"
    return {"type": kind, low: numbers.low, high: numbers.high}


def text() -> str:
    """The schema as the file docs/recipe.schema.json holds it."""
    return json.dumps(schema(), indent=1) + "\n"
