"""Changes tried: fresh nets, trained for some steps on the same images from the same seed, and their losses."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.config import Recipe
from spiketriton.config import replace as change
from spiketriton.data import Data
from spiketriton.diagnose.cures import Cure, change_neurons
from spiketriton.gradients.prober import MOST
from spiketriton.gradients.verdict import LIMITS
from spiketriton.models import Network, build_model
from spiketriton.plugins.tasks import answers, build_loss, image_dim, task_of
from spiketriton.system.errors import UserError
from spiketriton.training.optim import build_optimizer, build_schedule, clipped_norm
from spiketriton.training.placement import Placement
from spiketriton.training.randomness import seed_everything

STEPS = 50
MOST_CHANGES = 6


@dataclass(frozen=True)
class Trials:
    """steps, images: of each trial. as_it_is: the loss at its end, the mean of the last fifth of the steps; infinite
    where it was not finite. changed: the changes that were tried, with theirs. guess: that of answering without a
    look; None: it is not known. others: images that were not trained on, of which the losses are; 0: there are none.
    """

    steps: int
    images: int
    as_it_is: float
    changed: tuple[tuple[Cure, float], ...]
    guess: float | None = None
    others: int = 0

    @property
    def helped(self) -> list[tuple[Cure, float]]:
        """Changes whose loss is at least 5 % lower, and 5 % below that of guessing, in their order."""
        before = min(self.as_it_is, 1e30 if self.guess is None else self.guess)
        limit = before - (1 - LIMITS.loss) * abs(before)  # losses of a task may be negative
        return [(cure, loss) for cure, loss in self.changed if loss < limit]


def try_changes(
    recipe: Recipe, data: Data, found: Sequence[Cure], steps: int, placement: Placement
) -> Trials:
    """Trains the recipe as it is, and with one change each, on the first few images of as many batches.

    The schedule of the learning rate is that of a training of `steps` steps.
    """
    few = MOST[placement.device.type]

    def trained(*changes: str, own: Cure | None = None) -> float:
        changed = change(recipe, *changes)
        seed_everything(recipe.seed)
        model: Network = placement.place(build_model(changed, **data.facts.sizes))
        loss = build_loss(changed.loss, data.facts.class_counts)
        with contextlib.closing(data.train.from_step(0, placement.device)) as stream:
            shown = ((placement.to_device(x), *rest) for x, *rest in stream)
            batches: Iterator[tuple[Any, ...]] = (
                (x.narrow(image_dim(x), 0, min(few, len(y))), y[:few], *(n[:few] for n in lengths))
                for x, y, *lengths in shown
            )
            if own is not None:
                first = next(batches)
                change_neurons(model, own, first[0])
                batches = itertools.chain([first], batches)
            cfg, limit = changed.train, changed.clipping
            optimizer = build_optimizer(cfg, model.train(), changed.peak_lr)
            schedule = build_schedule(cfg, optimizer, steps)
            return loss_after(model, batches, loss, steps, optimizer, schedule, limit, placement)

    made = []
    for cure in found[:MOST_CHANGES]:
        try:
            change(recipe, *filter(None, [cure.override]))
        except UserError:  # the recipe has another key that refuses it
            continue
        override, own = ([cure.override], None) if cure.key else ([], cure)
        made.append((cure, trained(*override, own=own)))
    images = min(few, recipe.train.batch_size // data.train.accumulate)
    guess = task_of(recipe.loss).guess_loss(data.facts.class_counts)
    return Trials(steps, images, trained(), tuple(made), guess)


def loss_after(
    net: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    loss_of: Callable[..., Tensor],
    steps: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    limit: float = 0.0,
    placement: Placement | None = None,
) -> float:
    """Trains `net` for `steps` steps; the mean loss of the last fifth of them, infinite where it was not finite."""
    scaler = None if placement is None else placement.scaler()
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    if placement is not None:
        autocast = placement.autocast
    parameters, losses = list(net.parameters()), list[Tensor]()
    for (x, y, *lengths), _ in zip(batches, range(steps), strict=False):
        with autocast():
            loss = loss_of(answers(net, x, lengths), y, *lengths)
        losses.append(loss.detach())
        if scaler is None:
            loss.backward()
            clipped_norm(parameters, limit)
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clipped_norm(parameters, limit)
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        schedule.step()
    last = float(torch.stack(losses[-math.ceil(steps / 5) :]).double().mean())
    return last if math.isfinite(last) else math.inf
