"""From the loss to new weights: what follows a step's forward passes, all of it on the device."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.config import TrainConfig
from spiketriton.training.ema import MovingAverage
from spiketriton.training.graphs import CudaGraphs, Steps, Work, obstacle_of, tensors_of
from spiketriton.training.guard import FiniteGuard
from spiketriton.training.optim import build_optimizer, build_schedule, clipped_norm
from spiketriton.training.placement import Placement
from spiketriton.training.ranks import Ranks


class Update:
    """Adds up the gradients of a step's parts, clips their sum, and changes the weights unless it is not finite.

    limit: of the gradient's norm; 0: none. model: on its device. placement: its precision decides whether the loss
    is scaled. ranks: average statistics of batch norms that each takes for itself. steps: of the whole training.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        peak_lr: float,
        limit: float,
        model: nn.Module,
        placement: Placement,
        ranks: Ranks,
        steps: int,
    ) -> None:
        self.model, self.ranks, self.limit = model, ranks, limit
        self.device = placement.device
        self.parameters = list(model.parameters())
        # without sync_bn each rank has its own: averaged, so that one checkpoint holds for all
        moving = [] if cfg.sync_bn else model.buffers()
        self.statistics = [buffer for buffer in moving if buffer.is_floating_point()]
        self.optimizer = build_optimizer(cfg, model, peak_lr)
        self.schedule = build_schedule(cfg, self.optimizer, steps)
        self.scaler = placement.scaler()
        # torch warns if the scaler skips the first step, which is normal
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.guard = FiniteGuard(
            model,
            self.optimizer,
            patience=cfg.max_skips if cfg.nonfinite == "skip" else 0,
            scaled=self.scaler.is_enabled(),
        )
        self.ema = MovingAverage(model, cfg.ema) if cfg.ema else None
        self.number = torch.zeros((), dtype=torch.int64, device=self.device)  # of the step

    def begin(self) -> None:
        """Before the first forward pass."""
        self.guard.begin()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a part's share of the loss."""
        self.scaler.scale(loss).backward()

    def step(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Changes the weights; `loss` is that of all parts. Returns that of all ranks, and the gradient's norm."""
        self.scaler.unscale_(self.optimizer)
        self.ranks.average_(self.statistics)
        loss, norm = self.ranks.mean(loss), self.gradient_norm()
        self.guard.judge(self.number, loss, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        return loss, norm

    def gradient_norm(self) -> Tensor:
        """Before clipping."""
        return clipped_norm(self.parameters, self.limit)

    def advance(self) -> float:
        """Sets the learning rate of the next step; returns that of the last."""
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        return rate

    def tensors(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        model = [*self.model.parameters(), *self.model.buffers()]
        average = [] if self.ema is None else [*self.ema.average.values(), self.ema.steps]
        return [*model, *tensors_of(self.optimizer), *self.guard.tensors(), *average]

    def runs(
        self, work: Work, mode: bool | str, *, own: bool, note: Callable[[str], object]
    ) -> Steps:
        """What runs the work of steps, as CUDA graphs where `train.graph` asks and nothing stands in the way.

        own: whether the network is somebody's, of whom "auto" does not know what it does in a step.
        """
        return Steps(
            work,
            self.optimizer,
            mode=mode,
            obstacle=obstacle_of(
                self.device,
                self.ranks.world_size,
                self.scaler.is_enabled(),
                own=mode == "auto" and own,
            ),
            state=self.tensors,
            note=note,
            graphs=partial(CudaGraphs, self.device),
        )

    @property
    def stateful(self) -> dict[str, Any]:
        """What a checkpoint holds of it, by name."""
        names = ("optimizer", "schedule", "scaler", "guard", *["ema"] * (self.ema is not None))
        return {name: getattr(self, name) for name in names}
