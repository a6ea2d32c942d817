"""Finds losses and gradients that are not finite without waiting for the device.

The verdict on a step is a boolean on the device. In a bad step the optimizer does nothing (`found_inf`), and batch
norm's statistics are restored. After more bad steps in a row than the recipe allows (none under "stop") every later
one is left out too, so that the model is still the one that met the bad step when the host reads the counts.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# A loss scaler starts at 2^16 and halves: a gradient that still overflows at 2^-8 is bad.
SCALER_TRIES = 24


class Diverged(Exception):
    """The loss or the gradient is infinite or NaN, and training has ended."""


class Counts(NamedTuple):
    """What the device has counted; steps are numbered from 1, 0 is none."""

    skipped: int
    new: int  # skipped since they were last read
    last: int  # the last step that was left out
    halted_at: int  # the step that ended training
    loss: float  # of the last step that was left out
    norm: float  # of its gradient

    @property
    def number(self) -> str:
        """`the loss is nan`: what was not finite in the last step that was left out."""
        if math.isfinite(self.loss):
            return f"the norm of the gradient is {self.norm}"
        return f"the loss is {self.loss}"

    def in_words(self) -> str:
        """For the user: how many steps were left out since the last report, and why."""
        steps = "1 step was" if self.new == 1 else f"{self.new} steps were"
        return (
            f"{steps} left out, the last one step {self.last}, where {self.number}; "
            f"{self.skipped} in total"
        )


class FiniteGuard:
    """Keeps bad steps from changing anything; all ranks must be given the same `loss` and `norm`.

    optimizer: with torch's `fused=True`; its `step` is hooked. patience: bad steps in a row before the end. scaled: a
    loss scaler finds its factor by trial, so gradients may overflow; such steps change nothing either, and count as
    bad only after SCALER_TRIES in a row.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *, patience: int, scaled: bool
    ) -> None:
        self.patience, self.scaled = patience, scaled
        buffers = [buffer for buffer in model.buffers() if buffer is not None]
        dtypes = sorted({buffer.dtype for buffer in buffers}, key=str)
        self._buffers = [[b for b in buffers if b.dtype == dtype] for dtype in dtypes]
        device = next(model.parameters()).device
        zero = torch.zeros((), device=device)
        # changed in place alone, so that a CUDA graph of the step finds them
        self._in_a_row, self._overflows, self._skipped, self._last, self._halted_at = torch.zeros(
            5, dtype=torch.int64, device=device
        ).unbind()
        self._numbers = zero.double().expand(2).clone()  # loss and norm of the last bad step
        self._reported = 0
        self.withheld, self._found = zero.bool(), zero.clone()
        optimizer.register_step_pre_hook(self._withhold)

    @torch.no_grad()
    def begin(self) -> None:
        """Before the first forward pass of a step: remembers the statistics."""
        self._kept = [_flat(buffers) for buffers in self._buffers]

    @torch.no_grad()
    def judge(self, step: Tensor, loss: Tensor, norm: Tensor) -> None:
        """After backward, before the optimizer's step, whose number is `step`, from 1; scalars on the device."""
        overflow = ~norm.isfinite()
        _set(self._overflows, overflow, self._overflows + 1, 0)
        tries = SCALER_TRIES if self.scaled else 0
        bad = (~loss.isfinite() | (self._overflows > tries)) & (self._halted_at == 0)
        numbers = torch.stack([loss.double(), norm.double()])
        _set(self._in_a_row, bad, self._in_a_row + 1, 0)
        self._skipped += bad
        _set(self._last, bad, step, self._last)
        _set(self._numbers, bad, numbers, self._numbers)
        _set(self._halted_at, self._in_a_row > self.patience, step, self._halted_at)
        self.withheld.copy_(bad | overflow | (self._halted_at > 0))
        for buffers, kept in zip(self._buffers, self._kept, strict=True):
            chosen = torch.where(self.withheld, kept, _flat(buffers))
            parts = chosen.split([buffer.numel() for buffer in buffers])
            shaped = [part.view_as(b) for part, b in zip(parts, buffers, strict=True)]
            torch._foreach_copy_(buffers, shaped)
        del self._kept  # memory of a CUDA graph that is forgotten

    def _withhold(self, optimizer: Any, *_: object) -> None:
        # its own memory: of a CUDA graph that is forgotten nothing may be held
        found = self._found.copy_(self.withheld)
        optimizer.found_inf = torch.maximum(optimizer.found_inf, found) if self.scaled else found

    def tensors(self) -> list[Tensor]:
        """What `judge` changes besides the model's buffers."""
        counts = [self._in_a_row, self._overflows, self._skipped, self._last, self._halted_at]
        return [*counts, self._numbers, self.withheld]

    def read(self) -> Counts:
        """Waits for the device."""
        counts = [self._skipped, self._last, self._halted_at]
        skipped, last, halted, loss, norm = torch.cat(
            [torch.stack(counts).double(), self._numbers]
        ).tolist()
        new, self._reported = int(skipped) - self._reported, int(skipped)
        return Counts(int(skipped), new, int(last), int(halted), loss, norm)

    def state_dict(self) -> dict[str, int]:
        counts = torch.stack([self._in_a_row, self._overflows, self._skipped]).tolist()
        return dict(zip(_SAVED, counts, strict=True))

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name in _SAVED:
            getattr(self, f"_{name}").fill_(state[name])
        self._reported = state["skipped"]


_SAVED = ("in_a_row", "overflows", "skipped")


def _set(target: Tensor, condition: Tensor, value: Tensor | int, otherwise: Tensor | int) -> None:
    target.copy_(torch.where(condition, value, otherwise))


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])
