"""TensorBoard event files, for those who ask for them (`monitor.tensorboard = true`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from spiketriton.errors import UserError


class TensorBoard:
    """Writes rows of metrics and gradients as scalars into `folder`.

    UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "monitor.tensorboard = true needs the package tensorboard: pip install tensorboard"
            ) from None
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl: train/loss, eval/test_accuracy, ..."""
        for key, value in row.items():
            if key not in ("kind", "step") and value is not None:
                self.writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def add_gradients(self, rows: Iterable[dict[str, Any]]) -> None:
        """A measurement of gradients.jsonl: each layer's RMS of dL/dx over all its time steps."""
        layers: dict[str, list[float]] = {}
        for row in rows:
            layers.setdefault(row["layer"], []).append(row["grad_input_rms"])
            step = row["step"]
        for layer, values in layers.items():
            rms = float(np.sqrt(np.mean(np.square(values))))
            self.writer.add_scalar(f"grad_input_rms/{layer}", rms, step)

    def close(self) -> None:
        self.writer.flush()
        self.writer.close()
