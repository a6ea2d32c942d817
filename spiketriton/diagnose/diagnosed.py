"""What is diagnosed: a recipe with fresh weights, or a run with those of a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from spiketriton.config import Recipe, load_recipe, moved_plugins, replace
from spiketriton.gradients.verdict import Learned, learned_by, planned_steps
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError


@dataclass(frozen=True)
class Subject:
    """A recipe, and the weights of the run that is diagnosed, if it is a run.

    state: the weights; None for the fresh ones of the recipe's seed.
    step: optimizer steps behind the weights.
    begun: whether these steps were the recipe's own: not where it was changed.
    learned: what the run's last test or loss shows; None for a recipe, and where the recipe was changed.
    changes: of the run's recipe, "key=value".
    """

    recipe: Recipe
    title: str
    state: dict[str, Tensor] | None = None
    step: int = 0
    begun: bool = False
    learned: Learned | None = None
    changes: tuple[str, ...] = ()


def find_subject(target: str, overrides: Sequence[str], warn: Callable[[str], None]) -> Subject:
    """The recipe file or run folder `target`, its recipe changed by `overrides`, `key=value`.

    UserError: it is neither a recipe nor a run, or has no spiking layers.
    """
    path = Path(target)
    if not path.is_dir():
        subject = Subject(load_recipe(path, overrides), f"recipe {path}")
    else:
        subject = _of_run(RunFolder.find(path), overrides, warn)
    if subject.recipe.neuron.kind == "relu":
        raise UserError(
            'neuron.kind = "relu": an ANN has neither time nor a surrogate to diagnose; accepted: a spiking neuron'
        )
    return subject


def _of_run(folder: RunFolder, overrides: Sequence[str], warn: Callable[[str], None]) -> Subject:
    folder_recipe = folder.load_recipe(moved_plugins(overrides))
    recipe = replace(folder_recipe, *overrides)
    state = Checkpoints(folder.checkpoints, warn).load()
    if state is None:
        raise UserError(f"{folder.path} holds no checkpoint; diagnose its recipe instead")
    weights = dict(state["model"])
    if recipe.neuron.surrogate != folder_recipe.neuron.surrogate:  # a width that is asked for wins
        weights = {k: v for k, v in weights.items() if not k.endswith("_extra_state")}
    counts = (state.get("data") or {}).get("class_counts", ())
    changed = f", with {' '.join(overrides)}" if overrides else ""
    return Subject(
        recipe,
        f"run {folder.path}, after step {state['step']}{changed}",
        weights,
        state["step"],
        state["step"] > 0 and not changed,
        None if changed else shown_by(folder, state["step"], recipe, counts),
        tuple(overrides),
    )


def shown_by(
    folder: RunFolder, until: float, recipe: Recipe, counts: Sequence[int]
) -> Learned | None:
    """What a run has shown until a step; None while it is too early. `counts`: training images of each class."""
    rows = [row for row in folder.metrics.read() if row["step"] <= until]
    return learned_by(rows, recipe, counts, planned_steps(recipe.train, sum(counts)))
