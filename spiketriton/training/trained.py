"""A trained run: from its folder to its network. Shared by evaluate, convert, export, report."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from spiketriton.config import Recipe, moved_plugins, replace
from spiketriton.data import Data, Facts, build_data
from spiketriton.models import Network, build_model
from spiketriton.models.converted import with_converted_neurons
from spiketriton.runs.checkpoint import State
from spiketriton.runs.folder import RunFolder, is_weights
from spiketriton.runs.same_recipe import refuse_changes
from spiketriton.runs.state import read_state
from spiketriton.system.errors import UserError, one_line
from spiketriton.system.plain import of_plain
from spiketriton.training.placement import Placement
from spiketriton_kernels.cache import cache_folder

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A network with the weights of a checkpoint, in eval mode, and what it was trained on."""

    folder: RunFolder
    recipe: Recipe
    facts: Facts
    model: Network
    placement: Placement
    step: int  # optimizer steps behind the weights
    checkpoint: str  # "last" or "best"
    conversion: dict[str, Any] | None  # how it was made from an ANN; None for a trained run
    augment: bool = True  # whether training images are augmented as the recipe says

    @cached_property
    def data(self) -> Data:
        augment = () if self.augment else ("data.augment=none",)
        return build_data(replace(self.recipe, *augment))

    @property
    def kind(self) -> str:
        """ "spiking" (trained as such), "converted" or "ann"."""
        if self.conversion is not None:
            return "converted"
        return "spiking" if self.model.is_spiking else "ann"

    @property
    def time_steps(self) -> int:
        """T of the recipe; 1 for an ANN that is shown constant images."""
        return self.facts.frames or self.model.time_steps

    @property
    def device(self) -> torch.device:
        return self.placement.device

    def to_device(self, images: torch.Tensor) -> torch.Tensor:
        return self.placement.to_device(images)

    def autocast(self) -> torch.autocast:
        return self.placement.autocast()


def load_run(
    path: str | Path,
    *overrides: str,
    values: Mapping[str, Any] | None = None,
    checkpoint: str = "last",
    test_images: int | None = None,
    augment: bool = True,
) -> TrainedRun:
    """Loads the run in the folder `path`, which may be read-only. Its data are looked for when `data` of it is used.

    A file that `spiketriton export --to safetensors` wrote is made a run of, once, in the cache.

    Args:
        overrides, values: of the keys that move a run and change no weight, as "data.root=...", or as Python values.
        checkpoint: "last", "best" (only with data.validation) or "ema" (only with train.ema).
        test_images: a fixed subset of the test images; 0 for all, None for what the recipe says.
        augment: False takes the training images as they are.

    UserError: no run, no whole checkpoint, weights of another shape.
    """
    if is_weights(path):
        from spiketriton.training.weights import run_of

        path = run_of(Path(path), cache_folder() / "weights")
    folder = RunFolder.find(path)
    begun = folder.load_recipe(moved_plugins(overrides, values))
    refuse_changes(overrides, values or {})
    recipe = replace(begun, *overrides, values=values)
    if test_images is not None:
        recipe = replace(recipe, f"data.test_images={test_images}")
    state, found = read_state(folder, checkpoint)
    try:
        conversion = of_plain(dict[str, Any] | None, state.get("conversion"), "conversion")
        if conversion is not None:
            of_plain(str, conversion.get("method"), "conversion.method")
    except ValueError as error:
        raise UserError(f"{folder.path}: its checkpoint is damaged: {error}") from None
    model, facts = network_of(recipe, state, folder.path)
    placement = Placement.set_up(recipe.train)
    return TrainedRun(
        folder=folder,
        recipe=recipe,
        facts=facts,
        model=placement.place(model).eval(),
        placement=placement,
        step=state["step"],
        checkpoint=found,
        conversion=conversion,
        augment=augment,
    )


def network_of(recipe: Recipe, state: State, path: Path) -> tuple[Network, Facts]:
    """The network of a state with its weights, and what it was trained on. UserError: `path` is damaged."""
    kept = state.get("data")
    try:
        facts = Facts.of_state(of_plain(dict[str, Any], kept, "data")) if kept else None
    except ValueError as error:
        raise UserError(f"{path}: the checkpoint is damaged: {error}") from None
    facts = facts or build_data(recipe).facts
    model = build_model(recipe, **facts.sizes)
    if "conversion" in state:
        model = with_converted_neurons(model)
    _load_weights(model, state, path)
    return model, facts


def _load_weights(model: Network, state: State, path: Path) -> None:
    """Copies the weights; names what does not fit the recipe and the data."""
    given = state.get("model")
    if not isinstance(given, dict):
        raise UserError(f"{path}: its checkpoint holds no weights; accepted: that of a trained run")
    try:
        model.load_state_dict(given)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        why = one_line(error).partition("state_dict for ")[2] or one_line(error)
        raise UserError(
            f"{path}: the weights of the checkpoint are not those of this recipe and data: {why[:200]}"
        ) from None


def with_bar(items: Iterable[T], title: str) -> Iterable[T]:
    """The items, with a bar on stderr if that is a terminal; it goes when they end."""
    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not sys.stderr.isatty())
