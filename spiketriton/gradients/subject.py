"""What is diagnosed: a recipe with fresh weights, or a run with those of a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from spiketriton.config import Recipe, load_recipe, moved_plugins, replace
from spiketriton.config.shipped import find_recipe
from spiketriton.errors import UserError
from spiketriton.gradients.calibration import Calibration, wants_calibration
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder


@dataclass(frozen=True)
class Subject:
    """A recipe, and the weights and calibration of the run that is diagnosed, if it is a run.

    state: the weights; None for the fresh ones of the recipe's seed.
    calibration: the run's own; None where the width is a number or is still to be measured.
    step: optimizer steps behind the weights.
    """

    recipe: Recipe
    title: str
    state: dict[str, Tensor] | None = None
    calibration: Calibration | None = None
    step: int = 0


def find_subject(target: str, overrides: Sequence[str], warn: Callable[[str], None]) -> Subject:
    """The recipe file or run folder `target`, its recipe changed by `overrides`, `key=value`.

    UserError: it is neither a recipe nor a run, or has no spiking layers.
    """
    path = Path(target)
    if not path.is_dir():
        try:
            file = find_recipe(path)
        except UserError as error:
            raise UserError(f"{error}; or the folder of a run, which is not there either") from None
        subject = Subject(load_recipe(file, overrides), f"recipe {path}")
    else:
        subject = _of_run(RunFolder.find(path), overrides, warn)
    if subject.recipe.neuron.kind == "relu":
        raise UserError(
            'neuron.kind = "relu": an ANN has neither time nor a surrogate to diagnose; accepted: "if", "lif" or "plif"'
        )
    return subject


def _of_run(folder: RunFolder, overrides: Sequence[str], warn: Callable[[str], None]) -> Subject:
    recipe = replace(folder.load_recipe(moved_plugins(overrides)), *overrides)
    state = Checkpoints(folder.checkpoints, warn, recipe.checkpoint.keep).load()
    if state is None:
        raise UserError(f"{folder.path} holds no checkpoint yet; diagnose its recipe instead")
    kept = state.get("calibration")
    changed = f", with {' '.join(overrides)}" if overrides else ""
    return Subject(
        recipe,
        f"run {folder.path}, after step {state['step']}{changed}",
        state["model"],
        Calibration.of_state(kept) if kept and wants_calibration(recipe) else None,
        state["step"],
    )
