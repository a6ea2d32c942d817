"""spiketriton report RUN [--against RUN ...] [--out FILE]

Write one self-contained HTML page about a run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spiketriton.config import moved_plugins
from spiketriton.runs.folder import RunFolder, refuse_unusable
from spiketriton.runs.outputs import mark_of, marked, output_folder, refuse_foreign
from spiketriton.runs.rows import replace_file
from spiketriton.system.commandline import Parser
from spiketriton.system.errors import UserError, importing, run_command

if TYPE_CHECKING:
    from spiketriton.evaluate.results import Evaluation

EPILOG = """\
examples:
  spiketriton report runs/fashion
  spiketriton report runs/fashion --against runs/ann runs/converted --out report.html

An evaluation of the last checkpoint in RUN/evaluation is used as it is; otherwise the run is
evaluated now, which needs its data."""


def evaluation_of(path: str, overrides: Sequence[str]) -> "Evaluation":
    """The evaluation in the run folder if it is of the last checkpoint, else a new one."""
    from spiketriton.evaluate.evaluation import evaluate
    from spiketriton.training.trained import load_run

    return stored_evaluation(RunFolder.find(path)) or evaluate(load_run(path, *overrides))


def stored_evaluation(folder: RunFolder) -> "Evaluation | None":
    """That of the last checkpoint in the run folder; None where there is none."""
    from spiketriton.evaluate.results import read_evaluation
    from spiketriton.runs.state import read_state

    stored = folder.path / "evaluation" / "evaluation.json"
    if stored.is_file():
        found = read_evaluation(stored)
        state, _ = read_state(folder)
        if (found.checkpoint, found.training_step) == ("last", state["step"]):
            return found
    return None


def place(folder: RunFolder, out: str | Path | None) -> tuple[Path, str]:
    """Where a report goes, and its mark. UserError: it would replace what is none of this run, or cannot be written."""
    own, mark = folder.path / "report.html", mark_of(folder, "report")
    path = Path(out or own)
    if path.resolve() != own.resolve():
        refuse_foreign([path], marked(mark))
    output_folder(path.parent)
    return path, mark


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("report", EPILOG)
    parser.add_run()
    parser.add_argument("--against", nargs="+", default=[], metavar="RUN", help="runs to compare")
    parser.add_argument("--out", metavar="FILE", help="output file (RUN/report.html)")
    without = "show only what the run folder holds; no data are needed"
    parser.add_argument("--no-evaluation", action="store_true", help=without)
    args = parser.parse_intermixed_args(arguments)
    if args.no_evaluation and args.against:
        parser.error("--against has no effect with --no-evaluation")
    return args


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    for path in (args.run, *args.against):
        refuse_unusable(path, args.overrides)
    with importing():
        from spiketriton.report.page import Page
        from spiketriton.training.weights import as_run

    args.run, *args.against = map(as_run, (args.run, *args.against))
    folder = RunFolder.find(args.run)
    recipe = folder.load_recipe(moved_plugins(args.overrides))
    out, mark = place(folder, args.out)
    evaluations = []
    if not args.no_evaluation:
        evaluations = [evaluation_of(path, args.overrides) for path in [args.run, *args.against]]
        refuse_other_data(evaluations)
    text = Page(folder, recipe, evaluations).html(mark)
    replace_file(out, text)
    print(f"{out}: {len(text) / 2**20:.1f} MiB; open it in a browser")


def refuse_other_data(evaluations: list["Evaluation"]) -> None:
    """UserError: a run was tested on other images than the first."""
    first = evaluations[0]
    for one in evaluations[1:]:
        same = (one.data, one.classes, one.images) == (first.data, first.classes, first.images)
        if not (same and one.score == first.score):
            raise UserError(
                f"{one.run} was tested on {one.images:,} images of {one.data}, and {first.run} on "
                f"{first.images:,} of {first.data}; accepted by --against: runs of the same data and task"
            )


if __name__ == "__main__":
    run_command(main)
