"""spiketriton sweep RECIPE key=v1,v2,... [key=...] [--out DIR]

Train a grid of recipes, one after another.
"""

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiketriton.runs.folder import RunFolder, refuse_links_out
from spiketriton.runs.outputs import refuse_foreign
from spiketriton.runs.rows import Row, read_record, write_json
from spiketriton.show.screen import Table, console_of, show_table
from spiketriton.sweep.grid import Cell, Group, grid, grouped, kind_of
from spiketriton.system.commandline import KEYS_PAGE, RECIPE_HELP, Parser, spelled
from spiketriton.system.errors import EXIT_DONE, UserError, importing, one_line, run_command

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """\
examples:
  spiketriton sweep quickstart neuron.surrogate.width=0.1,1,auto seed=0,1,2
  spiketriton sweep fashion_mnist_r20 model.name=mlp model.depth=5,10,20 \\
      train.max_steps=200 --out runs/depth

A key with one value is set in every run. The runs follow one another, each in its own run folder in
DIR. The same command continues a sweep that was stopped; finished runs are kept. Rows of
the table are means over seeds. With train.max_steps=1 nothing is learnt: the norms are those of the
untrained net."""

# keys of results.json beside the swept ones
RESULTS = ("width", "mean", "spread", "scores", "score", "score_is_share", "higher_is_better")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("sweep", EPILOG)
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    words = f"values of a key; {KEYS_PAGE}"
    parser.add_argument("axes", nargs="*", metavar="key=v1,v2", help=words)
    parser.add_argument("--out", metavar="DIR", help="output folder (runs/sweep-<recipe>)")
    return parser.parse_intermixed_args(arguments)


def train_cell(cell: Cell) -> Row | int:
    """Trains a cell, or resumes it, and returns its result; an exit code if it was stopped.

    The result of a finished cell is read from its folder. UserError: that holds another recipe.
    """
    from spiketriton.system.ranks import Ranks
    from spiketriton.training.display import Quiet
    from spiketriton.training.guard import Diverged
    from spiketriton.training.session import Session

    resume = (cell.path / "recipe.toml").exists()
    if resume:
        folder = RunFolder.open(cell.path)
        if folder.load_recipe().to_toml() != cell.recipe.to_toml():
            raise UserError(
                f"{cell.path} holds a cell of another sweep; accepted: a new folder, given with --out"
            )
        if (earlier := cell.result()) is not None:
            return earlier
    else:
        folder = RunFolder.create(cell.path, cell.recipe.name)
    try:
        outcome = Session(cell.recipe, folder, Quiet(), Ranks(), resume, draws=False).train()
        if not (outcome.finished and outcome.saved):
            return outcome.exit_code
        done = outcome.progress
        found = done.named(math.nan if done.test_score is None else done.test_score)
        result: Row = {**found.row("test"), **found.kind, "test_loss": done.test_loss}
        result["seconds"] = done.seconds
    except Diverged as error:
        seconds = max((row["seconds"] for row in folder.metrics.read()), default=0.0)
        result = {"diverged": str(error), "seconds": seconds}
    result["synthetic"] = any(row.get("synthetic", False) for row in folder.metrics.read())
    result["width"] = cell.recipe.neuron.surrogate.width
    result = {"values": cell.values, **result}
    write_json(cell.result_file, result)
    return result


def refuse_other_sweep(path: Path, cells: Sequence[Cell]) -> None:
    """UserError: results of an earlier sweep are there that this one will not have, or files of somebody else's."""
    if not path.exists():
        refuse_foreign([path.with_name("norms.png")], lambda _: False)
        return
    known = [{k: v for k, v in cell.values.items() if k != "seed"} for cell in cells]
    for row in read_record(path, list[dict[str, Any]]):
        values = {key: value for key, value in row.items() if key not in RESULTS}
        if values not in known:
            words = " ".join(f"{key}={value}" for key, value in values.items()) or "the recipe"
            raise UserError(
                f"{path} has results of {words}, which is not in this sweep; accepted: a new folder, given with "
                "--out, or a sweep that includes it"
            )


def table(console: "Console", groups: Sequence[Group], synthetic: bool) -> None:
    """Prints mean and spread over seeds, a row per combination of values."""
    from spiketriton.show.words import duration, in_unit, in_words, scored, synthetic_note

    keys, kind = list(groups[0].values), kind_of(groups)
    rows = []
    for group in groups:
        lost = len(group.results) - len(group.scores)
        mean = scored(kind, group.mean) if group.scores else "diverged"
        spread = "" if math.isnan(group.spread) else f"± {in_unit(kind, group.spread):.3g}"
        if kind.share and spread:
            spread = f"± {in_unit(kind, group.spread):.2f}"
        seeds = f"{len(group.results)}" + (f" ({lost} diverged)" if lost else "")
        time = duration(sum(result["seconds"] for result in group.results))
        rows.append([*group.values.values(), f"{group.width:.4g}", mean, spread, seeds, time])
    names = [key.rpartition(".")[2] for key in keys]
    head = [*names, "width used", in_words(kind), "spread", "seeds", "time"]
    legend = "spread: standard deviation over the seeds"
    title = f"test {in_words(kind)}{synthetic_note(synthetic)}"
    show_table(console, title, Table(head, rows, keys=len(keys), legend=legend))


def in_short(cells: Sequence[Cell], out: Path) -> str:
    """How many cells there are, and which train the same."""
    if len(cells) == 1:
        return f"1 cell in {out}: the recipe alone; key=v1,v2 sweeps a key"
    twins = [c.values for c in cells if c.recipe.neuron.kind == "relu"]
    own = [{k: v for k, v in t.items() if k[:7] != "neuron."} for t in twins]
    again = sum(values in own[:i] for i, values in enumerate(own))
    why = f"; {again} of them train what another does, as an ANN reads no other key of neuron"
    return f"{len(cells)} cells in {out}" + why * bool(again)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    out = Path(args.out or f"runs/sweep-{Path(args.recipe).stem}")
    refuse_links_out(out)
    cells = grid(args.recipe, args.axes, out)
    print(in_short(cells, out), flush=True)
    refuse_other_sweep(out / "results.json", cells)
    with importing():
        from spiketriton.plugins.tasks import Score
        from spiketriton.show.words import scored
        from spiketriton.sweep.pictures import draw_sweep

    results = []
    for number, cell in enumerate(cells, 1):
        kept = " (kept)" if cell.result_file.exists() else ""
        result = train_cell(cell)
        if isinstance(result, int):
            print(f"stopped in cell {number} of {len(cells)}; the same command continues:")
            print("  " + shlex.join([*spelled("sweep"), *arguments]))
            return result
        results.append(result)
        found = Score.of_row(result)
        end = one_line(result.get("diverged", "")) if found is None else scored(found)
        print(f"{number:4}/{len(cells)}  {cell.label}  {end}{kept}", flush=True)
    groups = grouped(cells, results)
    synthetic = any(result["synthetic"] for result in results)
    rows = [
        {**group.values, "width": group.width, "mean": group.mean, "spread": group.spread}
        | {"scores": [found and found.value for found in map(Score.of_row, group.results)]}
        | kind_of(groups).kind
        for group in groups
    ]
    write_json(out / "results.json", rows)
    table(console_of(), groups, synthetic)
    for path in draw_sweep(groups, out, synthetic):
        print(path)
    print(out / "results.json")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
