"""A plugin's task, tried before a step is made."""

import torch
from torch import Tensor

from spiketriton.config import Recipe
from spiketriton.data import Data
from spiketriton.models.inspection import failing
from spiketriton.system.errors import UserError


def rehearsed(recipe: Recipe, data: Data, device: torch.device) -> tuple[int, float | None]:
    """How many sums the task's `measure` gives, and the score of guessing on the test images, if it is known.

    Loss and score are tried on noise in place of answers, before a step is made. UserError: one of them fails, or is
    no number.
    """
    task, facts, what = data.task, data.facts, f'loss.kind = "{recipe.loss.kind}"'
    targets = data.train.targets[:2].to(device)
    shape = (len(targets), *task.answer_shape(len(facts.classes), facts.image_size))
    noise = torch.randn(recipe.time_steps, *shape, generator=torch.Generator().manual_seed(0))
    answers = noise.to(device).requires_grad_()
    with failing(f"{what}, loss of answers {[*answers.shape]},", type(task).loss):
        loss = task.loss(answers, targets)
    if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
        raise UserError(
            f"{what}: its loss is {_shown(loss)}; accepted: a scalar with a gradient, the mean over images"
        )
    with (
        failing(f"{what}, measure of answers {[*answers.shape]},", type(task).measure),
        torch.no_grad(),
    ):
        sums = task.summed(answers, targets)
    if recipe.time_steps > 1 and not task.whole:  # as `evaluate` measures
        fewer = f"{what}, measure of the first {recipe.time_steps - 1} steps, which whole = True leaves out,"
        with failing(fewer, type(task).measure), torch.no_grad():
            task.summed(answers[:-1], targets)
    if sums.ndim > 1:
        raise UserError(
            f"{what}: its measure gives {_shown(sums)}; accepted: a number, or some in one dimension"
        )
    with failing(f"{what}, value of {_shown(sums)} and chance,", type(task).value):
        value, chance = task.value(sums.cpu(), len(targets)), task.chance(data.test.targets)
    if not isinstance(value, float) or not isinstance(chance, float | None):
        raise UserError(
            f"{what}: value and chance give {_shown(value)} and {_shown(chance)}; accepted: a float, and a float or "
            "None"
        )
    return len(sums), chance


def _shown(value: object) -> str:
    return f"a tensor {[*value.shape]}" if isinstance(value, Tensor) else repr(value)
