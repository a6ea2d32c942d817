"""Convolutions of spikes alone, and their gradient by the weights: torch's convolution in float64, up to rounding."""

import functools
import itertools

import pytest
import torch
from torch import Tensor

from spiketriton_kernels.backends import native
from spiketriton_kernels.convolutions import library, sparse
from tests.conftest import need_native

SIZES = [(1, 1, 1), (3, 5, 3), (8, 8, 2), (37, 19, 5)]
"""Channels read, the images' number, vectors written."""


@pytest.fixture(autouse=True, params=["this machine's vectors", "AVX2"])
def compiler(request, monkeypatch):
    """Vectors of eight, too, where the processor has longer ones."""
    need_native()
    if request.param == "AVX2":
        if "avx512f" not in native._machine():
            pytest.skip("a processor with AVX-512 can do as one with AVX2")
        monkeypatch.setattr(native, "_EXTRAS", (("-march=haswell", "-fopenmp"),))
        monkeypatch.setattr(library, "load", functools.cache(library.load.__wrapped__))
        monkeypatch.setattr(sparse, "load", library.load)
        monkeypatch.setattr(sparse, "lanes", functools.cache(sparse.lanes.__wrapped__))


def inputs(images: int, height: int, width: int, read: int, share: float, whole: bool) -> Tensor:
    draws = torch.Generator().manual_seed(images + height + read)
    x = torch.rand(images, height, width, read, generator=draws)
    return ((x < share) * (torch.randint(-3, 9, x.shape, generator=draws) if whole else 1)).float()


def exact(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, weight, dy = (t.double().permute(0, 3, 1, 2) for t in (x, weight, dy))
    weight.requires_grad_()
    y = torch.nn.functional.conv2d(x, weight, padding=1)
    (by_weight,) = torch.autograd.grad(y, weight, dy)
    return y.permute(0, 2, 3, 1), by_weight.permute(0, 2, 3, 1)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("whole", [False, True], ids=["ones", "whole numbers"])
def test_output_and_gradient(share, whole):
    for (read, images, vectors), (height, width) in itertools.product(
        SIZES, [(1, 1), (4, 4), (5, 3), (1, 7)]
    ):
        written = vectors * sparse.lanes()
        x = inputs(images, height, width, read, share, whole)
        weight = torch.randn(written, 3, 3, read) / read
        dy = torch.randn(images, height, width, written)
        y, by_weight = exact(x, weight, dy)
        torch.testing.assert_close(sparse.output(x, weight).double(), y, rtol=1e-5, atol=2e-5)
        found = sparse.by_weight(dy, x).double()
        torch.testing.assert_close(found, by_weight, rtol=1e-5, atol=1e-4)


def test_the_same_bits_by_any_number_of_threads():
    x, weight = inputs(21, 6, 5, 16, 0.2, True), torch.randn(48, 3, 3, 16)
    dy, before, found = torch.randn(21, 6, 5, 48), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append((sparse.output(x, weight), sparse.by_weight(dy, x)))
    finally:
        torch.set_num_threads(before)
    for output, by_weight in found[1:]:
        assert torch.equal(output, found[0][0])
        assert torch.equal(by_weight, found[0][1])


def test_what_is_not_finite_reaches_what_sees_it():
    x = torch.zeros(1, 5, 5, 8)
    x[0, 2, 2, 3] = torch.nan
    y = sparse.output(x, torch.ones(16, 3, 3, 8))
    assert y.isnan().sum() == 9 * 16
    assert y[0, 1:4, 1:4].isnan().all()
    dy = torch.zeros(1, 5, 5, 16)
    dy[0, 0, 0, 1] = torch.inf
    found = sparse.by_weight(dy, torch.ones(1, 5, 5, 8))
    assert not found[1].isfinite().all()
    assert found[0].isfinite().all()


def test_without_a_compiler_there_is_none(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    library.load.cache_clear()
    sparse.lanes.cache_clear()
    try:
        assert not sparse.available()
        with pytest.raises(native.CompilerError, match="no-such-compiler"):
            sparse.output(torch.zeros(1, 4, 4, 8), torch.zeros(16, 3, 3, 8))
    finally:
        library.load.cache_clear()
