"""What a plugin's task may not be, and which keys of a recipe do nothing beside it."""

import re

from spiketriton.config import LossConfig
from spiketriton.config.recipe import KEYS, no_effect
from spiketriton.plugins.tasks.task import Task
from spiketriton.system.errors import UserError

TAKEN = ("loss", "images", "seconds", "chance", "chance_spread")
"""What columns of tests are named already."""


def refuse_unfit(cfg: LossConfig, made: Task) -> None:
    """UserError: its score has a name that is taken, or the recipe has keys that only classification reads."""
    name = getattr(made, "score", None)
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w*", name)) or name in TAKEN:
        raise UserError(
            f'loss.kind = "{cfg.kind}": the score of {type(made).__name__} is named {name!r}; accepted: letters, '
            f"digits and _, other than {', '.join(TAKEN)}"
        )
    for key in () if made.classifies else ("class_weights", "label_smoothing", "teacher"):
        if (value := getattr(cfg, key)) != KEYS[f"loss.{key}"].default:
            why = f'loss.kind = "{cfg.kind}" is a task without classes'
            raise UserError(no_effect(f"loss.{key}", value, why))
