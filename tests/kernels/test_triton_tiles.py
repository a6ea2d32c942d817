"""The arithmetic of the Triton kernels' tiles, interpreted."""

import pytest
import torch

from spiketriton_kernels.backends import triton_tiles
from spiketriton_kernels.triton_import import tl, triton

blocks = triton_tiles.blocks


def count_kernel(
    out_ptr,
    n,
    BLOCK: tl.constexpr,
):
    tl.store(out_ptr, blocks(n, BLOCK))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 2**31 - 1023, 2**31 - 1022, 2**31 - 1])
def test_blocks_of_any_number_that_int32_holds(triton_backend, n):
    """From 2**31 - 1022 on, n + 1023 would wrap, and the last program work before the tensor."""
    out = torch.zeros(1, dtype=torch.int64)
    triton.jit(count_kernel)[(1,)](out, n, BLOCK=1024)
    assert out.item() == -(-n // 1024)
