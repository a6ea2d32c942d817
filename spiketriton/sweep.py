"""python -m spiketriton.sweep RECIPE key=v1,v2,... [key=...] [--out DIR]"""

import argparse
import io
import json
import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from spiketriton.commandline import Parser
from spiketriton.config import Recipe, load_recipe, to_toml
from spiketriton.data import build_data
from spiketriton.errors import EXIT_DONE, UserError, one_line, run_command
from spiketriton.runs.folder import RunFolder
from spiketriton.show.display import Display, duration, percent
from spiketriton.trainer import Trainer
from spiketriton.training.environment import describe
from spiketriton.training.nonfinite import Diverged

EPILOG = """\
examples:
  python -m spiketriton.sweep recipes/quickstart.toml neuron.surrogate.width=0.1,1,auto seed=0,1,2
  python -m spiketriton.sweep recipes/fashion_mnist_r20.toml model.name=mlp model.depth=5,10,20 \\
      train.max_steps=200 --out runs/depth

A key with one value is set in every cell. The cells run one after another, each in a run folder of
its own below DIR; the same command goes on where it was stopped, and finished cells are kept. Rows
of the table are means over seeds. With train.max_steps=1 nothing is learnt, and the norms are those
of the untrained net."""


@dataclass(frozen=True)
class Cell:
    """One training: what was swept, {key: value as given}, its recipe and its folder."""

    values: dict[str, str]
    recipe: Recipe
    path: Path

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "(the recipe)"


class Quiet(Display):
    """Keeps quiet but for warnings."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("sweep", "Train a grid of recipes, one after another.", EPILOG)
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file (TOML)")
    parser.add_argument("axes", nargs="*", metavar="key=v1,v2", help="values of a key")
    parser.add_argument("--out", metavar="DIR", help="folder (runs/sweep-<recipe>)")
    return parser.parse_intermixed_args(arguments)


def grid(recipe: str, axes: Sequence[str], out: Path) -> list[Cell]:
    """All cells, the last axis varying fastest. UserError: a value that the recipe refuses."""
    choices: dict[str, list[str]] = {}
    for axis in axes:
        key, equals, values = (part.strip() for part in axis.partition("="))
        listed = [value.strip() for value in values.split(",")]
        if not equals or not all(listed):
            raise UserError(f"axis {axis!r}: accepted: key=v1,v2,... as in seed=0,1,2")
        if key in choices:
            raise UserError(f"axis {axis!r}: {key} is given twice; accepted: one list of values")
        if len(set(listed)) < len(listed):
            raise UserError(f"axis {axis!r}: a value is given twice; accepted: different values")
        choices[key] = listed
    swept = [key for key, values in choices.items() if len(values) > 1]
    cells = []
    for combination in product(*choices.values()):
        given = dict(zip(choices, combination, strict=True))
        chosen = {key: given[key] for key in swept}
        made = load_recipe(recipe, [f"{key}={value}" for key, value in given.items()])
        cells.append(Cell(chosen, made, out / _folder_name(chosen)))
    return cells


def _folder_name(values: dict[str, str]) -> str:
    words = [f"{key.rpartition('.')[2]}={value}" for key, value in values.items()]
    return re.sub(r"[^\w=.,-]", "_", ",".join(words)) or "recipe"


def train_cell(cell: Cell) -> dict[str, Any] | int:
    """Trains a cell, or goes on with it, and returns its result; an exit code when it was stopped.

    The result of a finished cell is read again. UserError: its folder holds another recipe.
    """
    done = cell.path / "result.json"
    if (cell.path / "recipe.toml").exists():
        folder = RunFolder.open(cell.path)
        if to_toml(folder.load_recipe()) != to_toml(cell.recipe):
            raise UserError(
                f"{cell.path} holds a cell of another sweep; accepted: a new folder by --out"
            )
        if done.exists():
            return dict(json.loads(done.read_text("utf-8")))
        resume = True
    else:
        folder, resume = RunFolder.create(cell.path, cell.recipe.name), False
    data = build_data(cell.recipe)
    trainer = Trainer(cell.recipe, data, folder, Quiet())
    if resume:
        trainer.resume()
    folder.begin_session(cell.recipe, describe(trainer.device))
    result: dict[str, Any] = {"values": cell.values, "synthetic": data.synthetic}
    try:
        outcome = trainer.fit()
    except Diverged as error:
        result |= {"accuracy": None, "diverged": str(error), "seconds": trainer.progress.seconds}
    else:
        if not outcome.finished:
            return outcome.exit_code
        result |= {
            "accuracy": outcome.progress.test_accuracy,
            "test_loss": outcome.progress.test_loss,
            "seconds": outcome.progress.seconds,
        }
    found = trainer.calibration
    result["width"] = found.width if found else cell.recipe.neuron.surrogate.width
    done.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


@dataclass(frozen=True)
class Group:
    """The cells that differ in their seed only: what was swept beside it, results and cells."""

    values: dict[str, str]
    results: list[dict[str, Any]]
    cells: list[Cell]

    @property
    def accuracies(self) -> list[float]:
        return [r["accuracy"] for r in self.results if r["accuracy"] is not None]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies)) if self.accuracies else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); nan for fewer than two."""
        known = self.accuracies
        return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan

    @property
    def width(self) -> float:
        """The width that was trained with, the geometric mean over seeds."""
        return float(np.exp(np.mean([math.log(r["width"]) for r in self.results])))


def grouped(cells: Sequence[Cell], results: Sequence[dict[str, Any]]) -> list[Group]:
    groups: dict[tuple[tuple[str, str], ...], Group] = {}
    for cell, result in zip(cells, results, strict=True):
        values = {key: value for key, value in cell.values.items() if key != "seed"}
        group = groups.setdefault(tuple(values.items()), Group(values, [], []))
        group.results.append(result)
        group.cells.append(cell)
    return list(groups.values())


def table(groups: Sequence[Group], synthetic: bool) -> Table:
    """Mean and spread over seeds, a row per combination of values."""
    keys = list(groups[0].values)
    title = "test accuracy" + (" (synthetic images)" if synthetic else "")
    made = Table(title=title, box=SIMPLE_HEAD)
    for key in keys:
        made.add_column(key.rpartition(".")[2], no_wrap=True)
    for name in ("width used", "accuracy", "spread", "seeds", "time"):
        made.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        lost = len(group.results) - len(group.accuracies)
        spread = "" if math.isnan(group.spread) else f"± {100 * group.spread:.2f}"
        made.add_row(
            *(group.values[key] for key in keys),
            f"{group.width:.4g}",
            percent(group.mean) if group.accuracies else "diverged",
            spread,
            f"{len(group.results)}" + (f" ({lost} diverged)" if lost else ""),
            duration(sum(r["seconds"] for r in group.results)),
        )
    return made


def main(arguments: list[str]) -> int:
    from spiketriton.show.sweep_pictures import draw_sweep

    args = parse(arguments)
    out = Path(args.out or f"runs/sweep-{Path(args.recipe).stem}")
    cells = grid(args.recipe, args.axes, out)
    print(f"{len(cells)} cells in {out}", flush=True)
    results = []
    for number, cell in enumerate(cells, 1):
        result = train_cell(cell)
        if isinstance(result, int):
            print(f"stopped in cell {number} of {len(cells)}; the same command goes on:")
            print("  " + shlex.join(["python", "-m", "spiketriton.sweep", *arguments]))
            return result
        results.append(result)
        accuracy = result["accuracy"]
        end = percent(accuracy) if accuracy is not None else one_line(result["diverged"])
        print(f"{number:4}/{len(cells)}  {cell.label}  {end}", flush=True)
    groups = grouped(cells, results)
    synthetic = any(result["synthetic"] for result in results)
    rows = [
        {**group.values, "width": group.width, "mean": group.mean, "spread": group.spread}
        | {"accuracies": [result["accuracy"] for result in group.results]}
        for group in groups
    ]
    text = json.dumps(_without_nan(rows), indent=2) + "\n"
    (out / "results.json").write_text(text, "utf-8")
    # piped, there is no edge to break lines at
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=width).print(table(groups, synthetic))
    for path in draw_sweep(groups, out, synthetic):
        print(path)
    print(out / "results.json")
    return EXIT_DONE


def _without_nan(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON has no word for nan: null."""
    return [
        {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in row.items()
        }
        for row in rows
    ]


if __name__ == "__main__":
    run_command(main)
