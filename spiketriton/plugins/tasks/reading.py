"""What of a network's currents is its answer: the only place that knows what `loss.read` means.

    mean   the mean over the time steps
    last   the last time step's

Of a sequence that is shorter than its batch, its own steps alone: `lengths` says how many of the T are valid.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Read = Literal["mean", "last"]


@dataclass(frozen=True)
class Reading:
    """Answers of currents, as `loss.read` says; loss, score, prediction and evaluation all read by it."""

    read: Read = "mean"

    @property
    def words(self) -> str:
        """What is read: `mean over time`."""
        return "mean over time" if self.read == "mean" else "last time step"

    def __call__(self, currents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Answers [B, ...] of currents [T, B, ...], in their dtype.

        lengths: int64 [B], 1 to T: the valid steps of each sequence, the first ones; None: all T.
        """
        if lengths is None:
            return currents.mean(0) if self.read == "mean" else currents[-1]
        kept = self.steps(currents, lengths)
        answers = torch.where(kept, currents, 0).sum(
            0
        )  # what is not valid may be anything, NaN too
        return answers / kept.sum(0) if self.read == "mean" else answers

    def steps(self, currents: Tensor, lengths: Tensor) -> Tensor:
        """Whether a step is read, bool [T, B, 1, ...] with as many dimensions as the currents."""
        at = torch.arange(len(currents), device=currents.device).unsqueeze(1)
        kept = at < lengths if self.read == "mean" else at == lengths - 1
        return kept.reshape(*kept.shape, *[1] * (currents.ndim - 2))

    def so_far(self, currents: Iterable[Tensor], lengths: Tensor | None = None) -> Iterator[Tensor]:
        """The answers [B, ...] after each time step, float32, of the currents [B, ...] of one step after another."""
        total, answers = None, torch.zeros(())
        for step, current in enumerate(currents):
            valid: Tensor | None = None
            seen: int | Tensor = step + 1
            if lengths is not None:
                shape = (-1, *[1] * (current.ndim - 1))
                valid = (step < lengths).view(shape)
                seen = lengths.clamp(max=step + 1).view(shape)
            if (
                self.read == "mean"
            ):  # in float64, and no cumsum, which CUDA refuses under train.deterministic
                added = (
                    current.double() if valid is None else torch.where(valid, current, 0).double()
                )
                total = added if total is None else total + added
                answers = (total / seen).float()
            else:
                latest = current.float()
                answers = (
                    latest if valid is None or step == 0 else torch.where(valid, latest, answers)
                )
            yield answers
