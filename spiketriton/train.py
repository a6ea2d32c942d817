"""spiketriton train RECIPE [key=value ...] [--run-dir DIR] [--resume RUN]

Train a network from one TOML recipe.
"""

import argparse
import os

from spiketriton.runs.folder import Onlooker
from spiketriton.runs.request import Request
from spiketriton.system.callable import as_function
from spiketriton.system.commandline import RECIPE_HELP, Parser
from spiketriton.system.errors import importing, run_command

EPILOG = """\
examples:
  spiketriton train quickstart
  spiketriton train my_recipe.toml train.epochs=1 neuron.kind=relu
  spiketriton train --resume runs/quickstart-20250101-120000
  spiketriton train --resume runs/quickstart-20250101-120000 --extend 20

Ctrl-C, SIGTERM or a closed terminal finishes the step, saves, and prints the command that resumes the run."""
CODES = {
    2: "a mistake in the command, the recipe or the data, a file that cannot be written, or too large for the memory",
    3: "a loss or gradient that is not finite (nonfinite.json in the run folder says where it began)",
    129: "the terminal closed, and saved",
    130: "interrupted, and saved",
    143: "terminated, and saved",
    1: "no room for the last checkpoint, or anything else",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("train", EPILOG, CODES)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_overrides()
    parser.add_trust()
    parser.add_argument("--run-dir", metavar="DIR", help="run folder (runs/<recipe>-<time>)")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    parser.add_argument(
        "--extend",
        metavar="EPOCHS",
        help="with --resume: train to this many epochs in total, or to train.max_steps=N",
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings only")
    parser.add_argument("--json", action="store_true", help="print the results only, as JSON")
    args = parser.parse_intermixed_args(arguments)
    if args.recipe is None and args.resume is None:
        parser.error("no RECIPE was given")
    if args.extend is not None and args.resume is None:
        parser.error("--extend needs --resume RUN, the run to extend")
    if args.run_dir is not None and args.resume is not None:
        parser.error("--run-dir contradicts --resume, which continues in the folder of the run")
    if args.resume is not None and "=" in (args.recipe or ""):  # the recipe is that of the run
        args.recipe, args.overrides = None, [args.recipe, *args.overrides]
    return args


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    asked = Request(args.recipe, args.overrides, args.run_dir, args.resume, extend=args.extend)
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):  # else one rank speaks for all
        asked.find_recipe()
    with importing():
        from spiketriton.system.torchrun import ranks_of_torchrun
        from spiketriton.training import session

    with ranks_of_torchrun() as ranks:
        recipe, folder = ranks.decide(asked.find_run)
        folder = folder if ranks.first else Onlooker(folder.path)
        words = [args.recipe or str(folder.recipe), *args.overrides]
        how = {"resume": args.resume is not None, "quiet": args.quiet, "as_json": args.json}
        code = session.train_for_command(recipe, folder, ranks, words, **how)
        ranks.meet()  # torchrun kills all ranks once one exits with another code than 0
        return code


as_function(__name__)

if __name__ == "__main__":
    run_command(main)
