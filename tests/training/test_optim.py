"""Optimizers decay what they should; schedules equal their closed forms."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from spiketriton.config import TrainConfig
from spiketriton.training.muon import all_orthogonal
from spiketriton.training.optim import build_optimizer, build_schedule
from spiketriton_kernels.nn import Delays

SCHEDULES = ["one_cycle", "cosine", "constant", "step"]


def small_net():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    net.register_parameter("leak", nn.Parameter(torch.tensor(0.5)))
    return net


def rates(total, more=0, **keys):
    cfg = TrainConfig(**keys)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.lr)
    schedule = build_schedule(cfg, optimizer, total)
    out = []
    for _ in range(total + more):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_weight_decay_reaches_matrices_and_kernels_and_norms_on_request(name, norms):
    net, cfg = small_net(), TrainConfig(optimizer=name, weight_decay=0.1, decay_norms=norms)
    optimizer = build_optimizer(cfg, net, 0.5)
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, p in net.named_parameters():
        # lr * decay = 0.05 of the weight, for all optimizers when the gradient is zero
        decays = norms or key in ("0.weight", "3.weight")
        torch.testing.assert_close(p.detach(), before[key] * (0.95 if decays else 1.0))


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_delays_do_not_decay(name, norms):
    net = nn.Sequential(*[Delays(4, 4, 3) for _ in range(3)], nn.Linear(4, 2))
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    cfg = TrainConfig(optimizer=name, weight_decay=0.1, decay_norms=norms)
    optimizer = build_optimizer(cfg, net, 0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, p in net.named_parameters():
        stays = "position" in key or ("bias" in key and not norms)
        torch.testing.assert_close(p.detach(), before[key] * (1.0 if stays else 0.95))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, net.parameters()))


def test_adamw_brings_gradients_above_its_eps_to_one_size():
    for eps, moved in ((1e-8, [1.0, 0.5, 1e-6]), (1e-20, [1.0, 1.0, 1.0])):
        weight = nn.Parameter(torch.zeros(3))
        optimizer = build_optimizer(TrainConfig(eps=eps), nn.ParameterList([weight]), 1.0)
        weight.grad = torch.tensor([1.0, 1e-8, 1e-14])
        optimizer.step()
        torch.testing.assert_close(-weight.detach(), torch.tensor(moved), rtol=1e-3, atol=0)


def deep_net():
    """Layers of every kind, wide and tall, one of them in PyTorch's other memory layout."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 5, 3, bias=False),
            nn.Conv1d(5, 9, 1),
            nn.BatchNorm1d(9),
        ),
        *(nn.Linear(9, 4), nn.Linear(4, 2)),
    )
    net[1].to(memory_format=torch.channels_last)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    return net


def test_muon_takes_the_weights_of_hidden_layers_and_adamw_all_else():
    net = deep_net()
    like, cfg = deepcopy(net), TrainConfig(optimizer="muon", weight_decay=0.1)
    for p, q in zip(net.parameters(), like.parameters(), strict=True):
        q.grad = p.grad.clone()
    build_optimizer(cfg, net, 0.1).step()
    build_optimizer(replace(cfg, optimizer="adamw"), like, 0.1).step()
    pairs = zip(net.named_parameters(), like.parameters(), strict=True)
    assert {name for (name, p), q in pairs if not torch.equal(p, q)} == {
        "1.weight",
        "2.weight",
        "4.weight",
    }


@pytest.mark.parametrize("trained", [["1.weight"], ["0.weight", "3.bias"]])
def test_muon_trains_hidden_weights_alone_and_none_of_them(trained):
    net = deep_net()
    for name, p in net.named_parameters():
        p.requires_grad_(name in trained)
        p.grad = p.grad if name in trained else None
    before = deepcopy(net.state_dict())
    build_optimizer(TrainConfig(optimizer="muon"), net, 0.1).step()
    after = net.state_dict()
    assert [name for name in after if not torch.equal(before[name], after[name])] == trained


def test_a_step_of_muon_is_nesterovs_momentum_made_orthogonal():
    """By singular values: U g(S) V', where the iteration's polynomial g brings 0.01 to 1 near 1."""
    net, rate, decay = deep_net(), 0.1, 0.05
    weights = [net[i].weight for i in (1, 2, 4)]
    optimizer = build_optimizer(
        TrainConfig(optimizer="muon", momentum=0.8, weight_decay=decay), net, rate
    )
    optimizer.dtype = torch.float64
    momenta = [torch.zeros_like(w) for w in weights]
    for _ in range(3):
        expected = []
        for i, w in enumerate(weights):
            momenta[i] = 0.8 * momenta[i] + 0.2 * w.grad
            aimed = (0.2 * w.grad + 0.8 * momenta[i]).double().flatten(1)
            u, s, v = torch.linalg.svd(aimed, full_matrices=False)
            s = s / s.norm()
            for _ in range(3):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            step = 0.2 * max(aimed.shape) ** 0.5 * (u * s @ v).view_as(w)
            expected.append(w.detach() * (1 - rate * decay) - rate * step)
        optimizer.step()
        for w, e in zip(weights, expected, strict=True):
            torch.testing.assert_close(w.detach(), e.to(w.dtype))
        for p in net.parameters():
            p.grad = torch.randn_like(p)


def test_directions_of_every_size_come_out_alike_and_nothing_stays_nothing():
    torch.manual_seed(0)
    shapes = ((8, 3, 3, 3), (40, 2, 3, 3), (16, 40), (8, 3, 3, 3), (3, 8, 3, 3), (5, 4, 3))
    for dtype in (torch.float32, torch.bfloat16):
        kernels = [torch.randn(shape) for shape in shapes]
        kernels[3] = kernels[3].contiguous(memory_format=torch.channels_last)
        found = all_orthogonal([*kernels, torch.zeros(3, 4)], dtype)
        assert [x.shape for x in found[:-1]] == [x.shape for x in kernels]
        assert not found[-1].any()
        for x, direction in zip(kernels, found[:-1], strict=True):
            u, sizes, v = torch.linalg.svd(direction.flatten(1), full_matrices=False)
            assert ((sizes > 0.4) & (sizes < 1.3)).all(), sizes
            # of all matrices of such singular values the nearest has the same directions as x
            along = (u.T @ x.flatten(1) @ v.T).diagonal()
            assert (along > 0).all()


def test_frozen_parameters_are_left_out():
    net = small_net()
    net[0].requires_grad_(False)
    groups = build_optimizer(TrainConfig(), net, 1e-3).param_groups
    given = {id(p) for group in groups for p in group["params"]}
    assert given == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(given) == 5


def test_nothing_to_train_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="Flatten has no trainable parameters"):
        build_optimizer(TrainConfig(), nn.Flatten(), 1e-3)
    with pytest.raises(ValueError, match="total_steps = 0: accepted: an integer from 1"):
        rates(0, lr=1.0)


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.35), (100, 0.3), (7, 0.8)])
def test_one_cycle_equals_torchs(total, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = OneCycleLR(optimizer, 0.4, total_steps=total, pct_start=warmup, cycle_momentum=False)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    found = rates(total, schedule="one_cycle", lr=0.4, warmup=warmup)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"schedule": "cosine"}, [1 + math.cos(math.pi * i / 16) for i in range(16)]),
        ({"schedule": "constant"}, [2.0] * 16),
        (
            {"schedule": "step", "milestones": (0.3, 0.55), "gamma": 0.5},
            [*[2.0] * 2, *[1.0] * 5, *[0.5] * 9],
        ),
    ],
)
def test_others_rise_linearly_and_go_their_ways(keys, expected):
    assert rates(20, lr=2.0, warmup=0.2, **keys) == pytest.approx([0.5, 1.0, 1.5, 2.0, *expected])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_is_taken_at_the_peak_and_after_the_last_the_rate_stays(schedule):
    for warmup in (0.0, 0.99):
        assert rates(1, schedule=schedule, lr=0.3, warmup=warmup) == [pytest.approx(0.3)]
    found = rates(10, more=3, schedule=schedule, lr=0.3, warmup=0.3)
    assert found[10:] == 3 * [found[9]]


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ("one_cycle", 0.02),
        ("cosine", 0.02 + 0.98 * (1 + math.cos(math.pi * 79 / 80)) / 2),  # the last but one
        ("constant", 1.0),
        ("step", 0.01),
    ],
)
def test_the_rise_begins_and_the_fall_ends_where_the_recipe_says(schedule, last):
    lowest = {"min_lr": 0.02} if schedule in ("one_cycle", "cosine") else {}
    found = rates(100, schedule=schedule, lr=1.0, warmup=0.2, warmup_lr=0.1, **lowest)
    assert (found[0], max(found), found[-1]) == pytest.approx((0.1, 1.0, last))
    assert found[:20] == sorted(found[:20])
