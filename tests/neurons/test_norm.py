"""Batch norm of input currents, also over several ranks."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spiketriton.neurons import Norm
from spiketriton.neurons import norm as module
from spiketriton.neurons.base import normalised
from spiketriton.system.errors import UserError
from spiketriton_kernels.neurons.handed import hand_on
from tests.neurons.test_neurons import B, C, T, currents


@pytest.mark.parametrize("space", [(), (3, 2)])
def test_norm_is_torchs_batch_norm_on_the_folded_tensor(space):
    norm = Norm(C).double()
    twin = (nn.BatchNorm2d(C) if space else nn.BatchNorm1d(C)).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, C + 1))
        norm.bias.copy_(torch.arange(C))
    twin.load_state_dict(norm.state_dict())
    for training in (True, True, False):
        norm.train(training)
        twin.train(training)
        y = currents(T, B, C, *space)
        assert torch.equal(norm(y).flatten(0, 1), twin(y.flatten(0, 1)))
    for name, value in twin.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value)
    assert norm.num_batches_tracked == 2


def test_tdbn_scales_the_current_and_tebn_each_step():
    y = currents(T, B, C, 6, 6)
    plain, scaled, stepwise = Norm(C), Norm(C, scale=0.5), Norm(C, steps=T)
    gains = torch.arange(1.0, T + 1)
    for norm in (plain.double(), scaled.double(), stepwise.double()):
        with torch.no_grad():
            norm.bias.fill_(3.0)
    assert torch.equal(stepwise(y), plain(y))  # gains are 1 at the start
    with torch.no_grad():
        stepwise.step_gain.copy_(gains)
    torch.testing.assert_close(scaled(y), (plain(y) - 3) / 2 + 3)
    torch.testing.assert_close(stepwise(y), plain(y) * gains.view(-1, 1, 1, 1, 1))
    with pytest.raises(UserError, match=f"gains for {T} time steps, but {T + 1} are needed"):
        stepwise(currents(T + 1, B, C))
    stepwise.eval()
    stepwise.first_step = 2
    assert torch.equal(stepwise.gains(3), stepwise.step_gain[2:])


@pytest.mark.parametrize("steps", [0, T])
def test_a_constant_current_is_normalised_once_as_its_copies_would_be(steps):
    once, copies = Norm(C, steps=steps).double(), Norm(C, steps=steps).double()
    for norm in (once, copies) if steps else ():
        norm.step_gain.data.copy_(torch.arange(1.0, T + 1))
    y = currents(B, C, 3, 2)
    current = once.constant(y, T)
    assert current.shape[0] == (T if steps else 1)
    expected = copies(y.expand(T, -1, -1, -1, -1))
    torch.testing.assert_close(current.expand_as(expected), expected)
    torch.testing.assert_close(once.running_mean, copies.running_mean)
    n = B * 6
    biased = (copies.running_var - 0.9) * (T * n - 1) / (T * n)
    torch.testing.assert_close(once.running_var - 0.9, biased * n / (n - 1))


def test_each_step_may_have_its_own_statistics():
    norm, twin = Norm(C, each_step=True).double(), nn.BatchNorm2d(C).double()
    for training in (True, True, False):
        norm.train(training)
        twin.train(training)
        y = currents(T, B, C, 3, 2) * torch.arange(1.0, T + 1).view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(norm(y), torch.stack([twin(step) for step in y]))
    once, copies = (Norm(C, each_step=True).double() for _ in range(2))
    y = currents(B, C, 3, 2)
    expected = copies(y.expand(T, -1, -1, -1, -1))
    torch.testing.assert_close(once.constant(y, T).expand_as(expected), expected)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), getattr(twin, name))
        torch.testing.assert_close(getattr(once, name), getattr(copies, name))
    with pytest.raises(UserError, match="more than one value per channel"):
        Norm(C, each_step=True)(torch.zeros(T, 1, C))


def test_a_batch_with_one_value_per_channel_is_refused_in_training():
    norm = Norm(C)
    with pytest.raises(UserError, match=r"more than one value per channel.*accepted: two or more"):
        norm(torch.zeros(1, 1, C))
    assert norm.num_batches_tracked == 0
    assert norm.eval()(torch.zeros(1, 1, C)).shape == (1, 1, C)
    assert norm.train()(torch.zeros(2, 1, C)).shape == (2, 1, C)


def test_a_recomputed_batch_moves_no_statistics():
    norm, twin, y = Norm(C), Norm(C), currents(T, B, C).float()
    norm.tracks = False
    assert torch.equal(norm(y), twin(y))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(C))
    assert torch.equal(norm.running_var, torch.ones(C))
    assert norm.statistics()[0] is not norm.running_mean
    norm.eval()  # statistics are read, not moved
    assert norm.statistics()[0] is norm.running_mean


@pytest.mark.parametrize(("adds", "training"), [(False, True), (True, True), (True, False)])
def test_what_a_joined_norm_hands_on_is_normalised_and_moves_no_statistics(adds, training):
    """As probes and exports do it, which call a neuron step by step that `swap` has joined with its norm."""
    norm = nn.BatchNorm2d(C).double().train(training)
    y, residual = currents(T, B, C, 3, 2), currents(T, B, C, 3, 2, seed=1)
    fused = copy.deepcopy(norm)
    hand_on(fused, folded=False)
    handed = fused(y)
    found = normalised(handed + residual if adds else handed)
    assert torch.equal(fused.running_mean, torch.zeros(C).double())
    assert torch.equal(fused.running_var, torch.ones(C).double())
    expected = norm(y.flatten(0, 1)).unflatten(0, (T, B))
    torch.testing.assert_close(found, expected + residual if adds else expected)


@pytest.fixture
def two_ranks(monkeypatch):
    """torch.distributed as two threads see it that call it in step."""
    barrier, parts = threading.Barrier(2, timeout=60), []

    def all_reduce(x, group):
        assert group == "both"
        parts.append(x.clone())
        barrier.wait()
        total = parts[-1] + parts[-2]
        barrier.wait()
        x.copy_(total)

    group = SimpleNamespace(WORLD="both")
    fake = SimpleNamespace(group=group, get_world_size=lambda group: 2, all_reduce=all_reduce)
    monkeypatch.setattr(module, "dist", fake)


@pytest.mark.parametrize("space", [(), (2,)])
def test_ranks_together_are_one_batch_norm_of_all_their_currents(two_ranks, space):
    """Small and of different means: the spread between ranks and the unbiased factor both count."""
    y = currents(1, 4, C, *space).float()
    y[:, 2:] += 3.0
    towards = currents(1, 4, C, *space, seed=1).float()
    weight, bias = torch.linspace(0.5, 2, C), torch.linspace(-1, 1, C)

    def rank(part: slice, synchronised: bool):
        norm, x = Norm(C), y[:, part].clone().requires_grad_()
        norm.synchronised, norm.momentum, norm.eps = synchronised, 0.3, 0.01
        with torch.no_grad():
            norm.weight.copy_(weight)
            norm.bias.copy_(bias)
        out = norm(x)
        (out * towards[:, part]).sum().backward()
        return norm, out.detach(), x.grad

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(rank, [slice(0, 2), slice(2, 4)], [True, True])
    norm, out, grad = rank(slice(0, 4), False)
    torch.testing.assert_close(torch.cat([one[1], two[1]], 1), out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([one[2], two[2]], 1), grad, rtol=1e-4, atol=1e-5)
    for ours in (one[0], two[0]):
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)
    assert one[0].process_group == "both"
    one[0].synchronised = "another"
    assert one[0].process_group == "another"
    assert one[0].eval().process_group is None
    for name, parameter in norm.named_parameters():  # each rank has its share
        joined = one[0].get_parameter(name).grad + two[0].get_parameter(name).grad
        torch.testing.assert_close(joined, parameter.grad, rtol=1e-5, atol=1e-5)


def test_one_value_per_channel_is_enough_on_each_of_two_ranks(two_ranks):
    def rank(value: float):
        norm = Norm(1)
        norm.synchronised = True
        return norm(torch.full((1, 1, 1), value)).item()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(rank, [1.0, 3.0])) == pytest.approx([-1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("space", [(), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_that_are_not_valid_enter_no_statistics(space, dtype):
    """The same values, gradients and running statistics as torch's batch norm of the valid rows alone."""
    norm, twin = Norm(C, scale=0.5, steps=T).to(dtype), nn.BatchNorm1d(C).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, C + 1))
        norm.bias.copy_(torch.arange(C))
        twin.weight.copy_(0.5 * norm.weight)
        twin.bias.copy_(norm.bias)
    y = currents(T, B, C, *space).to(dtype).requires_grad_()
    norm.valid = torch.arange(T).unsqueeze(1) < torch.tensor([T, 1, T - 1, 1])[:B]
    assert norm.masked
    ours = norm(torch.where(norm.valid.view(T, B, *[1] * (1 + len(space))), y, 1e4))
    rows = y.movedim(2, -1)[norm.valid].reshape(-1, C)
    theirs = twin(rows)
    valid = ours.movedim(2, -1)[norm.valid].reshape(-1, C)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(valid, theirs, **close)
    weight = torch.randn(valid.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    (mine,) = torch.autograd.grad((valid * weight).sum(), y, retain_graph=True)
    (other,) = torch.autograd.grad((theirs * weight).sum(), y)
    torch.testing.assert_close(mine, other, **close)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(norm, name), getattr(twin, name), **close)
    norm.eval()
    assert not norm.masked
    assert torch.equal(norm(y), norm._apply_gains(norm._normalise(y, 0.1), T))


def test_other_statistics_of_padded_sequences_are_refused():
    norm = Norm(C, each_step=True)
    norm.valid = torch.ones(T, B, dtype=torch.bool)
    with pytest.raises(UserError, match=r"step_bn.* accepted with them: model.norm = .bn."):
        norm(currents(T, B, C))
