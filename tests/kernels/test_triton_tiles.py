"""The arithmetic of the Triton kernels' tiles, interpreted."""

import pytest
import torch

from spiketriton_kernels.backends import triton_tiles
from spiketriton_kernels.backends.triton_tiles import Tiling, tiling, vector_width
from spiketriton_kernels.triton_import import tl, triton
from tests.kernels.support import as_layout

blocks, own_tile, elements = triton_tiles.blocks, triton_tiles.own_tile, triton_tiles.elements
step_size, time_step, total = triton_tiles.step_size, triton_tiles.time_step, triton_tiles.total


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


def visit_kernel(
    visits_ptr,  # [T, N]: how often an element was visited
    channel_ptr,  # [T, N]: the channel it was given
    sums_ptr,  # [programs]: elements of a program
    R,
    C,
    L,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BY_COLUMN: tl.constexpr,
):
    row, column, channel = own_tile(tl.program_id(0), C, L, BLOCK_L, BY_COLUMN)
    offs, inside, channels, valid = elements(
        row, column, channel, R, C, L, BLOCK_R, BLOCK_L, BY_COLUMN
    )
    step = step_size(R, C, L, BY_COLUMN)
    for chunk in range((T + CHUNK - 1) // CHUNK):
        k = tl.cast(chunk, tl.int32)
        for j in tl.static_range(CHUNK):
            t, at, here = time_step(k, j, offs, inside, step, T, CHUNK)
            count = tl.load(visits_ptr + at, mask=here, other=0)
            tl.store(visits_ptr + at, count + 1, mask=here)
            tl.store(channel_ptr + at, channels + 100 * t, mask=here & valid)
    tl.store(sums_ptr + tl.program_id(0), total(tl.where(inside, 1, 0)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("size", "layout", "chunk"),
    [
        ((2, 5, 3, 3), "contiguous", 2),
        ((2, 5, 3, 3), "channels_last", 2),
        ((3, 1, 4, 4), "contiguous", 3),
        ((1, 130, 5, 1), "channels_last", 2),
        ((2, 3, 24, 25), "contiguous", 2),
    ],
    ids=str,
)
def test_every_element_is_visited_once_with_its_own_channel(
    triton_backend, per_channel, size, layout, chunk
):
    T = 3
    x = as_layout(torch.zeros(T, *size), layout)
    tiles = tiling(x, per_channel, 4)
    visits, channels = (torch.full_like(x, n, dtype=torch.int32) for n in (0, -1))
    sums = torch.zeros(tiles.row_tiles * tiles.lanes, dtype=torch.int32)
    triton.jit(visit_kernel)[(len(sums),)](
        visits, channels, sums, tiles.R, tiles.C, tiles.L,
        T=T, CHUNK=chunk, BLOCK_R=tiles.block_r, BLOCK_L=tiles.block_l, BY_COLUMN=tiles.by_column,
    )  # fmt: skip
    assert visits.eq(1).all()
    assert sums.sum() == x[0].numel()
    assert sums.gt(0).all(), "a program without work"
    if per_channel:
        own = 100 * torch.arange(T).view(-1, 1, 1, 1, 1) + torch.arange(size[1]).view(-1, 1, 1)
        assert torch.equal(channels, own.expand_as(x).to(torch.int32))


@pytest.mark.parametrize(
    ("size", "layout", "per_channel", "expected"),
    [
        ((2, 8, 4, 4), "contiguous", False, Tiling(1, 1, 256, 1, 512, True)),
        ((2, 8, 4, 4), "channels_last", True, Tiling(32, 8, 8, 64, 8, True)),
        ((2, 200, 4, 4), "channels_last", True, Tiling(32, 200, 200, 4, 128, True)),
        ((2, 9, 4, 4), "channels_last", True, Tiling(32, 9, 9, 32, 16, True)),
        ((2, 8, 4, 5), "contiguous", True, Tiling(2, 8, 20, 16, 32, False)),
        ((2, 8, 40, 40), "contiguous", True, Tiling(2, 8, 1600, 1, 512, False)),
        ((2, 1, 4, 4), "contiguous", True, Tiling(1, 1, 32, 16, 32, False)),
    ],
    ids=str,
)
def test_tiles(size, layout, per_channel, expected):
    """128 threads with 4 elements each; at most 128 channels a tile."""
    x = as_layout(torch.zeros(3, *size), layout)
    assert tiling(x, per_channel, 4) == expected
    assert expected.block_r * expected.block_l == 512
    assert tiling(x, per_channel, 8).block_r * tiling(x, per_channel, 8).block_l == 1024


def test_launches():
    """A program for each tile; where sums are kept, about 1024 in all and at least one a lane."""
    by_column = Tiling(10_000, 300, 300, 4, 128, True)
    assert (by_column.row_tiles, by_column.columns, by_column.lanes) == (2500, 3, 3)
    assert (by_column.programs(False), by_column.programs(True)) == (2500, 341)
    assert by_column.parts(341) == 341
    by_row = Tiling(33, 700, 1600, 16, 1024, False)
    assert (by_row.row_tiles, by_row.columns, by_row.lanes) == (3, 2, 1400)
    assert (by_row.programs(False), by_row.programs(True)) == (3, 1)
    assert by_row.parts(1) == 2
    assert Tiling(2, 8, 8, 64, 8, True).programs(True) == 1


def test_a_thread_owns_16_bytes():
    assert [vector_width(torch.zeros(1, dtype=d)) for d in (torch.bfloat16, torch.float32)] == [
        8,
        4,
    ]
