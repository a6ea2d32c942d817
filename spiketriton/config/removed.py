"""Keys that recipes once had. A run folder that names one at its default is read without it: that is what this version
does anyway. One with another value asks for something that is gone, and is refused.

docs/trust.md says how long a run folder can be read. Whoever removes a key adds it here with its default.
"""

from collections.abc import Iterator
from typing import Any

REMOVED: dict[str, Any] = {
    "checkpoint.keep": 2,
    "data.augmentation.drop": 0.0,
    "data.augmentation.rotate": "auto",
    "data.augmentation.shear": "auto",
    "data.check": "fast",
    "data.sampler": "shuffle",
    "loss.feature_weight": 0.0,
    "model.connect": "add",
    "model.drop_path": 0.0,
    "monitor.every": 0,
    "monitor.tensorboard": False,
    "monitor.wandb": "off",
    "monitor.wandb_project": "spiketriton",
    "neuron.tau_learnt": "layer",
    "train.channels_last": True,
    "train.eval_every": 1,
    "train.max_skips": 10,
    "train.mix_probability": 1.0,
    "train.nesterov": False,
    "train.patience": 0,
}

HARMLESS = ("checkpoint.keep", "monitor.every")
"""Those that moved no weight: a run folder is read whatever they are."""


def taken_out(document: dict[str, Any]) -> Iterator[str]:
    """Takes removed keys at their defaults out of a recipe's document, and names them; harmless ones without a word."""
    for dotted, default in REMOVED.items():
        *tables, name = dotted.split(".")
        table: Any = document
        for part in tables:
            table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict) and name in table:
            if dotted in HARMLESS:
                del table[name]
            elif same(table[name], default):
                del table[name]
                yield dotted


def same(value: Any, default: Any) -> bool:
    """Equal, and `true` is no 1."""
    return type(value) is type(default) and value == default
