"""Runs that were not trained here: of files of weights, which are taken wherever a run is, and of what is converted."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spiketriton.config import Recipe, recipe_from_toml
from spiketriton.data import Facts
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder, is_weights
from spiketriton.system.errors import UserError, need, one_line
from spiketriton.system.plain import of_plain
from spiketriton.system.version import __version__
from spiketriton.training.environment import describe


def as_run(path: str) -> str:
    """The run of a command: `path`, or of a file of weights a folder in runs/, which is made."""
    return str(run_of(Path(path), Path("runs"))) if is_weights(path) else path


def run_of(file: Path, root: Path) -> Path:
    """The run folder in `root` of a file of weights, made once for each content. UserError: it is another file."""
    try:
        content = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    path = root / f"{file.stem}-{content}"
    return path if (path / "recipe.toml").exists() else make_run(file, path).path


def make_run(file: Path, path: str | Path | None) -> RunFolder:
    """A run folder at `path` of a file that `export_safetensors` wrote. UserError: it is another file, or damaged."""
    package = need("safetensors", "weights")
    try:
        with package.safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = Facts.of_state(of_plain(dict[str, Any], json.loads(said["data"]), "data"))
        step = int(said["step"])
        more = {name: json.loads(said[name]) for name in ("conversion",) if name in said}
        of_plain(dict[str, dict[str, Any]], more)
        text, name = said["recipe"], said["name"]
    except (KeyError, ValueError, OSError, package.SafetensorError) as error:
        raise UserError(
            f"{file} is not what spiketriton export --to safetensors writes: {type(error).__name__} {one_line(error)}"
        ) from None
    folder = RunFolder.create(path, name)
    try:
        with folder.held():
            recipe = recipe_from_toml(text, name, of_run=folder.path)
            save_run(folder, recipe, facts, tensors, torch.device("cpu"), step=step, **more)
    except UserError as error:
        raise type(error)(f"{file}: {error}") from None
    return folder


def save_run(
    folder: RunFolder,
    recipe: Recipe,
    facts: Facts,
    weights: Mapping[str, Tensor],
    device: torch.device,
    *,
    step: int = 0,
    **more: Any,
) -> None:
    """Writes the folder of a network that was not trained here; `more`: what else its checkpoint holds. UserError."""
    failures: list[str] = []
    Checkpoints(folder.checkpoints, failures.append).save_last(
        {
            "step": step,
            "recipe": recipe.to_toml(),
            "name": recipe.name,
            "version": __version__,
            "data": facts.state_dict(),
            "model": dict(weights),
            **more,
        }
    )
    if failures:
        raise UserError(failures[0])
    folder.begin_session(recipe, describe(device))
