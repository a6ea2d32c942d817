"""Optimizers decay what they should; schedules equal their closed forms and survive a resume."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from spiketriton.config import TrainConfig
from spiketriton.training.optim import build_optimizer, build_schedule

SCHEDULES = ["one_cycle", "cosine", "constant", "step"]


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    net.register_parameter("leak", nn.Parameter(torch.tensor(0.5)))
    return net


def rates(cfg, total, more=0):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.lr)
    schedule = build_schedule(cfg, optimizer, total)
    out = []
    for _ in range(total + more):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_weight_decay_reaches_matrices_and_kernels_only(name, kind):
    net = small_net()
    optimizer = build_optimizer(TrainConfig(optimizer=name, weight_decay=0.1), net, 0.5)
    assert type(optimizer) is kind
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, p in net.named_parameters():
        # lr * decay = 0.05 of the weight, for both optimizers when the gradient is zero
        expected = before[key] * 0.95 if key in ("0.weight", "3.weight") else before[key]
        torch.testing.assert_close(p.detach(), expected)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_are_fused_because_the_guard_needs_found_inf(name):
    optimizer = build_optimizer(TrainConfig(optimizer=name), nn.Linear(2, 2), 1e-3)
    assert optimizer.defaults["fused"] is True


def test_adamw_brings_gradients_above_its_eps_to_one_size():
    moved = {}
    for eps in (1e-8, 1e-20):
        weight = nn.Parameter(torch.zeros(3))
        net = nn.ParameterList([weight])
        optimizer = build_optimizer(TrainConfig(eps=eps), net, 1.0)
        weight.grad = torch.tensor([1.0, 1e-8, 1e-14])
        optimizer.step()
        moved[eps] = -weight.detach()
    torch.testing.assert_close(moved[1e-8], torch.tensor([1.0, 0.5, 1e-6]), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[1e-20], torch.ones(3), rtol=1e-3, atol=0)


def test_frozen_parameters_are_left_out():
    net = small_net()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(TrainConfig(), net, 1e-3)
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(given) == 5


def test_a_net_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="Flatten has no trainable parameters"):
        build_optimizer(TrainConfig(), nn.Flatten(), 1e-3)


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.35), (100, 0.3), (7, 0.8)])
def test_one_cycle_equals_torchs(total, warmup):
    cfg = TrainConfig(schedule="one_cycle", lr=0.4, warmup=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = OneCycleLR(optimizer, 0.4, total_steps=total, pct_start=warmup, cycle_momentum=False)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert rates(cfg, total) == pytest.approx(expected, rel=1e-9)


def test_cosine_rises_linearly_and_falls_as_a_cosine():
    lrs = rates(TrainConfig(schedule="cosine", lr=2.0, warmup=0.2), 20)
    assert lrs[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert lrs[4:] == pytest.approx([1 + math.cos(math.pi * i / 16) for i in range(16)])


def test_constant_rises_linearly_and_stays():
    lrs = rates(TrainConfig(schedule="constant", lr=2.0, warmup=0.2), 20)
    assert lrs == pytest.approx([0.5, 1.0, 1.5] + 17 * [2.0])


@pytest.mark.parametrize("warmup", [0.0, 0.99])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_one_step_takes_it_at_the_peak_rate(schedule, warmup):
    assert rates(TrainConfig(schedule=schedule, lr=0.3, warmup=warmup), 1) == [pytest.approx(0.3)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_last_step_the_rate_stays(schedule):
    lrs = rates(TrainConfig(schedule=schedule, lr=0.3, warmup=0.3), 10, more=3)
    assert lrs[10:] == 3 * [lrs[9]]


def test_no_steps_are_refused():
    optimizer = build_optimizer(TrainConfig(), small_net(), 1e-3)
    with pytest.raises(ValueError, match="total_steps = 0: accepted: an integer from 1"):
        build_schedule(TrainConfig(), optimizer, 0)


def test_a_step_schedule_falls_at_its_milestones():
    """torch's MultiStepLR behind a linear rise."""
    cfg = TrainConfig(schedule="step", lr=0.8, warmup=0.1, milestones=(0.3, 0.55), gamma=0.5)
    expected = [0.4, 0.8, *[0.8] * 4, *[0.4] * 5, *[0.2] * 9]
    assert rates(cfg, 20) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_decay_on_request(name):
    net = small_net()
    cfg = TrainConfig(optimizer=name, weight_decay=0.1, lr=0.5, decay_norms=True)
    groups = build_optimizer(cfg, net, cfg.lr).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [("one_cycle", 0.1, 0.02), ("cosine", 0.1, None), ("constant", 0.1, 1.0), ("step", 0.1, 0.01)],
)
def test_the_rise_begins_and_the_fall_ends_where_the_recipe_says(schedule, first, last):
    lowest = {"min_lr": 0.02} if schedule in ("one_cycle", "cosine") else {}
    lrs = rates(TrainConfig(schedule=schedule, lr=1.0, warmup=0.2, warmup_lr=0.1, **lowest), 100)
    assert lrs[0] == pytest.approx(first)
    assert max(lrs) == pytest.approx(1.0)
    assert lrs[:20] == sorted(lrs[:20])
    if last is None:  # as without: the last step is the last but one of the cosine
        last = 0.02 + 0.98 * (1 + math.cos(math.pi * 79 / 80)) / 2
    assert lrs[-1] == pytest.approx(last)
