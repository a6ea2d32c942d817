"""spiketriton evaluate RUN [--steps 1,2,4] [--against RUN ...] [--binary] [--json]

Accuracy, spikes, operations and energy of a run.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from spiketriton.runs.folder import RunFolder, refuse_unusable
from spiketriton.runs.outputs import marked, output_folder, refuse_foreign
from spiketriton.runs.rows import json_text, replace_file, write_json
from spiketriton.system.commandline import Parser, number
from spiketriton.system.errors import UserError, importing, run_command

if TYPE_CHECKING:
    from spiketriton.training.trained import TrainedRun

EPILOG = """\
examples:
  spiketriton evaluate runs/fashion
  spiketriton evaluate runs/fashion --steps 8,16 --against runs/ann runs/converted
  spiketriton evaluate runs/fashion data.root=/data --json > answer.json

Writes evaluation.json and pictures to DIR (RUN/evaluation); files of another run there are not
overwritten but named. The prediction after t steps is read of the first t as `loss.read` says, for every t from
one pass: their mean logits, or those of step t. docs/evaluation.md explains what is counted and how."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("evaluate", EPILOG)
    parser.add_run()
    count = number(1, 10**6)
    parser.add_argument(
        "--steps",
        type=lambda text: [count(step) for step in text.split(",")],
        default=[],
        metavar="1,2,4",
        help="time steps to show, also beyond T",
    )
    parser.add_argument("--against", nargs="+", default=[], metavar="RUN", help="runs to compare")
    parser.add_argument(
        "--binary",
        action="store_true",
        help="run a network of I-LIF with spikes of 0 and 1 too, over T x D steps, and compare every answer",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON instead of the table, all but what pictures are drawn of",
    )
    parser.add_argument("--out", metavar="DIR", help="output folder (RUN/evaluation)")
    parser.add_argument(
        "--images", type=count, metavar="N", help="a fixed subset of the test images"
    )
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images at once (the recipe's)"
    )
    parser.add_checkpoint()
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    for path in (args.run, *args.against):
        refuse_unusable(path, args.overrides)
    with importing():
        from spiketriton.evaluate.binary import binary, levels_of
        from spiketriton.evaluate.evaluation import evaluate
        from spiketriton.evaluate.pictures import draw_evaluations
        from spiketriton.evaluate.tables import show
        from spiketriton.show.screen import console_of, show_whole
        from spiketriton.training.trained import load_run
        from spiketriton.training.weights import as_run

    args.run, *args.against = map(as_run, (args.run, *args.against))
    own = Path(args.run) / "evaluation"
    if args.out and Path(args.out).resolve() != own.resolve():
        refuse_foreign_results(Path(args.out), args.run)
    runs = [
        load_run(path, *args.overrides, checkpoint=args.checkpoint, test_images=args.images)
        for path in [args.run, *args.against]
    ]
    refuse_other_tests(runs)
    if args.binary:
        levels_of(runs[0])
    folder = output_folder(args.out or own)
    steps = max(args.steps, default=0)
    evaluations = [evaluate(run, steps, args.batch_size or 0) for run in runs]
    if args.binary:
        found = binary(runs[0], args.batch_size or 0)
        evaluations[0] = dataclasses.replace(evaluations[0], binary=found)
    written = [folder / "evaluation.json"]
    replace_file(written[0], evaluations[0].to_json())
    if args.against:
        written.append(folder / "comparison.json")
        write_json(written[1], [dataclasses.asdict(one) for one in evaluations], indent=1)
    written += draw_evaluations(folder, evaluations)
    if args.json:
        print(json_text([one.numbers() for one in evaluations], indent=1), end="")
        return
    console = console_of()
    show(console, evaluations, args.steps)
    for path in written:
        show_whole(console, f"  {path}")


def refuse_foreign_results(folder: Path, run: str) -> None:
    """UserError: the folder has files of these names, and no evaluation.json of this run."""
    from spiketriton.evaluate.pictures import PICTURES

    numbers, path = folder / "evaluation.json", json.dumps(str(RunFolder.find(run).path))
    refuse_foreign([numbers], marked(f'"run": {path},'))
    if not numbers.exists():
        others = ("comparison.json", *PICTURES)
        refuse_foreign((folder / name for name in others), lambda _: False)


def refuse_other_tests(runs: list["TrainedRun"]) -> None:
    """UserError: a run was trained for other test images than the first."""
    import numpy as np

    first = runs[0].data
    for run in runs[1:]:
        data = run.data
        same = (data.name, data.classes) == (first.name, first.classes)
        if not (same and data.task.score == first.task.score):
            raise UserError(
                f"{run.folder.path} is of {data.name} with {len(data.classes)} classes, and "
                f"{runs[0].folder.path} of {first.name} with {len(first.classes)}; accepted by "
                "--against: runs of the same data and task"
            )
        if not np.array_equal(data.test.members, first.test.members):
            raise UserError(
                f"{run.folder.path} is tested on {data.test.images:,} images, and "
                f"{runs[0].folder.path} on {first.test.images:,}; --images N gives both the same"
            )


if __name__ == "__main__":
    run_command(main)
