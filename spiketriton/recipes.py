"""spiketriton recipes [NAME]

List the recipes that come with spiketriton.
"""

import argparse
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from spiketriton.config.names import BLOCK_NETS
from spiketriton.config.recipe import KEYS
from spiketriton.config.shipped import find_recipe, notes_of, shipped_recipes
from spiketriton.show.screen import Table, console_of, say, show_table, show_whole
from spiketriton.system.commandline import Parser
from spiketriton.system.errors import run_command

EPILOG = """\
examples:
  spiketriton recipes
  spiketriton recipes quickstart > mine.toml
  spiketriton train quickstart train.epochs=1

Every command that takes a recipe takes the name of a shipped one, from any folder."""

HEAD = ("recipe", "data", "network", "T", "memory", "here", "paper")
LEGEND = (
    "network: of LIF neurons unless it names others; T: time steps; memory: kept for the backward pass at the "
    "recipe's batch size; here: test accuracy in %, measured (-: not yet); paper: the published one"
)
_MEMORY, _PERCENT = re.compile(r"[\d.]+ [MG]B"), re.compile(r"[\d.]+(?= %)")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("recipes", EPILOG)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    if args.name is not None:
        print(find_recipe(args.name).read_text("utf-8"), end="")
        return
    show(console_of())


def show(console: Console) -> None:
    """A row for each shipped recipe, how each number of ours was measured, and what to do with a name."""
    notes = {name: notes_of(path) for name, path in shipped_recipes().items()}
    show_table(console, "", Table(HEAD, list(rows(notes)), words=(1, 2), legend=LEGEND))
    console.print()
    for name, said in notes.items():
        if _first(_PERCENT, said.get("Measured", "")) != "-":
            say(console, f"{name}: {said['Measured']}", indent="  ")
    console.print()
    show_whole(console, "spiketriton recipes NAME prints one, spiketriton train NAME trains it")


def rows(notes: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, ...]]:
    """A row below `HEAD` for each shipped recipe; `notes` are those of its header."""
    for name, path in shipped_recipes().items():
        document, said = tomllib.loads(path.read_text("utf-8")), notes[name]
        neuron = _value(document, "neuron.kind")
        net = _value(document, "model.name")
        block = _value(document, "model.block") if net in BLOCK_NETS else ""
        yield (
            name,
            _value(document, "data.name"),
            " ".join(word for word in (net, block, neuron) if word not in ("", "lif")),
            "-" if neuron == "relu" else str(_value(document, "time_steps")),
            _first(_MEMORY, said.get("Memory", "")),
            _first(_PERCENT, said.get("Measured", "")),
            _first(_PERCENT, said.get("Published", "")),
        )


def _value(document: Mapping[str, Any], dotted: str) -> Any:
    """A key of a recipe as the file has it, or its default: another package's network need not be installed here."""
    table, _, name = dotted.rpartition(".")
    return (document.get(table, {}) if table else document).get(name, KEYS[dotted].default)


def _first(number: re.Pattern[str], text: str) -> str:
    """The first number of that kind in the text; a dash without one."""
    found = number.search(text)
    return found[0] if found else "-"


if __name__ == "__main__":
    run_command(main)
