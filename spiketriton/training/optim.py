"""From the loss to new weights: optimizer, learning-rate schedule, clipping, and what guards them; all on the device.

Optimizer and schedule are torch's own classes, which save and resume.
"""

import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves

from spiketriton.config import TrainConfig
from spiketriton.system.ranks import Ranks
from spiketriton.training.guard import FiniteGuard
from spiketriton.training.placement import Placement

if TYPE_CHECKING:
    from spiketriton.training.ema import MovingAverage

SKIPS = 10  # steps in a row that train.nonfinite = "skip" leaves out before the run ends
# OneCycleLR's defaults: where the rate starts below its peak, and where it ends below that start
START_FACTOR = 1 / 25
END_FACTOR = START_FACTOR / 1e4


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
            patience=SKIPS if cfg.nonfinite == "skip" else 0,
            scaled=self.scaler.is_enabled(),
        )
        self.ema: MovingAverage | None = None
        if cfg.ema:
            from spiketriton.training import ema

            self.ema = ema.MovingAverage(model, cfg.ema)
        self.number = torch.zeros((), dtype=torch.int64, device=self.device)  # of the step

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

    @property
    def stateful(self) -> dict[str, Any]:
        """What a checkpoint holds of it, by name."""
        names = ("optimizer", "schedule", "scaler", "guard", *["ema"] * (self.ema is not None))
        return {name: getattr(self, name) for name in names}


def build_optimizer(cfg: TrainConfig, model: nn.Module, lr: float) -> Optimizer:
    """SGD, AdamW or Muon over the trainable parameters of `model`. ValueError: there are none.

    Unless `decay_norms` is set, weight decay reaches matrices and convolution kernels only, and those never that a
    module names in `undecayed`, as the positions of delays. All can skip a step,
    state included, by a flag on the device (`found_inf`, see guard.py), torch's in their `fused` variants.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(model).__name__} has no trainable parameters")
    small = cfg.weight_decay if cfg.decay_norms else 0.0
    never = {getattr(m, name) for m in model.modules() for name in getattr(m, "undecayed", ())}
    decaying = [p for p in trained if p not in never]
    groups = [
        {"params": [p for p in decaying if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in decaying if p.ndim < 2], "weight_decay": small},
    ]
    if never:
        groups.append({"params": [p for p in trained if p in never], "weight_decay": 0.0})
    # state as torch's first step makes it: skipping that step would leave SGD's undefined
    if cfg.optimizer == "sgd":
        sgd = SGD(groups, lr=lr, momentum=cfg.momentum, fused=True)
        for p in trained if cfg.momentum else ():
            sgd.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        return sgd
    if cfg.optimizer == "muon":
        from spiketriton.training import muon

        hidden, others = muon.apart(groups, model)
        return muon.Muon(hidden, begun_adamw(others, lr=lr, eps=cfg.eps), momentum=cfg.momentum)
    return begun_adamw(groups, lr=lr, eps=cfg.eps)


def begun_adamw(groups: list[dict[str, Any]], lr: float, eps: float) -> AdamW:
    """With its state, as torch's first step makes it."""
    adamw = AdamW(groups, lr=lr, eps=eps, fused=True)
    for p in (p for group in groups for p in group["params"]):
        moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        adamw.state[p] = {"step": torch.zeros((), device=p.device, dtype=torch.float32), **moments}
    return adamw


def build_schedule(cfg: TrainConfig, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The learning rate over `total_steps` optimizer steps; call `.step()` after each of them.

    one_cycle: torch's OneCycleLR without momentum cycling: cosine up from lr/25 to lr in the first `warmup` of all
    steps, cosine down to lr/250000; where that would have no step near the peak the first step, or the last but one,
    is it. Others rise linearly to lr: cosine goes down towards 0, constant is level, step is multiplied by `gamma`
    after each of the `milestones`. `warmup_lr`, if above 0, is where the rise begins, and `min_lr` where the cosine
    ends. ValueError: `total_steps` below 1.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps = {total_steps}: accepted: an integer from 1")
    return LambdaLR(optimizer, partial(_factor, cfg, optimizer.defaults["lr"], total_steps))


def clipped_norm(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """The norm of the whole gradient, which is then scaled down to `limit` (0: left as it is)."""
    if limit:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def continue_on(schedule: LambdaLR, step: int) -> float:
    """Goes on after `step` steps of another schedule, and returns the first rate."""
    schedule.last_epoch = step - 1
    schedule.step()
    return float(schedule.get_last_lr()[0])


def _factor(cfg: TrainConfig, peak: float, total: int, step: int) -> float:
    """The learning rate of a step, from 0, as a share of its peak."""
    last, rise = total - 1, cfg.warmup * total
    step = min(step, last)
    start, end = cfg.warmup_lr / peak, cfg.min_lr / peak
    if cfg.schedule == "one_cycle":
        top = max(0.0, min(rise, last) - 1)
        if step < top:
            return _cosine(start or START_FACTOR, 1.0, step / top)
        return _cosine(1.0, end or END_FACTOR, (step - top) / (last - top) if last > top else 0.0)
    if start and step < rise:
        rising = start + (1.0 - start) * step / rise
    else:
        rising = min(1.0, (step + 1) / rise) if rise else 1.0
    if cfg.schedule == "cosine" and step >= rise:
        return rising * _cosine(1.0, end, (step - rise) / (total - rise))
    if cfg.schedule == "step":
        passed = sum(step >= max(1, round(share * total)) for share in cfg.milestones)
        return rising * cfg.gamma**passed
    return rising


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def tensors_of(optimizer: Optimizer) -> list[Tensor]:
    """The state of an optimizer."""
    return [x for x in tree_leaves(list(optimizer.state.values())) if isinstance(x, Tensor)]
