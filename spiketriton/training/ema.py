"""An exponential moving average of a network's weights: often better than the weights themselves."""

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """average <- d * average + (1 - d) * weights, after each optimizer step.

    d is min(decay, (1 + n) / (10 + n)) at the n-th step, so that the start is soon forgotten (as in TensorFlow).
    Running statistics are averaged too; counters are those of the network when the average is used.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        tensors = chain(model.named_parameters(), model.named_buffers())
        self.sources = {n: value.detach() for n, value in tensors if value.is_floating_point()}
        self.average = {name: value.clone() for name, value in self.sources.items()}
        device = next(iter(self.sources.values())).device  # no waiting for it
        self.steps = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def restart(self) -> None:
        """The average is that of the present weights alone."""
        self.steps.zero_()
        for name, value in self.sources.items():
            self.average[name].copy_(value)

    @torch.no_grad()
    def update(self) -> None:
        """Counts the weights after a step."""
        self.steps += 1
        share = 1 - ((1 + self.steps) / (10 + self.steps)).clamp(max=self.decay)
        for name, value in self.sources.items():
            self.average[name].lerp_(value, share.to(value.dtype))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self.sources.items():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps.item(), "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps.fill_(state["steps"])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
