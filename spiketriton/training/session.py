"""One session of training: from a recipe and a run folder to the outcome, for the command and for Python."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from spiketriton.config import Recipe
from spiketriton.config.names import NONE
from spiketriton.data import build_data
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import json_text
from spiketriton.show.run_pictures import draw_run
from spiketriton.show.verdict import nothing_learnt
from spiketriton.system.errors import EXIT_NONFINITE, UserError
from spiketriton.system.ranks import Ranks
from spiketriton.training.announcements import Announcements
from spiketriton.training.display import Display, Quiet, make_display
from spiketriton.training.environment import describe
from spiketriton.training.guard import Diverged
from spiketriton.training.hooks import Hooks
from spiketriton.training.meters import is_out_of_memory
from spiketriton.training.placement import compiles
from spiketriton.training.plan import Outcome
from spiketriton.training.trainer import Trainer


@dataclass(frozen=True)
class Session:
    """A session of the training of a recipe in a folder. hooks: of the caller's. draws: the pictures of the run."""

    recipe: Recipe
    folder: RunFolder
    display: Display
    ranks: Ranks
    resume: bool = False
    hooks: Hooks = field(default_factory=Hooks)
    draws: bool = True

    @cached_property
    def announcements(self) -> Announcements:
        return Announcements(self.display, self.recipe, self.folder, self.ranks)

    def train(self) -> Outcome:
        """Trains in the folder, which it holds meanwhile, draws the pictures, and shows the summary.

        What the display is told is kept in the folder's console.log. Diverged: a loss or gradient was not
        finite. UserError: the user's mistake; a folder of a run that never began is removed again.
        """
        display = self.display
        with self.folder.held():
            trainer = self._prepared()
            compile_kernels(trainer)
            try:
                outcome = trainer.fit()
            except Exception:
                display.keep(traceback.format_exc())  # a command may say it in one line
                raise
            if self.ranks.first:
                if self.draws and not outcome.finished and outcome.saved:
                    display.note(f"step {outcome.saved_at} is saved; drawing the pictures")
                self.announcements.summary(outcome, self._pictures() if self.draws else [])
                learned = trainer.recorder.watch.learned
                if outcome.finished and learned is not None and learned.learns is False:
                    display.note(nothing_learnt(learned, self.announcements.diagnose()))
        return outcome

    def _prepared(self) -> Trainer:
        """A trainer that has begun or resumed the run."""
        recipe, folder, display, ranks = self.recipe, self.folder, self.display, self.ranks
        try:
            ranks.claim_device(recipe.train.device)
            if not self.resume and recipe.train.init_from != NONE:
                from spiketriton.training.pretrained import refuse_missing_weights

                ranks.decide(partial(refuse_missing_weights, recipe.train.init_from))
            with display.held_back():  # a refusal stands alone
                self.announcements.opening()
                data = build_data(recipe, rank=ranks.rank, world_size=ranks.world_size)
                ranks.meet()
                trainer = Trainer(recipe, data, folder, display, ranks, self.hooks)
                self.announcements.training(trainer.data, trainer.model, trainer.plan)
                if self.resume:
                    trainer.resume()
                else:
                    trainer.begin()
            folder.begin_session(
                recipe, describe(trainer.device, ranks, trainer.placement.precision)
            )
            if report := trainer.model.report():
                folder.write_network(report)
            if ranks.first:
                display.keep_in(folder.console)
        except BaseException as error:
            if is_out_of_memory(error):
                from spiketriton.training.gpu.memory_limit import too_large

                raise too_large(error) from None
            raise
        return trainer

    def _pictures(self) -> list[Path]:
        """Draws the run's pictures; if they cannot be written, warns and returns none."""
        try:
            title = f"{self.recipe.name} on {self.recipe.data.label}{self.display.suffix}"
            return draw_run(self.folder, title)
        except UserError as error:
            self.display.warn(f"not all pictures are drawn: {error}")
            return []


def compile_kernels(trainer: Trainer) -> None:
    """The kernels that the trainer's steps launch, where a GPU runs them.

    A machine's first rank compiles them, and its others find them compiled. Norms that ranks share
    launch others than those of one rank, by themselves meanwhile: the other ranks wait.
    """
    if trainer.monitor.layers and compiles(trainer.device):
        from spiketriton.training.gpu.precompile import precompile_for

        precompile_for(trainer)


def train_for_command(
    recipe: Recipe,
    folder: RunFolder,
    ranks: Ranks,
    words: Sequence[str],
    *,
    resume: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """A session, and what to try next or how to continue; returns the exit code.

    words: the recipe file and the overrides that made it.
    """
    silent = quiet or as_json or not ranks.first
    display = Quiet(warns=ranks.first) if silent else make_display()
    session = Session(recipe, folder, display, ranks, resume)
    try:
        outcome = session.train()
    except Diverged as error:
        if ranks.first:
            print(f"error: {error}", file=sys.stderr)
        return EXIT_NONFINITE
    except BaseException as error:
        failed = isinstance(error, Exception)
        if ranks.first and folder.recipe.exists() and (display.plan or not failed):
            what = f"failed (traceback: {folder.console})" if failed else "interrupted"
            session.announcements.to_continue(what)
        raise
    if ranks.first:
        session.announcements.what_next(outcome, words)
    if ranks.first and as_json:
        print(json_text({"run": str(folder.path), **outcome.row()}), end="")
    return outcome.exit_code
