"""python -m spiketriton.recipes [NAME]: lists the shipped recipes, or prints one."""

import argparse
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spiketriton.commandline import Parser
from spiketriton.config.reading import load_recipe
from spiketriton.config.shipped import find_recipe, read_header, shipped_recipes
from spiketriton.errors import run_command

EPILOG = """\
examples:
  python -m spiketriton.recipes
  python -m spiketriton.recipes quickstart > mine.toml
  python -m spiketriton.train quickstart train.epochs=1

Every command that takes a recipe takes the name of a shipped one, from any folder."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("recipes", EPILOG)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    if args.name is not None:
        print(find_recipe(args.name).read_text("utf-8"), end="")
        return
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 118, highlight=False)
    console.print(listing())
    console.print("one of them: spiketriton recipes NAME; train it: spiketriton train NAME")


def listing() -> Table:
    """A row for each shipped recipe: data, network, T, memory, and what has been measured."""
    table = Table(box=SIMPLE_HEAD)
    for head in ("recipe", "data", "network", "T"):
        table.add_column(head, overflow="fold")
    for head in ("memory", "measured"):
        table.add_column(head, ratio=1)
    for name, path in shipped_recipes().items():
        recipe, notes = load_recipe(path), read_header(path).notes
        ann = recipe.neuron.kind == "relu"
        block = "" if recipe.model.block == "plain" else f", {recipe.model.block} blocks"
        network = f"{recipe.model.name}{block}, {recipe.neuron.kind}"
        measured = first_sentence(notes.get("Measured", "not yet"))
        if "Published" in notes:
            measured += f" (published: {first_sentence(notes['Published'])})"
        window = "-" if ann else str(recipe.time_steps)
        row = (name, recipe.data.name, network, window, first_sentence(notes["Memory"]), measured)
        table.add_row(*map(Text, row))
    return table


def first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    run_command(main)
