"""Recipes without plugins: those of other tests in the process are set aside."""

import pytest

from spiketriton.config import KEYS, TABLES, parts
from spiketriton.config.recipe import PartOptions


@pytest.fixture(autouse=True)
def clean():
    """Every test starts without parts, and leaves none."""
    registries = KEYS, TABLES, parts.PARTS, parts._files
    before = [dict(registry) for registry in registries]
    for dotted, spec in before[0].items():
        if issubclass(spec.table, PartOptions):
            del KEYS[dotted]
    for path, table in before[1].items():
        if issubclass(table, PartOptions):
            del TABLES[path]
    for named in [named for named, part in parts.PARTS.items() if not part.built_in]:
        del parts.PARTS[named]
    parts._files.clear()
    yield
    for registry, then in zip(registries, before, strict=True):
        registry.clear()
        registry.update(then)
    parts.entry_points.cache_clear()
