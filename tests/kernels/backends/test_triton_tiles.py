"""The arithmetic of the Triton kernels' tiles, interpreted."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from spiketriton_kernels import (
    PROBE_FIELDS,
    multistep_bn_lif,
    multistep_bn_lif_reference,
    multistep_lif,
)
from spiketriton_kernels.backends import triton_neuron, triton_tiles
from spiketriton_kernels.backends.triton_tiles import Tiling, tiling, vector_width
from spiketriton_kernels.triton_import import tl, triton
from spiketriton_kernels.window import passes
from tests.kernels.support import as_layout, normal

blocks, own_tile, tile_at = triton_tiles.blocks, triton_tiles.own_tile, triton_tiles.tile_at
step_size, time_step, total = triton_tiles.step_size, triton_tiles.time_step, triton_tiles.total
partial_place, Size = triton_tiles.partial_place, triton_tiles.Size


def count_kernel(
    out_ptr,
    n,
    BLOCK: tl.constexpr,
):
    tl.store(out_ptr, blocks(n, BLOCK))


@pytest.mark.parametrize("n", [1, 1024, 1025, 2**31 - 1022, 2**31 - 1])
def test_blocks_of_any_number_that_int32_holds(triton_backend, n):
    """From 2**31 - 1022 on, n + 1023 would wrap, and the last program work before the tensor."""
    out = torch.zeros(1, dtype=torch.int64)
    triton.jit(count_kernel)[(1,)](out, n, BLOCK=1024)
    assert out.item() == -(-n // 1024)


def last_kernel(
    out_ptr,  # [4] out: the last offset of the last step, its channel, the last partial sum, those of one kind
    pid,
    R,
    C,
    units,
    S,
    programs,
    CUT: tl.constexpr,
    WINDOW: tl.constexpr,
):
    size = Size(R, C, units * CUT.align, S)
    row, column, channel = own_tile(pid, size, CUT)
    tile = tile_at(row, column, channel, size, CUT)
    last = time_step(0, WINDOW.steps - 1, tile, step_size(size, CUT), WINDOW)
    place, keep, plane = partial_place(row, column, channel, programs, size, CUT)
    tl.store(out_ptr, tl.max(tl.max(tl.where(last.inside, last.at, -1), axis=1), axis=0))
    channels = tl.where(last.inside, tile.channels, -1)
    tl.store(out_ptr + 1, tl.max(tl.max(channels, axis=1), axis=0))
    tl.store(out_ptr + 2, tl.max(tl.max(tl.where(keep, place, -1), axis=1), axis=0))
    tl.store(out_ptr + 3, plane)


@pytest.mark.parametrize(
    ("channels", "inner", "samples"),
    [
        (24, 1, 2**27),
        (512, 49, 2**18),
        (64, 2**16, 2**10),
        (1, 2**31 - 1, 2),
        (2, 1, 2**31 + 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 10])
def test_the_last_element_of_more_than_int32_holds(triton_backend, channels, inner, samples, rows):
    """Of batch norm's kernels; those of the statistics count the steps among the rows."""
    neurons = channels * inner * samples
    assert neurons > 2**31
    step = triton_tiles._cut(channels, inner, neurons, 1024)
    tiles = replace(step, R=step.R * rows)
    T = 10 // rows
    out = torch.zeros(4, dtype=torch.int64)
    last = tiles.row_tiles * tiles.lanes - 1
    window = triton_tiles.Window(T, T, 0)
    triton.jit(last_kernel)[(1,)](
        out, last, programs=tiles.row_tiles, WINDOW=window, **tiles.geometry
    )
    parts = tiles.row_tiles * (tiles.L if tiles.by_column else tiles.columns * channels)
    assert out.tolist() == [10 * neurons - 1, channels - 1, parts - 1, parts]


@pytest.mark.parametrize(
    ("size", "layout", "per_channel", "expected"),
    [
        ((2, 8, 4, 4), "contiguous", False, Tiling(1, 1, 256, 1, 512, True)),
        ((2, 128, 4, 4), "channels_last", True, Tiling(32, 128, 128, 4, 128, True)),
        ((2, 208, 4, 4), "channels_last", True, Tiling(4, 208, 1664, 4, 128, True, 1)),
        ((2, 8, 40, 40), "contiguous", True, Tiling(2, 8, 1600, 1, 512, False)),
        ((2, 8, 4, 4), "contiguous", True, Tiling(2, 8, 16, 32, 16, False)),
        ((2, 1, 4, 4), "contiguous", True, Tiling(1, 1, 32, 16, 32, False)),
        # rows joined, until few lanes lie idle: 8 of 48, 16 of 24
        ((2, 48, 4, 8), "channels_last", True, Tiling(8, 48, 384, 4, 128, True, 1)),
        ((2, 24, 8, 8), "channels_last", True, Tiling(8, 24, 384, 4, 128, True, 1)),
        # 16, 32 and 64 as 128, where the rows come out even
        ((2, 16, 4, 4), "channels_last", True, Tiling(4, 16, 128, 4, 128, True)),
        ((2, 64, 4, 4), "channels_last", True, Tiling(16, 64, 128, 4, 128, True)),
        ((3, 32, 3, 3), "channels_last", True, Tiling(27, 32, 32, 16, 32, True)),
        # and until 16 divides a row of columns: 2 of 8, 16 of 9, or as many as there are of 9
        ((2, 8, 4, 4), "channels_last", True, Tiling(16, 8, 16, 32, 16, True, 1)),
        ((2, 9, 4, 4), "channels_last", True, Tiling(2, 9, 144, 2, 256, True, 1)),
        ((2, 9, 3, 3), "channels_last", True, Tiling(9, 9, 18, 16, 32, True, 1)),
        ((1, 9, 3, 3), "channels_last", True, Tiling(9, 9, 9, 32, 16, True)),
        # whole samples as rows, where 16 does not divide the pixels of a channel
        ((8, 16, 14, 14), "contiguous", True, Tiling(8, 16, 3136, 4, 128, True, 196)),
        ((8, 16, 7, 7), "contiguous", True, Tiling(4, 16, 1568, 4, 128, True, 49)),
        ((3, 16, 7, 7), "contiguous", True, Tiling(3, 16, 784, 1, 512, True, 49)),
    ],
    ids=str,
)
def test_tiles(size, layout, per_channel, expected):
    """128 threads with 4 elements each; 128 channels a tile, more where there are few rows."""
    x = as_layout(torch.zeros(3, *size), layout)
    assert tiling(x, per_channel, 4) == expected
    assert expected.block_r * expected.block_l == 512
    assert tiling(x, per_channel, 8).block_r * tiling(x, per_channel, 8).block_l == 1024


@pytest.mark.parametrize(("dtype", "widest"), [(torch.bfloat16, 8), (torch.float32, 4)], ids=str)
def test_a_thread_owns_16_bytes_and_two_elements_of_an_odd_number_of_neurons(dtype, widest):
    assert vector_width(torch.zeros(17, 3, 5, 7, 10, dtype=dtype)) == widest
    assert vector_width(torch.zeros(17, 3, 5, 7, 9, dtype=dtype)) == 2


@pytest.mark.parametrize(
    ("L", "align"),
    [(48, 1), (24, 8), (20, 4), (18, 2), (9, 1), (2**31 - 8, 8), (2**31, 1)],
)
def test_kernels_are_told_what_divides_a_row(L, align):
    """Triton's launcher sees 16 by itself; of 2**31 columns it must see all, to count in 64 bits."""
    tiles = Tiling(1, L, L, 4, 128, True)
    assert tiles.align == align
    assert tiles.geometry["units"] * tiles.geometry["CUT"].align == L


def test_launches():
    """Where sums are kept, about so many programs in all, and at least one a lane."""
    by_column = Tiling(10_000, 300, 300, 4, 128, True)
    assert (by_column.row_tiles, by_column.columns, by_column.lanes) == (2500, 3, 3)
    assert (by_column.programs(1024), by_column.programs(9000)) == (341, 2500)
    by_row = Tiling(33, 700, 1600, 16, 1024, False)
    assert (by_row.row_tiles, by_row.columns, by_row.lanes) == (3, 2, 1400)
    assert (by_row.programs(1024), by_row.programs(2800)) == (1, 2)
    assert Tiling(2, 8, 8, 64, 8, True).programs(1024) == 1


def test_programs_follow_the_number_of_processors(monkeypatch):
    """A GPU's own; a constant elsewhere, so that what is interpreted and lowered is the same everywhere."""
    card = SimpleNamespace(multi_processor_count=20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: {3: card}[index])
    triton_tiles._of_gpu.cache_clear()
    try:
        assert triton_tiles.processors(torch.device("cuda", 3)) == 20
        assert triton_tiles.processors(torch.device("cpu")) == triton_tiles.PROCESSORS == 132
    finally:
        triton_tiles._of_gpu.cache_clear()


def test_another_number_of_processors_sums_in_another_order(triton_backend, monkeypatch):
    """Statistics and gradients of a batch norm: as close as float32 sums are, and equal for equal numbers."""
    y = normal((2, 4, 8, 12, 12), mean=1.0).movedim(2, -1).contiguous().movedim(-1, 2)
    weight = torch.ones(8, requires_grad=True)

    def sums():
        spikes = multistep_bn_lif(y, weight, torch.zeros(8), None, None)
        (gradient,) = torch.autograd.grad(spikes, weight, y)
        return *passes.channel_statistics(y), gradient

    many, again = sums(), sums()
    assert all(map(torch.equal, many, again))
    monkeypatch.setattr(triton_tiles, "PROCESSORS", 1)
    few = sums()
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-5)
    assert not any(map(torch.equal, few, many))


@pytest.mark.parametrize("neurons", [5 * 512, 5 * 512 + 4])
def test_a_program_walks_several_tiles_of_neurons_without_channels(
    triton_backend, monkeypatch, neurons
):
    """Where they fill their tiles: its gradients are those of a program for each tile."""
    x = normal((3, 1, neurons), mean=0.5).requires_grad_()
    v_init = normal((1, neurons), seed=1).requires_grad_()
    decay, probe = torch.tensor(0.5, requires_grad=True), torch.zeros(3, 8, requires_grad=True)

    def gradients():
        spikes = multistep_lif(x, v_init=v_init, decay=decay, probe=probe)
        return torch.autograd.grad(spikes.square().sum(), (x, v_init, probe, decay))

    many = gradients()
    monkeypatch.setattr(triton_neuron, "processors", lambda device: 1)
    monkeypatch.setattr(triton_neuron, "WALKS", 1)
    assert tiling(x, False, 4, walks=True).row_tiles == (5 if neurons % 512 == 0 else 1)
    *few, by_decay = gradients()
    assert all(map(torch.equal, few, many))
    torch.testing.assert_close(by_decay, many[-1])


@pytest.mark.parametrize(
    ("tiles", "parts"),
    [
        (Tiling(9, 3, 3, 4, 128, True), (5, 3, 1)),
        (Tiling(9, 3, 12, 4, 128, True, 1), (20, 3, 1)),
        (Tiling(9, 3, 12, 4, 128, True, 2), (10, 3, 2)),
        (Tiling(9, 3, 300, 1, 128, False), (15, 3, 1)),
        (Tiling(9, 3, 39_000, 1, 128, False), (1525, 3, 1)),
    ],
    ids=str,
)
def test_partial_sums_join_by_channel(triton_backend, tiles, parts):
    """Of 5 row programs: their columns of one channel, and the programs."""
    partial = tiles.partial(torch.zeros(1), 2, 5)
    values = torch.randint(9, (2, *parts), generator=torch.Generator().manual_seed(0)).float()
    partial.copy_(values.view_as(partial))
    out = torch.empty(2, 3)
    tiles.join(partial, out)
    assert torch.equal(out, values.sum((1, 3)))


@pytest.mark.parametrize("channels", [16, 32, 64, 128, 256])
def test_channels_that_are_powers_of_two_have_one_kernel(triton_backend, monkeypatch, channels):
    """Statistics, sums back and learnt parameters by channel equal the definition, however many share a tile."""
    monkeypatch.setattr(triton_tiles, "PROCESSORS", 1)
    monkeypatch.setattr(triton_neuron, "WALKS", 1)
    cuts = set()
    right = triton_neuron.launch

    def launch(kernel, *given, **named):
        cuts.add((named["CUT"], named["S"]))
        right(kernel, *given, **named)

    monkeypatch.setattr(triton_neuron, "launch", launch)
    shape = (3, 2, channels, 8, 4)
    x = as_layout(normal(shape), "channels_last").detach().requires_grad_()
    norm = [normal((channels,), seed=i).abs() + 0.5 for i in range(2)]
    running = [torch.zeros(channels), torch.ones(channels)]
    decay = torch.linspace(0.3, 0.8, channels)
    leaves = [x, *norm, decay]
    results = []
    for function, dtype in (
        (multistep_bn_lif, torch.float32),
        (multistep_bn_lif_reference, torch.float64),
    ):
        given = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        moved = [one.to(dtype, copy=True) for one in running]
        out = function(given[0], *given[1:3], *moved, decay=given[3])
        weights = as_layout(normal(shape, seed=5), "channels_last").to(dtype)
        results.append([out, *moved, *torch.autograd.grad(out, given, weights)])
    for mine, true in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), true.double(), rtol=1e-4, atol=1e-4)
    assert {(cut.block_l, cut.cyclic, S) for cut, S in cuts} == {(128, True, None)}


@pytest.mark.parametrize("n", [1, 32, 9001])
def test_groups_join(triton_backend, n):
    """The sum of each field; of every three the maximum of the last. What pads a group counts nothing."""
    values = torch.randint(9, (6, n), generator=torch.Generator().manual_seed(0)).float()
    values[5, -1] = 99.0
    partial = triton_tiles.grouped(values, n, 6)
    padded = torch.full((6, partial.numel() // 6), float("nan"))
    padded[:, :n] = values
    partial.copy_(padded.view(6, -1, 32).transpose(0, 1))
    out = torch.full((2, 3), float("nan"))
    triton_tiles.join_groups(partial, out, n)
    assert torch.equal(out.view(6), values.sum(1))
    triton_tiles.join_groups(partial, out, n, period=3, maximum=2)
    assert torch.equal(out[:, :2], values.view(2, 3, n)[:, :2].sum(2))
    assert torch.equal(out[:, 2], values.view(2, 3, n)[:, 2].amax(1))


@pytest.mark.parametrize(("probed", "stages"), [(False, 2), (True, 1)])
def test_a_walk_copies_its_next_tile_meanwhile_but_not_where_a_probe_measures(
    triton_backend, monkeypatch, probed, stages
):
    """A probe measures one step in ten, and a second stage doubles the time that its kernel takes to compile."""
    seen = []
    monkeypatch.setattr(triton_neuron, "launch", lambda *given, **named: seen.append(named))
    x = normal((4, 2, 64, 4, 4)).requires_grad_()
    probe = torch.zeros(4, len(PROBE_FIELDS), requires_grad=True) if probed else None
    multistep_bn_lif(x, *(torch.ones(64) for _ in range(4)), probe=probe).sum().backward()
    sums, dy = (named["WINDOW"].stages for named in seen if "OWN_AREA" in named)
    assert (sums, dy) == (stages, 2)
