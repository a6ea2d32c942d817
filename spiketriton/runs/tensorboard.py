"""TensorBoard event files, for those who ask for them (`monitor.tensorboard = true`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spiketriton.errors import need


class TensorBoard:
    """Writes rows of metrics and gradients as scalars into `folder`.

    UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        boards = need("torch.utils.tensorboard", "tensorboard", "monitor.tensorboard = true")
        self.writer = boards.SummaryWriter(str(folder / "tensorboard"))

    def add(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl: train/loss, eval/test_accuracy, ..."""
        for key, value in row.items():
            if key not in ("kind", "step") and value is not None:
                self.writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def add_gradients(self, step: int, layers: Iterable[str], rms: Iterable[float]) -> None:
        """Each layer's RMS of dL/dx over all its time steps."""
        for layer, value in zip(layers, rms, strict=True):
            self.writer.add_scalar(f"grad_input_rms/{layer}", value, step)

    def close(self) -> None:
        self.writer.flush()
        self.writer.close()
