"""python -m spiketriton.diagnose RECIPE|RUN [key=value ...] [--json] [--out DIR] [--batches N]"""

import argparse
import contextlib
import sys
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from spiketriton.commandline import KEYS_HELP, RECIPE_HELP, Parser
from spiketriton.errors import EXIT_DONE, UserError, run_command, warn
from spiketriton.gradients.diagnosis import diagnose
from spiketriton.gradients.subject import find_subject
from spiketriton.runs.rows import json_text
from spiketriton.show.diagnosis_page import as_json, show
from spiketriton.show.diagnosis_picture import draw
from spiketriton.show.screen import console_of

EPILOG = """\
examples:
  python -m spiketriton.diagnose quickstart
  python -m spiketriton.diagnose imagenette_r50 data.name=synthetic
  python -m spiketriton.diagnose runs/quickstart-20250101-120000 --json

Nothing is trained. A recipe is measured at the weights that training starts from, a run at those of
its newest checkpoint. Exit codes: 0 whatever the verdict, 2 a mistake in the command or the recipe,
1 anything else."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("diagnose", EPILOG)
    parser.add_argument(
        "target",
        metavar="RECIPE|RUN",
        help=f"run folder, {RECIPE_HELP}",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=KEYS_HELP)
    parser.add_trust()
    parser.add_argument("--json", action="store_true", help="print JSON only, complete")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of diagnosis.json and .png (RUN, or runs/diagnose-<recipe>)",
    )
    parser.add_argument("--batches", default="1", metavar="N", help="batches to measure (1)")
    args = parser.parse_intermixed_args(arguments)
    if not args.batches.isdigit() or not 1 <= int(args.batches) <= 1000:
        parser.error(f"--batches {args.batches}: accepted: an integer from 1 to 1000")
    args.batches = int(args.batches)
    return args


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    subject = find_subject(args.target, args.overrides, warn)
    found = diagnose(subject, args.batches)
    text = json_text(as_json(found))
    if args.json:
        print(text, end="")
    else:
        show(found, console_of())
    if args.out or not args.json:
        run = Path(args.target) if Path(args.target).is_dir() else None
        folder = Path(args.out or run or f"runs/diagnose-{subject.recipe.name}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = unused(folder, text)
            numbers.write_text(text, "utf-8")
            draw(found, numbers.with_suffix(".png"))
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}; --out DIR") from None
        with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
            print(f"\n{numbers.with_suffix('.png')}\n{numbers}")
    return EXIT_DONE


def unused(folder: Path, text: str) -> Path:
    """diagnosis.json in the folder, or diagnosis-2.json, ... where that or its picture is another's."""
    names = (f"diagnosis{f'-{n}' * (n > 1)}.json" for n in count(1))
    paths = (folder / name for name in names)

    def free(path: Path) -> bool:
        if path.exists():
            return path.read_text("utf-8") == text
        return not path.with_suffix(".png").exists()

    return next(filter(free, paths))


class _Command(ModuleType):
    """The module `spiketriton.diagnose`, which is also the function: `spiketriton.diagnose(...)`."""

    def __call__(self, *args: Any, **keys: Any) -> Any:
        """`spiketriton.api.diagnose`."""
        from spiketriton import api  # the command does not need it

        return api.diagnose(*args, **keys)


sys.modules[__name__].__class__ = _Command

if __name__ == "__main__":
    run_command(main)
