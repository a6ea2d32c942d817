"""Recipes: TOML files, read strictly into frozen dataclasses.

Read names.py (the words), recipe.py (each key once, with its range, its meaning and where it has an effect), rules.py
(what contradicts what), reading.py (TOML and overrides). parts.py has the parts that plugins register, shipped.py the
recipes that come with the package; schema.py and `python -m spiketriton.config` print what editors and people read.
"""

from spiketriton.config.names import PlainNet
from spiketriton.config.reading import (
    load_recipe,
    moved_plugins,
    recipe_from_toml,
    replace,
    values_by_key,
)
from spiketriton.config.recipe import (
    KEYS,
    TABLES,
    CheckpointConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    MonitorConfig,
    NeuronConfig,
    PluginsConfig,
    Recipe,
    SurrogateConfig,
    TrainConfig,
)

to_toml = Recipe.to_toml

__all__ = [
    "KEYS",
    "TABLES",
    "CheckpointConfig",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "MonitorConfig",
    "NeuronConfig",
    "PlainNet",
    "PluginsConfig",
    "Recipe",
    "SurrogateConfig",
    "TrainConfig",
    "load_recipe",
    "moved_plugins",
    "recipe_from_toml",
    "replace",
    "to_toml",
    "values_by_key",
]
