"""python -m spiketriton.train RECIPE [key=value ...] [--run-dir DIR] [--resume RUN]"""

import argparse
import sys
from functools import partial
from pathlib import Path

from spiketriton.commandline import Parser
from spiketriton.config import Recipe
from spiketriton.data import build_data
from spiketriton.errors import EXIT_NONFINITE, run_command
from spiketriton.runs.folder import Onlooker, RunFolder, find_run
from spiketriton.show.announcements import announce_parts, announce_run, summary, what_next
from spiketriton.show.display import Display, Quiet, make_display
from spiketriton.show.run_pictures import draw_run
from spiketriton.show.streams import survive_closed_output
from spiketriton.trainer import Trainer
from spiketriton.training.environment import describe
from spiketriton.training.memory_limit import is_out_of_memory, too_large
from spiketriton.training.nonfinite import Diverged
from spiketriton.training.ranks import Ranks, ranks_of_torchrun

EPILOG = """\
examples:
  python -m spiketriton.train recipes/quickstart.toml
  python -m spiketriton.train recipes/quickstart.toml train.epochs=1 neuron.kind=relu
  python -m spiketriton.train --resume runs/quickstart-20250101-120000

Ctrl-C, SIGTERM or a closed terminal finishes the step, saves, and prints the command that resumes the run.
Exit codes: 0 done, 2 a mistake in the command or the recipe (also: too large for the memory),
3 a loss or gradient that is not finite (nonfinite.json in the run folder says where it began),
129 / 130 / 143 interrupted and saved, 1 anything else (also: no disk space for the last checkpoint).
docs/recipes.md explains every key."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("train", EPILOG)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="recipe file (TOML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--run-dir", metavar="DIR", help="run folder (runs/<recipe>-<time>)")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    args = parser.parse_intermixed_args(arguments)
    if args.recipe is None and args.resume is None:
        parser.error("no RECIPE was given")
    if args.run_dir is not None and args.resume is not None:
        parser.error("--run-dir contradicts --resume, which continues in the folder of the run")
    if args.resume is not None and "=" in (args.recipe or ""):  # the recipe is that of the run
        args.recipe, args.overrides = None, [args.recipe, *args.overrides]
    return args


def main(arguments: list[str]) -> int:
    with ranks_of_torchrun() as ranks:
        args = parse(arguments)
        recipe, folder = ranks.decide(
            partial(find_run, args.recipe, args.overrides, args.run_dir, args.resume)
        )
        folder = folder if ranks.first else Onlooker(folder.path)
        with folder.held():
            code = train(args, recipe, folder, ranks)
        ranks.meet()  # torchrun kills all ranks once one exits with another code than 0
        return code


def train(args: argparse.Namespace, recipe: Recipe, folder: RunFolder, ranks: Ranks) -> int:
    display = make_display() if ranks.first else Quiet(warns=False)
    try:
        ranks.claim_device(recipe.train.device)
        announce_run(display, recipe, folder.path)
        data = build_data(recipe, rank=ranks.rank, world_size=ranks.world_size)
        ranks.meet()
        trainer = Trainer(recipe, data, folder, display, ranks)
        announce_parts(display, recipe, trainer.data, trainer.model, trainer.plan, ranks)
        if args.resume:
            trainer.resume()
        folder.begin_session(recipe, describe(trainer.device, ranks))
    except BaseException as error:
        folder.discard_if_unused()
        if is_out_of_memory(error):
            raise too_large(error) from None
        raise
    try:
        outcome = trainer.fit()
    except Diverged as error:
        if ranks.first:
            print(f"error: {error}", file=sys.stderr)
        return EXIT_NONFINITE
    if ranks.first:
        words = [args.recipe or str(folder.recipe), *args.overrides]
        summary(display, outcome, folder.path, pictures(folder, recipe, data.synthetic, display))
        what_next(display, outcome, folder.path, recipe, words, ranks.launcher)
    return outcome.exit_code


def pictures(folder: RunFolder, recipe: Recipe, synthetic: bool, display: Display) -> list[Path]:
    """Draws the run's pictures; if they cannot be written, warns and returns none."""
    try:
        return draw_run(folder, recipe, synthetic)
    except OSError as error:
        display.warn(f"the pictures in {folder.path} could not be written: {error.strerror}")
        return []


if __name__ == "__main__":
    survive_closed_output()
    run_command(main)
