"""python -m spiketriton.config [PLUGIN ...] prints docs/recipes.md, with the keys of these plugins (modules or files).

python -m spiketriton.config --schema prints docs/recipe.schema.json instead.
"""

import re
from collections.abc import Mapping

from spiketriton.config import parts, schema
from spiketriton.config.kinds import kinds
from spiketriton.config.recipe import KEYS, TABLES, PartOptions, Spec, Table
from spiketriton.config.words import shown
from spiketriton.system.errors import run_command

FIRST = (
    *("data.name", "data.root", "model.name", "time_steps", "neuron.kind"),
    *("train.epochs", "train.batch_size", "train.lr", "train.device", "seed"),
)
"""The keys that a newcomer needs."""

INTRODUCTION = """# Recipes

For whoever writes or changes a recipe. **One TOML file describes one run: `spiketriton train RECIPE [key=value ...]`.**

* Only `data.name` and `model.name` must be given; every other key has a default.
* `key=value` on the command line overrides the file: `train.epochs=1 data.root=/data`. Values are
  TOML; the quotes of a string may be left out. The last override of a key wins.
* A recipe is checked before any work starts. An unknown key, a wrong type, a value out of range,
  keys that contradict each other, or a key without effect ends the command with one line and exit
  code 2; those of places and machines may stay, as `data.root` of digits. Types are exact: a string is
  not a number, `true` is not an integer; `1` may stand for `1.0`.
* A key of the file that an override leaves without effect falls back to its default:
  `train.optimizer=adamw` drops the `train.momentum` of the file.
* `neuron.kind=relu` turns every recipe into its ANN twin: the same network without time. Nothing
  else has to change: `time_steps`, the other keys of `[neuron]` and `model.memory` may stay in the
  file and have no effect, and `model.norm` is plain batch norm unless it is `none`.
* The resolved recipe, with every key that has an effect, is saved in the run folder: `recipe.toml`.

This page is printed by `python -m spiketriton.config`. [recipe.schema.json](recipe.schema.json) has the same
for editors: with `#:schema docs/recipe.schema.json` in its first line, Even Better TOML and taplo check a recipe.
"""


def markdown() -> str:
    """docs/recipes.md: every key with its default, the accepted values and the meaning."""
    built_in = {path: t for path, t in TABLES.items() if not issubclass(t, PartOptions)}
    lines = ["## The first ten", "", "| key | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{dotted}` | {_default(KEYS[dotted])} | {KEYS[dotted].doc} |" for dotted in FIRST]
    return "\n".join([INTRODUCTION, *lines, "", tables(built_in), neurons()])


def neurons() -> str:
    """A table of what the neurons' files say of each."""
    lines = [
        "## Neurons",
        "",
        "| `neuron.kind` | what it is | its keys | `--to nir`, by `neuron.reset` |",
    ]
    lines.append("| --- | --- | --- | --- |")
    for kind in kinds().values():
        keys = ", ".join(f"`{key}`" for key in kind.arguments.values())
        lines.append(f"| `{kind.name}` | {kind.says} | {keys} | {kind.nir} |")
    return "\n".join([*lines, ""])


def _default(spec: Spec) -> str:
    return "must be given" if spec.required else f"`{shown(spec.default)}`"


def tables(chosen: Mapping[str, type[Table]]) -> str:
    """A table of keys for each table of the recipe."""
    lines: list[str] = []
    for path, table in chosen.items():
        lines += [f"## `[{path}]`" if path else "## Top level", ""]
        lines += ["| key | default | accepted | meaning |", "| --- | --- | --- | --- |"]
        for dotted, spec in KEYS.items():
            if spec.table is table:
                accepted = re.sub(r'("\w+")', r"`\1`", spec.accepted)
                lines.append(f"| `{dotted}` | {_default(spec)} | {accepted} | {spec.doc} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if argv == ["--schema"]:
        print(schema.text(), end="")
        return
    before = set(TABLES)
    parts.load(argv)
    print(markdown(), end="")
    print(tables({path: table for path, table in TABLES.items() if path not in before}), end="")


if __name__ == "__main__":
    run_command(main)
