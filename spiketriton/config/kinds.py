"""The neurons of the kernels as their files declare them: each kind's keys, and how its membrane may be reset.

A class of `spiketriton_kernels/neurons/` that a recipe may name has a literal `recipe`:

    kind      what neuron.kind calls it
    says      what it is, in a few words
    nir       the nodes that it is in NIR, by reset; or why there are none
    keys      arguments of its constructor -> keys of [neuron]
    own       its own keys: (default, (lowest, highest), what it means); arguments of this name unless `keys` has them
    resets    what neuron.reset may be, first what `auto` stands for; without it hard, soft and none, and neuron.v_reset
    always    arguments that every recipe gives
    window    the argument that takes the time steps of a window
    parallel  True: it reads all steps at once, and has neither a reset nor a threshold that learns

The files are read, not imported: a recipe is checked before torch is there.
"""

import ast
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A neuron that a recipe may name."""

    name: str
    says: str
    nir: str
    module: str
    made_by: str  # the class
    keys: dict[str, str]
    own: dict[str, tuple[Any, tuple[float, float], str]]
    resets: tuple[str, ...]
    always: dict[str, Any]
    window: str
    parallel: bool

    @property
    def arguments(self) -> dict[str, str]:
        """Of its constructor, and the keys that they come from."""
        return self.keys | {name: name for name in self.own if name not in self.keys.values()}

    @property
    def leaks(self) -> bool:
        """Whether its membrane has a time constant."""
        return "tau" in self.keys.values()


@functools.cache
def kinds() -> dict[str, Kind]:
    """All of them, by name."""
    spec = find_spec("spiketriton_kernels")
    assert spec is not None
    assert spec.submodule_search_locations
    found = {}
    for file in sorted(Path(spec.submodule_search_locations[0], "neurons").glob("*.py")):
        for definition in ast.parse(file.read_text("utf-8")).body:
            if isinstance(definition, ast.ClassDef) and (said := _recipe(definition)):
                kind = Kind(
                    said["kind"],
                    said["says"],
                    said["nir"],
                    f"spiketriton_kernels.neurons.{file.stem}",
                    definition.name,
                    said.get("keys", {}),
                    said.get("own", {}),
                    said.get("resets", ()),
                    said.get("always", {}),
                    said.get("window", ""),
                    said.get("parallel", False),
                )
                found[kind.name] = kind
    first = [name for name in _FIRST if name in found]
    return {name: found[name] for name in dict.fromkeys((*first, *found))}


_FIRST = ("if", "lif", "plif", "ilif", "clif", "alif", "cuba")
"""The order of the explanation of neuron.kind; others follow."""


def _recipe(definition: ast.ClassDef) -> dict[str, Any]:
    for line in definition.body:
        if isinstance(line, ast.AnnAssign) and line.value and ast.unparse(line.target) == "recipe":
            return ast.literal_eval(line.value)
    return {}


def with_key(key: str) -> tuple[str, ...]:
    """The kinds that have a key of [neuron]."""
    return tuple(k.name for k in kinds().values() if key in (*k.keys.values(), *k.own))


def reset_by(reset: str) -> tuple[str, ...]:
    """The kinds for which `auto` of neuron.reset is this."""
    return tuple(k.name for k in kinds().values() if k.resets[:1] == (reset,))
