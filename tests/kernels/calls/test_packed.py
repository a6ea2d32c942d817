"""Spikes at one bit: they come back in their layout, and what has gaps is refused."""

import pytest
import torch

from spiketriton_kernels import pack_spikes, unpack_spikes
from tests.covering import pairwise
from tests.kernels.support import DTYPES, as_layout, dyadic


def test_packed_bits_are_the_documented_ones(backend, device):
    """Bit i of byte j is the spike at memory offset 8 j + i."""
    spikes = torch.zeros(11, device=device)
    spikes[[0, 3, 7, 9]] = 1.0
    assert pack_spikes(spikes).tolist() == [1 + 8 + 128, 2]
    assert [pack_spikes(spikes[i : i + 1]).tolist() for i in (0, 1)] == [[1], [0]]


SIZES = [(), (0,), (1,), (9,), (2, 9), (3, 0, 2), (3, 2, 9), (2, 3, 9, 2), (1, 2, 3, 1, 3)]


@pytest.mark.parametrize(
    ("size", "dtype", "layout"),
    pairwise(SIZES, DTYPES, ["contiguous", "permuted", "time_inside"]),
    ids=str,
)
def test_what_goes_in_comes_out_as_0_and_1_in_its_layout(backend, device, size, dtype, layout):
    x = dyadic(size, dtype, device)
    if len(size) >= 3:
        x = as_layout(x, layout)
    bits = pack_spikes(x)
    back = unpack_spikes(bits, x.shape, x.stride(), x.dtype)
    assert torch.equal(back, (x != 0).to(x.dtype))
    assert bits.numel() == (x.numel() + 7) // 8


@pytest.mark.parametrize(
    "x",
    [
        *(torch.ones(9).to(dtype) for dtype in (torch.int32, torch.bool, torch.complex64)),
        torch.ones(3).expand(2, 3),
        torch.ones(3, 6)[:, ::2],
    ],
)
def test_what_is_not_packed_is_refused(x):
    with pytest.raises((TypeError, ValueError), match="spikes") as caught:
        pack_spikes(x)
    assert "\n" not in str(caught.value)


def test_packing_compiles_whatever_the_sizes():
    def there_and_back(x):
        return unpack_spikes(pack_spikes(x), x.shape, x.stride(), x.dtype)

    torch._dynamo.reset()
    fast = torch.compile(there_and_back, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((3, 5), (4, 9)):
        spikes = dyadic(size).gt(0).float()
        assert torch.equal(fast(spikes), spikes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(bits=torch.zeros(2)), "bits must be a uint8 tensor, got torch.float32"),
        (dict(bits=None), "bits must be a uint8 tensor, got NoneType"),
        (dict(bits=torch.zeros(3, dtype=torch.uint8)), "3 bytes do not hold a shape of 12 spikes"),
        (
            dict(size=(5, 5), stride=(5, 1)),
            "2 bytes do not hold a shape of 25 spikes; accepted: 4 bytes",
        ),
        (dict(stride=(8, 1)), "leave gaps"),
        (dict(stride=(0, 1)), "leave gaps"),
        (dict(stride=(-4, 1)), "leave gaps"),
        (dict(stride=(4,)), "strides (4,) do not fit"),
        (dict(size=(-3, 4)), "size (-3, 4) and strides"),
        (dict(size=(3.0, 4)), "size (3.0, 4) and strides"),
        (dict(dtype=torch.int64), "dtype torch.int64"),
        (dict(dtype="float32"), "dtype float32"),
    ],
)
def test_wrong_calls_of_unpacking(changes, words):
    good = dict(
        bits=torch.zeros(2, dtype=torch.uint8), size=(3, 4), stride=(4, 1), dtype=torch.float32
    )
    assert unpack_spikes(**good).eq(0).all()
    with pytest.raises((TypeError, ValueError)) as caught:
        unpack_spikes(**good | changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
