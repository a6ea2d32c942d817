"""TensorBoard and Weights & Biases, for those who ask for them (`monitor.tensorboard`, `monitor.wandb`)."""

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spiketriton.config import MonitorConfig, Recipe
from spiketriton.runs.rows import Row, replace_file
from spiketriton.system.errors import UserError, need, one_line


def boards_of(recipe: Recipe, folder: Path) -> "list[Board]":
    """Those that a recipe asks for. UserError: a package is missing."""
    asked = recipe.monitor
    boards: list[Board] = [TensorBoard(folder)] if asked.tensorboard else []
    if asked.wandb != "off":
        boards.append(WeightsAndBiases(folder, asked, recipe.values()))
    return boards


class Board(ABC):
    """Takes rows of metrics and of gradients as numbers by name."""

    @abstractmethod
    def log(self, step: int, values: dict[str, Any]) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Waits until all is written, or uploaded."""

    def add(self, row: Row) -> None:
        """A row of metrics.jsonl: train/loss, eval/test_accuracy, ..."""
        named = {k: v for k, v in row.items() if k not in ("kind", "step") and v is not None}
        self.log(row["step"], {f"{row['kind']}/{key}": value for key, value in named.items()})

    def add_gradients(self, step: int, layers: Iterable[str], rms: Iterable[float]) -> None:
        pairs = zip(layers, rms, strict=True)
        self.log(step, {f"grad_input_rms/{layer}": value for layer, value in pairs})


class TensorBoard(Board):
    """Writes scalars into `folder`. UserError: the package tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        boards = need("torch.utils.tensorboard", "tensorboard", "monitor.tensorboard = true")
        self.writer = boards.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases(Board):
    """Writes the recipe's `values`, and rows of metrics and gradients, to a run of Weights & Biases.

    All sessions of a run folder are one run there; its id is in `wandb_id`. Offline, `wandb/` in the folder has one
    offline run a session. UserError: the package is not installed, or refuses to begin.
    """

    def __init__(self, folder: Path, monitor: MonitorConfig, values: dict[str, Any]) -> None:
        self.wandb = need("wandb", "wandb", f'monitor.wandb = "{monitor.wandb}"')
        self.folder, self.monitor, self.values = folder, monitor, values
        self.run: Any = None
        self._open()

    def _open(self) -> None:
        monitor, id_of = self.monitor, self.folder / "wandb_id"
        try:
            id = id_of.read_text().strip() if id_of.exists() else uuid.uuid4().hex
            self.run = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT", "spiketriton"),
                name=self.folder.name,
                id=id,
                dir=str(self.folder),
                mode=monitor.wandb,
                resume="allow",
                config=self.values,
                settings=self.wandb.Settings(console="off", silent=monitor.wandb == "offline"),
            )
            replace_file(id_of, id)
        except (self.wandb.errors.Error, OSError) as error:
            raise UserError(
                f'monitor.wandb = "{monitor.wandb}": Weights & Biases could not be started: {one_line(error)}'
            ) from error
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, Any]) -> None:
        if self.run is None:  # training goes on after a session was closed
            self._open()
        self.run.log({"step": step, **values})

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None
