"""Convolutions by tiles, in bfloat16 and of spikes in float32: torch's convolution in float64, up to rounding."""

import pytest
import torch
from torch import Tensor

from spiketriton_kernels.backends import native
from spiketriton_kernels.convolutions import tiles

SIZES = [  # images, channels read and written, height and width, kernel, stride
    *((3, 16, 16, 32, 32, 3, 1), (2, 32, 32, 32, 32, 3, 1), (5, 16, 32, 9, 7, 3, 2)),
    *((64, 64, 64, 8, 8, 3, 1), (3, 32, 64, 16, 16, 3, 2), (7, 48, 80, 5, 3, 3, 1)),
    *((70, 64, 64, 1, 1, 3, 1), (5, 32, 16, 4, 4, 3, 2), (6, 16, 48, 8, 8, 1, 1)),
    *((3, 64, 128, 8, 8, 1, 2), (3, 64, 32, 5, 5, 1, 2), (40, 128, 64, 2, 2, 3, 1)),
    *((9, 256, 256, 4, 4, 3, 1), (200, 32, 32, 16, 16, 3, 1), (2, 16, 16, 64, 64, 3, 1)),
    *((1, 16, 16, 33, 31, 3, 2), (33, 64, 256, 1, 1, 3, 2), (9, 16, 48, 28, 28, 3, 1)),
    *((11, 48, 16, 14, 14, 3, 1), (70, 512, 512, 2, 2, 3, 1), (6, 64, 64, 7, 7, 3, 1)),
    *((19, 64, 48, 4, 4, 3, 2), (16, 32, 32, 3, 2, 3, 1), (35, 32, 64, 8, 7, 3, 2)),
    *((4, 96, 160, 12, 17, 3, 1), (1, 16, 16, 1, 1, 1, 1), (2, 16, 32, 40, 3, 3, 1)),
]


@pytest.fixture(autouse=True)
def unit():
    if not tiles.available():
        pytest.skip("needs AMX and a compiler")


def drawn(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).bfloat16()


def case(images: int, read: int, written: int, height: int, width: int, kernel: int, stride: int):
    x = drawn(images, height, width, read)
    weight = (drawn(written, kernel, kernel, read) / read**0.5).bfloat16().float()
    dy = drawn(images, -(-height // stride), -(-width // stride), written)
    return x, weight, dy


def computed(x: Tensor, weight: Tensor, dy: Tensor, stride: int) -> list[Tensor]:
    size = torch.Size([x.shape[i] for i in (0, 3, 1, 2)])
    of_weight = torch.Size([weight.shape[i] for i in (0, 3, 1, 2)])
    return [
        tiles.output(x, weight, stride),
        tiles.by_input(dy, weight, stride, size),
        tiles.by_weight(dy, x, stride, of_weight),
    ]


def defined(
    x: Tensor, weight: Tensor, dy: Tensor, stride: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    x, weight, dy = (
        t.detach().to(dtype).permute(0, 3, 1, 2).requires_grad_() for t in (x, weight, dy)
    )
    y = torch.nn.functional.conv2d(x, weight, None, stride, weight.shape[2] // 2)
    found = y, *torch.autograd.grad(y, [x, weight], dy)
    return [t.detach().permute(0, 2, 3, 1) for t in found]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_gradients(size):
    given, stride = case(*size), size[-1]
    found, truth = computed(*given, stride), defined(*given, stride)
    for mine, true in zip(found[:2], truth[:2], strict=True):  # rounded to bfloat16 once
        torch.testing.assert_close(mine.double(), true, rtol=2**-8, atol=1e-4)
    assert found[2].dtype == torch.float32
    error = (found[2].double() - truth[2]).norm() / truth[2].norm()
    assert error < 3e-6


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_of_spikes_in_float32(size):
    """No further from float64 than twice torch's own float32."""
    stride, draws = size[-1], torch.Generator().manual_seed(0)
    x, weight, dy = (t.float() for t in case(*size))
    x = torch.randint(-1, 9, x.shape, generator=draws) * (x > 0.5).float()
    weight, dy = (torch.randn(t.shape, generator=draws) for t in (weight, dy))
    halves = tiles.narrowed(x)
    assert torch.equal(halves.float(), x)
    of_weight = torch.Size([weight.shape[i] for i in (0, 3, 1, 2)])
    found = [
        tiles.output(halves, weight, stride, torch.float32),
        tiles.by_weight(dy, halves, stride, of_weight),
    ]
    truth = defined(x, weight, dy, stride)[::2]
    theirs = defined(x, weight, dy, stride, torch.float32)[::2]
    for mine, true, other in zip(found, truth, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() <= 2 * (other - true).norm() + 1e-7 * true.norm()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_by_an_input_in_float32_and_what_others_add(size):
    """No further from float64 than twice torch's own float32; in bfloat16 the sum is rounded once."""
    stride, draws = size[-1], torch.Generator().manual_seed(0)
    x, weight, dy = (t.float() for t in case(*size))
    weight, dy = (torch.randn(t.shape, generator=draws) for t in (weight, dy))
    shape = torch.Size([x.shape[i] for i in (0, 3, 1, 2)])
    truth = defined(x, weight, dy, stride)[1]
    theirs = defined(x, weight, dy, stride, torch.float32)[1]
    for more in (None, torch.randn(x.shape, generator=draws)):
        mine = tiles.by_input_of_floats(dy, weight, stride, shape, more)
        true, other = (t if more is None else t + more for t in (truth, theirs))
        assert (mine - true).norm() <= 2 * (other - true).norm() + 1e-7 * true.norm()
    weight, dy, more = weight.bfloat16().float(), dy.bfloat16(), more.bfloat16()
    true = defined(x, weight, dy, stride)[1] + more.double()
    found = tiles.by_input(dy, weight, stride, shape, more)
    torch.testing.assert_close(found.double(), true, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_moments_are_those_of_what_is_written(size, dtype):
    x, weight, _ = case(*size)
    weight[:16] *= torch.logspace(-3, 3, 16)[:, None, None, None]
    moments = torch.full((2, len(weight)), torch.nan, dtype=torch.float64)
    y = tiles.output(x, weight, size[-1], dtype, moments)
    assert torch.equal(y, tiles.output(x, weight, size[-1], dtype))
    var, mean = torch.var_mean(y.double().flatten(0, 2), 0, correction=0)
    assert ((moments[0] - mean).abs() <= 1e-6 * var.sqrt()).all()
    assert ((moments[1] - var).abs() <= 3e-6 * var).all()


@pytest.mark.parametrize("first", [True, False])
def test_moments_neither_of_far_means_nor_of_a_few_far_values_lose_digits(first):
    """Half of the channels read 1 with large weights, and of the others an image is ten thousand times the rest."""
    x = torch.randint(0, 2, (40, 9, 8, 32)).float()
    x[..., 16:] = 1
    x[0 if first else -1, 4, 4, :16] = 16384
    weight = torch.randn(48, 3, 3, 32)
    weight[16:, :, :, 16:] = 0
    weight[16:, 1, 1, 16] = 1000
    moments = torch.empty(2, 48, dtype=torch.float64)
    y = tiles.output(x.bfloat16(), weight, 1, torch.float32, moments)
    var, mean = torch.var_mean(y.double().flatten(0, 2), 0, correction=0)
    assert ((moments[0] - mean).abs() <= 1e-6 * var.sqrt()).all()
    assert ((moments[1] - var).abs() <= 3e-6 * var).all()


def test_moments_of_what_is_not_finite_are_not():
    x, weight, _ = case(*SIZES[0])
    weight[3, 1, 1, 2] = torch.nan
    moments = torch.empty(2, 16, dtype=torch.float64)
    tiles.output(x, weight, 1, None, moments)
    assert (moments.isnan() == (torch.arange(16) == 3)).all()


def test_by_an_input_in_float32_of_numbers_of_all_sizes():
    """The largest that there are, and some that bfloat16 rounds to infinity."""
    weight, dy = torch.randn(16, 3, 3, 16), torch.randn(2, 5, 4, 16)
    dy.view(-1)[::7] = 3.4028234e38
    dy.view(-1)[1::7] = -1e-30
    weight *= 1e-6
    size = torch.Size([2, 16, 5, 4])
    found = tiles.by_input_of_floats(dy, weight, 1, size)
    truth = defined(torch.zeros(2, 5, 4, 16), weight, dy, 1)[1]
    assert (found - truth).norm() <= 1e-6 * truth.norm()


def test_by_an_input_in_float32_what_is_not_finite_is_left_to_others():
    size = torch.Size([2, 16, 5, 4])
    for place in (torch.nan, torch.inf, -torch.inf):
        for given in ("weight", "dy"):
            weight, dy = torch.randn(16, 3, 3, 16), torch.randn(2, 5, 4, 16)
            {"weight": weight, "dy": dy}[given].view(-1)[639] = place
            assert tiles.by_input_of_floats(dy, weight, 1, size) is None


def test_what_is_not_finite_in_float32():
    x = torch.zeros(2, 5, 4, 16)
    x[..., ::3] = 1
    for place in (torch.nan, torch.inf, -torch.inf):
        for given in ("weight", "dy"):
            weight, dy = torch.randn(16, 3, 3, 16), torch.randn(2, 5, 4, 16)
            {"weight": weight, "dy": dy}[given].view(-1)[1603 % 640] = place
            found = tiles.output(tiles.narrowed(x), weight, 1, torch.float32)
            truth = defined(x, weight, dy, 1)
            assert torch.equal(found.isnan(), truth[0].isnan())
            assert torch.equal(found.isinf(), truth[0].isinf())
            by_weight = tiles.by_weight(dy, tiles.narrowed(x), 1, torch.Size([16, 16, 3, 3]))
            assert torch.equal(
                by_weight.isfinite().all(1).all(1), truth[2].isfinite().all(1).all(1)
            )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_spikes_as_bits_give_what_they_give_themselves(size):
    """To the bit, in both dtypes."""
    stride, draws = size[-1], torch.Generator().manual_seed(0)
    x, weight, dy = case(*size)
    x = (x > 0.5).bfloat16()
    of_weight = torch.Size([weight.shape[i] for i in (0, 3, 1, 2)])
    bits = tiles.bits(x)
    assert bits.dtype == torch.int16
    assert torch.equal(tiles.bits(x.float()), bits)
    weight = torch.randn(weight.shape, generator=draws)
    for dtype, by in ((torch.bfloat16, dy), (torch.float32, dy.float())):
        one, other = (tiles.output(t, weight, stride, dtype) for t in (bits, x))
        assert one.dtype == dtype
        assert torch.equal(one, other)
        assert torch.equal(*[tiles.by_weight(by, t, stride, of_weight) for t in (bits, x)])


def test_only_0_and_1_are_bits():
    x = (drawn(3, 5, 7, 16) > 0).bfloat16()
    expected = sum((x.view(-1, 16)[:, i] != 0).int() << i for i in range(16))
    assert torch.equal(tiles.bits(x).view(-1), expected.short())
    assert tiles.bits(x[:0]) is not None
    for dtype in (torch.float32, torch.bfloat16):
        for other in (torch.nan, torch.inf, 2.0, -1.0, 0.5, 1e-30):
            for place in (0, 999, x.numel() - 1):
                one = x.to(dtype)
                one.view(-1)[place] = other
                assert tiles.bits(one) is None


def test_only_what_bfloat16_has_is_narrowed():
    x = torch.randint(-8, 9, (3, 5, 7, 16)).float()
    assert torch.equal(tiles.narrowed(x).float(), x)
    assert tiles.narrowed(x[:0]) is not None
    for other in (torch.nan, torch.inf, -torch.inf, 1 + 2**-8, 257.0, 1e-30 / 3):
        for place in (0, 999, x.numel() - 1):
            one = x.clone()
            one.view(-1)[place] = other
            assert tiles.narrowed(one) is None


@pytest.mark.parametrize("size", SIZES[:25], ids=str)
def test_what_is_not_finite_reaches_what_sees_it_and_nothing_else(size):
    stride = size[-1]
    for place in range(3):
        given = case(*size)
        flat = given[place].view(-1)
        draws = torch.randperm(len(flat), generator=torch.Generator().manual_seed(place))
        if place == 1:  # one weight, of one channel read by one written
            flat[draws[0]] = torch.nan
        else:
            flat[draws[:2]] = torch.tensor([torch.nan, torch.inf], dtype=flat.dtype)
            flat[-1] = flat[0] = torch.inf  # in corners
        *found, by_weight = (t.isfinite() for t in computed(*given, stride))
        *truth, truly = (t.isfinite() for t in defined(*given, stride))
        if place == 1:  # whether a weight multiplies the zeros around a map is left open
            ones = [torch.ones_like(given[0]), given[1].isnan().float(), torch.ones_like(given[2])]
            for mine, seen in zip(found, defined(*ones, stride)[:2], strict=True):
                assert not mine[seen > 0].any()
                assert mine[..., ~(seen > 0).flatten(0, 2).any(0)].all()
        else:
            assert all(map(torch.equal, found, truth))
        # a border is multiplied: all weights of a pair of channels share it
        assert torch.equal(by_weight.all(1).all(1), truly.all(1).all(1))


@pytest.mark.parametrize("size", [SIZES[0], SIZES[4], SIZES[12], SIZES[9]], ids=str)
def test_the_same_bits_by_any_number_of_threads(size):
    given, before, found = case(*size), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(computed(*given, size[-1]))
            x, weight, dy = given
            more = torch.Size([weight.shape[i] for i in (0, 3, 1, 2)]), dy.float()
            moments = torch.empty(2, len(weight), dtype=torch.float64)
            found[-1].append(tiles.output(x, weight, size[-1], torch.float32, moments))
            found[-1].append(moments)
            found[-1].append(tiles.by_weight(more[1], x, size[-1], more[0]))
            shape = torch.Size([x.shape[i] for i in (0, 3, 1, 2)])
            found[-1].append(tiles.by_input_of_floats(more[1], weight, size[-1], shape))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def test_no_images():
    given = case(0, 16, 32, 4, 4, 3, 1)
    y, dx, dw = computed(*given, 1)
    assert y.shape == (0, 4, 4, 32)
    assert dx.shape == (0, 4, 4, 16)
    assert not dw.any()


def test_processors_without_a_unit_compile_nothing(monkeypatch):
    monkeypatch.setattr(
        "spiketriton_kernels.backends.native._machine", lambda: "flags: avx512_bf16"
    )
    monkeypatch.setattr(tiles, "load", None)
    tiles.available.cache_clear()
    try:
        assert not tiles.serves(torch.bfloat16, 16, 16, 3, 1)
    finally:
        tiles.available.cache_clear()


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        ("", True),
        ("all", True),
        ("AVX512_CORE_AMX", True),
        ("AVX512_CORE_BF16", False),
        ("AVX2", False),
    ],
)
def test_what_keeps_oneDNN_from_it_keeps_these(monkeypatch, most, expected):
    monkeypatch.setattr("spiketriton_kernels.backends.native._machine", lambda: "flags: amx_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    asked: list[str] = []
    monkeypatch.setattr(tiles, "load", lambda name: asked.append(name) or native.CompilerError(""))
    tiles.available.cache_clear()
    try:
        assert not tiles.available()
    finally:
        tiles.available.cache_clear()
    assert asked == ["tiles"] * expected


def test_what_it_serves():
    assert tiles.serves(torch.bfloat16, 16, 48, 3, 2)
    for other in [
        (torch.float16, 16, 16, 3, 1),
        (torch.bfloat16, 8, 16, 3, 1),
        (torch.bfloat16, 16, 24, 1, 1),
    ]:
        assert not tiles.serves(*other)
    assert not tiles.serves(torch.bfloat16, 16, 16, 5, 1)
    assert not tiles.serves(torch.bfloat16, 16, 16, 3, 3)
