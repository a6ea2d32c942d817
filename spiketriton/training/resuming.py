"""What a run begins with, or continues with: other weights, its last checkpoint, a longer schedule."""

import shlex
from functools import partial
from typing import Any

from spiketriton.config import recipe_from_toml, replace
from spiketriton.config.rules import NONE
from spiketriton.runs.same_recipe import MICRO_BATCHES, extension, refuse_another_recipe
from spiketriton.system.commandline import spelled
from spiketriton.system.errors import UserError
from spiketriton.training.environment import changed_precision, keep_threads
from spiketriton.training.optim import continue_on
from spiketriton.training.trainer import Trainer


def begin(trainer: Trainer) -> None:
    """What a new run begins with: the weights that `train.init_from` names, as far as they fit."""
    source = trainer.recipe.train.init_from
    if source == NONE:
        return
    from spiketriton.training.pretrained import find_weights, take_weights

    weights = trainer.ranks.decide(partial(find_weights, source))
    for line in take_weights(trainer.model, weights, source).lines():
        trainer.display.note(line)
    if trainer.update.ema is not None:
        trainer.update.ema.restart()


def resume(trainer: Trainer) -> None:
    """Continues from the newest valid checkpoint, and cuts the rows that were written after it.

    UserError: all checkpoints are damaged, of another recipe, or gone.
    """
    state = trainer.ranks.decide(trainer.checkpoints.load)
    if state is None:
        trainer.ranks.decide(partial(_refuse_lost_checkpoints, trainer))
        trainer.display.note("no checkpoint had been written yet: starting from the beginning")
        begin(trainer)
    else:
        _continue_from(trainer, state)
    trainer.folder.cut(trainer.step, trainer.progress.tested_at)


def _continue_from(trainer: Trainer, state: dict[str, Any]) -> None:
    recipe, folder, note = trainer.recipe, trainer.folder, trainer.display.note
    if "conversion" in state:
        raise UserError(f"{folder.path} was converted, not trained: it has no next step")
    # plugins may lie elsewhere than when the run began
    modules = recipe.plugins.modules
    moved = {"plugins.modules": modules} if modules else {}
    trained = recipe_from_toml(state["recipe"], state["name"], moved, of_run=folder.path)
    # the folder's recipe, which was compared before, may have been extended
    longer = extension(recipe.train, trained.train)
    extended = {longer.key: longer.after} if longer else {}
    refuse_another_recipe(recipe, replace(trained, values=extended))
    if any(recipe.values()[key] != trained.values()[key] for key in MICRO_BATCHES):
        note(
            f"a step is computed in other parts from here on ({trainer.accumulate}): batch norm takes the "
            "statistics of each, so the weights will not be those of the unbroken run, bit for bit"
        )
    trainer.load_state_dict(state)
    if longer:
        rate = continue_on(trainer.update.schedule, trainer.step)
        trainer.progress.since_best = 0
        note(
            f"extended from {longer.before} to {longer.after} {longer.unit}: the learning rate continues as in a "
            f"run of that length, {rate:.3g} at step {trainer.step + 1} of {trainer.plan.steps}"
        )
    if words := keep_threads(recipe.train, trainer.device, folder.sessions()):
        note(words)
    if words := changed_precision(trainer.placement.precision, folder.sessions()):
        note(words)
    note(f"resumes after step {trainer.step} of {trainer.plan.steps}")
    if trainer.plan.finished(trainer.progress):
        note("this run has ended; --extend trains it longer")


def _refuse_lost_checkpoints(trainer: Trainer) -> None:
    """UserError: rows tell of steps after the first save, and would be lost if the run began again."""
    reached, folder = trainer.folder.reached(), trainer.folder
    if reached > trainer.plan.first_save:
        again = shlex.join([*spelled("train"), *folder.again()])
        raise UserError(
            f"{folder.path} has rows up to step {reached} but no checkpoint (removed, or never written because "
            f"the disk was full), so there is nothing to continue from; its rows are kept. To train it "
            f"again: {again}"
        )
