"""What only the batch norm in front has: its statistics, and what comes of several results at once."""

import pytest
import torch

from spiketriton_kernels import multistep_bn_lif, multistep_bn_lif_reference, multistep_lif
from tests.kernels.cases import PLAIN, answered, by_kernels, drawn
from tests.kernels.support import as_layout, normal


def statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance as the running statistics receive them."""
    mean, var = torch.zeros(y.shape[2], device=y.device), torch.ones(y.shape[2], device=y.device)
    multistep_bn_lif(y, None, None, mean, var, momentum=1.0)
    return mean, var


def assert_statistics(y: torch.Tensor) -> None:
    """The variance to 1e-5, the mean to 1e-5 of the deviation plus its own rounding."""
    mean, var = statistics(y)
    dims = [d for d in range(y.dim()) if d != 2]
    exact_var, exact_mean = torch.var_mean(y.double(), dim=dims)
    assert torch.all((var - exact_var).abs() <= 1e-5 * exact_var), (var, exact_var)
    rounding = 1.2e-7 * exact_mean.abs()
    assert torch.all((mean - exact_mean).abs() <= 1e-5 * exact_var.sqrt() + rounding)


both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


@pytest.mark.parametrize(
    ("layout", "ratio"),
    [("contiguous", 100.0), ("channels_last", -100.0), ("channels_last", 0.0)],
)
def test_statistics_with_a_mean_far_from_zero(backend, device, layout, ratio):
    """The mean 100 times the deviation, in float32: E[y^2] - E[y]^2 would lose four digits."""
    assert_statistics(as_layout(normal((2, 3, 3, 9, 11), device=device, mean=ratio), layout))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize(
    ("layout", "dtype"), [("contiguous", torch.float32), ("channels_last", torch.bfloat16)], ids=str
)
def test_statistics_of_a_million_elements_a_channel(backend, device, layout, dtype):
    assert_statistics(as_layout(normal((2, 64, 2, 128, 64), dtype, device, mean=100.0), layout))


@both_layouts
def test_statistics_of_a_channel_that_is_silent_but_for_its_first_pixel(backend, device, layout):
    """Sparse activity: the first element of a channel says nothing about the others."""
    y = torch.zeros(2, 3, 2, 32, 32, device=device)
    y[0, 0, :, 0, 0] = 7.7
    y[:, :, 1] += 3.1
    assert_statistics(as_layout(y, layout))


def test_statistics_of_constant_channels_are_exact(backend, device):
    """No variance, no NaN: xhat is 0 and the neuron sees the bias."""
    y = torch.full((3, 2, 2, 7), 1e3, device=device)
    mean, var = statistics(y)
    assert mean.eq(1e3).all()
    assert var.eq(0).all()
    leaf = y.clone().requires_grad_()
    bias = torch.tensor([0.0, 1.0], device=device)
    spikes = multistep_bn_lif(leaf, None, bias, None, None, decay=0.0)
    spikes.sum().backward()
    assert torch.equal(spikes, bias.view(1, 1, 2, 1).expand_as(y))
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_without_gradients_moves_buffers_of_any_dtype(backend, device, dtype):
    """As torch does; a model cast to bfloat16 has its buffers and weights in that dtype."""
    y = normal((3, 2, 3, 8), dtype, device, mean=2.0)
    mean, var, weight = (torch.full((3,), v, dtype=dtype, device=device) for v in (0.0, 1.0, 1.0))
    with torch.no_grad():
        multistep_bn_lif(y, weight, weight, mean, var, momentum=0.5)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    expected = torch.var_mean(y.double(), dim=(0, 1, 3))
    for moved, (start, value) in zip(
        (var, mean), ((0.5, expected[0]), (0.0, expected[1])), strict=True
    ):
        torch.testing.assert_close(
            moved.double(), start + value / 2, rtol=tolerance, atol=tolerance
        )
    weight.requires_grad_()
    multistep_bn_lif(y, weight, None, mean, var).sum().backward()
    assert weight.grad.dtype == dtype


def test_values_that_are_no_numbers_stay_in_their_channel(backend, device):
    """Training mixes a channel's elements, so its neurons all feel a NaN; others do not."""
    clean = normal((3, 2, 3, 5), device=device)
    dirty = clean.clone()
    dirty[1, 1, 1, 2] = float("nan")
    results = []
    for y in (clean, dirty):
        leaf = y.requires_grad_()
        spikes = multistep_bn_lif(leaf, None, None, None, None)
        spikes.backward(torch.ones_like(spikes))
        results.append((spikes.detach(), leaf.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one[:, :, [0, 2]], two[:, :, [0, 2]])
    assert results[1][0][:, :, 1].eq(0).all()
    assert results[1][1][:, :, 1].isnan().all()


def test_spikes_and_their_gradients_are_those_without_a_current(backend, device):
    case = PLAIN | dict(
        norm="batch", residual=True, running=True, step_gain=True, upstream="spikes"
    )
    tensors = drawn(case, device)
    without, given = (answered(by_kernels, case | dict(current=c), tensors) for c in (False, True))
    given.pop("current")
    assert without.keys() == given.keys()
    for name, value in without.items():
        assert torch.equal(given[name], value), name


@pytest.mark.parametrize("function", [multistep_bn_lif, multistep_bn_lif_reference, multistep_lif])
def test_results_come_in_order(function):
    """Spikes, the last membrane, every step's, the current."""
    y, behind_norm = normal((4, 2, 3, 5), mean=0.5), function is not multistep_lif
    norm = (None,) * 4 if behind_norm else ()
    more = dict(return_current=True) if behind_norm else {}
    spikes, v_last, trace, *current = function(y, *norm, return_v=True, return_trace=True, **more)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(v_last, trace[-1])
    assert torch.equal(spikes, function(y, *norm))
    if behind_norm:
        torch.testing.assert_close(current[0].mean((0, 1, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        assert torch.equal(function(y, *norm, **more)[1], current[0])
