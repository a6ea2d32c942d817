"""Batch norm by itself: torch's in float64, up to rounding."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from spiketriton_kernels.normalise import normalised, serves
from tests.conftest import need_native
from tests.covering import pairwise

SIZES = [
    (72, 64, 16, 16),
    (8, 16, 28, 28),
    (5, 3, 7, 3),
    (9, 33),
    (4, 64, 5),
    (2, 1100, 2, 2),
    (70, 7, 1, 9),
]


def given(size: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """y, weight and bias."""
    draws = torch.Generator().manual_seed(sum(size))
    y = torch.randn(size, generator=draws, dtype=torch.float64) * 2 + 3
    y = y.to(dtype).contiguous(memory_format=layout) if y.ndim == 4 else y.to(dtype)
    weight, bias = torch.randn(2, size[1], generator=draws)
    return [t.requires_grad_() for t in (y, weight, bias)]


def both(function, tensors: list[Tensor], by: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients; running statistics."""
    running = [of(tensors[1].detach()) for of in (torch.zeros_like, torch.ones_like)]
    out = function(*tensors, running)
    return [out, *torch.autograd.grad(out, tensors, by.to(out.dtype))], running


@pytest.mark.parametrize(
    ("size", "steps", "dtype", "layout"),
    pairwise(
        SIZES,
        [1, 4],
        [torch.float32, torch.bfloat16, torch.float16],
        [torch.contiguous_format, torch.channels_last],
    ),
    ids=str,
)
def test_it_is_torchs_batch_norm_at_every_step(size, steps, dtype, layout):
    """No further from float64 than twice torch's, of as many copies."""
    need_native()
    tensors = given(size, dtype, layout)
    by = torch.randn(steps, *size, generator=torch.Generator().manual_seed(1))
    assert serves(*tensors)

    def ours(y: Tensor, weight: Tensor, bias: Tensor, running: list[Tensor]) -> Tensor:
        return normalised(y, weight, bias, (*running, 0.3), 1e-5, steps)

    def theirs(y: Tensor, weight: Tensor, bias: Tensor, running: list[Tensor]) -> Tensor:
        out = batch_norm(y, *running, weight, bias, True, 0.3, 1e-5)
        return out.unsqueeze(0).expand(steps, *size)

    wide = [t.detach().double().requires_grad_() for t in tensors]
    (found, running), (others, _) = both(ours, tensors, by), both(theirs, tensors, by)
    truth, moved = both(theirs, wide, by.to(dtype).double())
    for mine, other, true in zip(found, others, truth, strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        off, torchs = ((it.double() - true).norm() for it in (mine, other))
        assert off <= 2 * torchs + 2e-6 * true.norm()
    for mine, true in zip(running, moved, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("learnt", [True, False])
def test_a_gradient_of_a_gradient_is_torchs(steps, learnt):
    """As of a penalty on the gradient by the images, with which weights learn."""
    need_native()
    y, weight, bias = given((6, 3, 4, 4), torch.float32, torch.channels_last)
    leaves = (y, weight, bias.requires_grad_(learnt))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    by = torch.randn(steps, *y.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for name in ("ours", "torch's"):
        running = torch.zeros(3), torch.ones(3)
        if name == "ours":
            out = normalised(y, weight, bias, (*running, 0.1), 1e-5, steps)
        else:
            out = batch_norm(y, *running, weight, bias, True, 0.1, 1e-5).expand(steps, *y.shape)
        first = torch.autograd.grad(out.sigmoid(), wanted, by, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), wanted, materialize_grads=True)
        found.append([*first, *second])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)
    assert found[0][-2 if learnt else -1].any()


def test_a_mean_far_from_zero_and_what_is_not_finite():
    need_native()
    y, weight, bias = given((6, 4, 8, 8), torch.float32, torch.channels_last)
    far = y.detach() + 1000
    running = torch.zeros(4), torch.ones(4), 0.1
    near, shifted = (normalised(t, weight, bias, running, 1e-5)[0] for t in (y, far))
    torch.testing.assert_close(shifted, near, rtol=1e-3, atol=1e-3)
    far[2, 1, 3, 3] = torch.nan
    found = normalised(far, weight, bias, running, 1e-5)[0].isfinite().all(0).all(1).all(1)
    assert found.tolist() == [True, False, True, True]


def test_the_same_bits_by_any_number_of_threads():
    need_native()
    tensors, found = given((16, 32, 24, 24), torch.float32, torch.channels_last), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            running = torch.zeros(32), torch.ones(32), 0.1
            out = normalised(*tensors, running, 1e-5, 2)
            found.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_what_is_left_to_torch():
    y, weight, bias = given((4, 3, 5, 5), torch.float32, torch.contiguous_format)
    assert not serves(y.double(), weight, bias)
    assert not serves(y[..., ::2], weight, bias)
    assert not serves(y[:0], weight, bias)
    assert not serves(y.to("meta"), weight, bias)
    with torch.overrides.BaseTorchFunctionMode():  # which may change `batch_norm`
        assert not serves(y, weight, bias)
