"""What a run may continue with: its own last checkpoint, perhaps on a longer schedule. See `Trainer.resume`."""

import shlex
from typing import Any

from spiketriton.config import Recipe, recipe_from_toml, replace
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.same_recipe import MICRO_BATCHES, Extension, extension, refuse_another_recipe
from spiketriton.system.commandline import spelled
from spiketriton.system.errors import UserError


def begun_as(state: dict[str, Any], recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe of a checkpoint. UserError: it was converted, not trained, or is that of another recipe."""
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
    return trained


def other_parts(recipe: Recipe, trained: Recipe, accumulate: int) -> str:
    """What is said where a step is divided otherwise than before; "" else."""
    if all(recipe.values()[key] == trained.values()[key] for key in MICRO_BATCHES):
        return ""
    return (
        f"a step is computed in other parts from here on ({accumulate}): batch norm takes the statistics of each, so "
        "the weights will not be those of the unbroken run, bit for bit"
    )


def goes_on(longer: Extension, rate: float, step: int, steps: int) -> str:
    """What is said of a run that was extended."""
    return (
        f"extended from {longer.before} to {longer.after} {longer.unit}: the learning rate continues as in a run of "
        f"that length, {rate:.3g} at step {step + 1} of {steps}"
    )


def refuse_lost_checkpoints(folder: RunFolder, first_save: int) -> None:
    """UserError: rows tell of steps after the first save, and would be lost if the run began again."""
    if (reached := folder.reached()) > first_save:
        again = shlex.join([*spelled("train"), *folder.again()])
        raise UserError(
            f"{folder.path} has rows up to step {reached} but no checkpoint (removed, or never written because "
            f"the disk was full), so there is nothing to continue from; its rows are kept. To train it "
            f"again: {again}"
        )
