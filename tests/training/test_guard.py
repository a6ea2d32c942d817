"""The guard: what counts as a bad step, and what it leaves as it was."""

import math

import pytest
import torch

from spiketriton.config import TrainConfig
from spiketriton.system.ranks import Ranks
from spiketriton.training.guard import SCALER_TRIES, FiniteGuard
from spiketriton.training.optim import SKIPS, Update, build_optimizer
from spiketriton.training.placement import Placement


def judged(guard: FiniteGuard, loss: float, norm: float) -> None:
    guard.begin()
    guard.judge(torch.tensor(1), torch.tensor(loss), torch.tensor(norm))


def test_a_loss_scaler_may_try_but_not_for_ever():
    net = torch.nn.Linear(2, 1)
    guard = FiniteGuard(net, build_optimizer(TrainConfig(), net, 1e-3), patience=0, scaled=True)
    for _ in range(2):
        for _ in range(SCALER_TRIES):
            judged(guard, 1.0, math.inf)
        assert guard.read().halted_at == guard.read().skipped == 0
        judged(guard, 1.0, 1.0)
    for _ in range(SCALER_TRIES + 1):
        judged(guard, 1.0, math.nan)
    assert guard.read().halted_at == 1


def test_what_counts_as_bad():
    """A step is left out where the guard says so, or the scaler."""
    for scaled in (False, True):
        net = torch.nn.Linear(2, 1)
        optimizer = build_optimizer(TrainConfig(optimizer="sgd", momentum=0.0), net, 1e-3)
        guard = FiniteGuard(net, optimizer, patience=10, scaled=scaled)
        for loss, norm, bad in ((1.0, 1.0, False), (-math.inf, 1.0, True), (1.0, math.nan, True)):
            judged(guard, loss, norm)
            for overflow in (0.0, 1.0) if scaled else (0.0,):
                before = net.weight.detach().clone()
                net.weight.grad = torch.ones_like(net.weight)
                optimizer.found_inf = torch.tensor(overflow)  # as a scaler leaves it
                optimizer.step()
                moved = not torch.equal(net.weight, before)
                assert moved == (not bad and not overflow), (scaled, loss, norm, overflow)


@pytest.mark.parametrize(("keys", "allowed"), [({}, 0), ({"nonfinite": "skip"}, SKIPS)])
def test_training_ends_after_more_bad_steps_in_a_row_than_allowed(keys, allowed):
    placement = Placement(torch.device("cpu"), torch.float32, torch.contiguous_format)
    net = torch.nn.Linear(2, 1)
    guard = Update(TrainConfig(**keys), 1e-3, 0.0, net, placement, Ranks(), 10).guard
    steps = [True] * allowed + [False] + [True] * (allowed + 1) + [False, True]
    for step, bad in enumerate(steps, 1):
        guard.begin()
        guard.judge(torch.tensor(step), torch.tensor(math.nan if bad else 1.0), torch.tensor(2.0))
    counts = guard.read()
    ended = 2 * allowed + 2
    assert counts[:4] == (2 * allowed + 1, 2 * allowed + 1, ended, ended)
    assert math.isnan(counts.loss)
    assert counts.norm == 2.0
    assert bool(guard.withheld)  # every later step is left out, a good one too
    assert guard.read().new == 0


def test_statistics_of_a_bad_step_are_put_back():
    net = torch.nn.BatchNorm1d(3)
    optimizer = build_optimizer(TrainConfig(), net, 1e-3)
    guard = FiniteGuard(net, optimizer, patience=10, scaled=False)
    for norm in (1.0, math.inf):
        before = {name: buffer.clone() for name, buffer in net.named_buffers()}
        guard.begin()
        net(torch.randn(4, 3))
        after = {name: buffer.clone() for name, buffer in net.named_buffers()}
        guard.judge(torch.tensor(1), torch.tensor(1.0), torch.tensor(norm))
        wanted = after if math.isfinite(norm) else before
        assert wanted.keys() == {"running_mean", "running_var", "num_batches_tracked"}
        assert not torch.equal(before["running_mean"], after["running_mean"])
        for name, buffer in net.named_buffers():
            assert torch.equal(buffer, wanted[name]), name
