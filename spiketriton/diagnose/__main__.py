"""spiketriton diagnose RECIPE|RUN [key=value ...] [--json] [--out DIR] [--batches N] [--tries N]

Measure gradients through depth and time, and explain them.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from spiketriton.config import load_recipe
from spiketriton.config.shipped import find_recipe
from spiketriton.runs.outputs import output_folder
from spiketriton.runs.rows import json_text, replace_file
from spiketriton.system.commandline import RECIPE_HELP, Parser, number
from spiketriton.system.errors import EXIT_DONE, UserError, importing, run_command, warn

EPILOG = """\
examples:
  spiketriton diagnose quickstart
  spiketriton diagnose imagenette_r50 data.name=synthetic
  spiketriton diagnose runs/quickstart-20250101-120000 --json

A recipe is measured at the weights that training starts from, a run at those of its newest checkpoint.
Your run is not changed. Where something stands in the way, or a run is at chance, changes are tried on
fresh nets, and those that lower the loss are named."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("diagnose", EPILOG, {0: "done, whatever the verdict"})
    parser.add_argument("target", metavar="RECIPE|RUN", help=f"run folder, {RECIPE_HELP}")
    parser.add_overrides()
    parser.add_trust()
    parser.add_argument("--json", action="store_true", help="print JSON only, complete")
    words = "folder of diagnosis.json and .png (RUN, or runs/diagnose-<recipe>)"
    parser.add_argument("--out", metavar="DIR", help=words)
    many = number(1, 1000)
    parser.add_argument(
        "--batches", type=many, default=1, metavar="N", help="batches to measure (1)"
    )
    steps = number(0, 100_000)
    parser.add_argument(
        "--tries",
        type=steps,
        default=50,
        metavar="N",
        help="steps for which changes are tried where the verdict asks for one; 0: none (50)",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    refuse_mistakes(args.target, args.overrides)
    with importing():
        from spiketriton.diagnose.diagnosed import find_subject
        from spiketriton.diagnose.diagnosis import diagnose
        from spiketriton.diagnose.page import as_json, show
        from spiketriton.diagnose.picture import draw
        from spiketriton.show.screen import console_of

    subject = find_subject(args.target, args.overrides, warn)
    if args.out or not args.json:
        run = args.target if Path(args.target).is_dir() else None
        folder = output_folder(args.out or run or f"runs/diagnose-{subject.recipe.name}")
    found = diagnose(subject, args.batches, args.tries)
    text = json_text(as_json(found))
    if args.json:
        print(text, end="")
    else:
        show(found, console_of())
    if args.out or not args.json:
        numbers = unused(folder, text)
        replace_file(numbers, text)
        draw(found, numbers.with_suffix(".png"))
        with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
            print(f"\n{numbers.with_suffix('.png')}\n{numbers}")
    return EXIT_DONE


def refuse_mistakes(target: str, overrides: Sequence[str]) -> None:
    """UserError: there is neither a recipe nor a folder, or the recipe refuses a change."""
    if Path(target).is_dir():
        return
    try:
        file = find_recipe(target)
    except UserError as error:
        raise UserError(f"{error}; or the folder of a run, which is not there either") from None
    load_recipe(file, overrides)


def unused(folder: Path, text: str) -> Path:
    """diagnosis.json in the folder, or diagnosis-2.json, ... where that or its picture is another's."""
    names = (f"diagnosis{f'-{n}' * (n > 1)}.json" for n in count(1))
    paths = (folder / name for name in names)

    def free(path: Path) -> bool:
        if path.exists():
            return path.read_text("utf-8") == text
        return not path.with_suffix(".png").exists()

    return next(filter(free, paths))


if __name__ == "__main__":
    run_command(main)
