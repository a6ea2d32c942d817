"""Recipes: TOML files, read strictly into frozen dataclasses."""

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
