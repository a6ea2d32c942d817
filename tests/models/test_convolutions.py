"""Convolutions by matrix products and of spikes alone: torch's convolution, where and only where they are faster."""

import copy
import itertools
import pickle
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton.models import convolutions, memory
from spiketriton.models.convolutions import FasterConv2d, Sizes
from spiketriton.models.layers import StridedPointwise, folded, norm_neuron
from spiketriton.neurons import Norm
from spiketriton_kernels.backends import beside
from spiketriton_kernels.convolutions import tiles
from spiketriton_kernels.nn import LIF
from tests.conftest import need_native
from tests.covering import pairwise
from tests.evaluate.test_stream import IMAGES, made
from tests.models.support import build, parts_of

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def always(monkeypatch):
    """`always(dtype, rows, pixels, weights)`: products at every size, of a processor of any kind."""

    def choose(dtype: torch.dtype, rows: bool, pixels: bool = True, weights: bool = True) -> None:
        every = [(kernel, 1, 10**6, 1, 1) for kernel in (1, 3, 5)]
        sizes = Sizes(every if pixels else (), every if weights else (), rows)
        found = {dtype: sizes}
        monkeypatch.setattr(convolutions, "sizes_here", found.get)

    return choose


def there_and_back(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """Output and gradients of a copy of x, the weights and the bias."""
    given = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = conv(given)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [given, *conv.parameters()])]


@pytest.fixture
def no_tiles(monkeypatch):
    """A processor without AMX."""
    monkeypatch.setattr("spiketriton_kernels.convolutions.tiles.available", lambda: False)


def pair(*sizes: int, dtype: torch.dtype = torch.float64, **options) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Ours and torch's, with the same weights."""
    ours, theirs = FasterConv2d(*sizes, **options), nn.Conv2d(*sizes, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize(
    ("rows", "kernel", "stride", "layout"),
    pairwise([True, False], [1, 3, 5], [1, 2, 3], [torch.contiguous_format, torch.channels_last]),
)
def test_products_equal_the_convolution(always, rows, kernel, stride, layout):
    always(torch.float64, rows)
    for height, width in ((1, 1), (2, 2), (4, 4), (3, 5), (1, 6), (7, 2)):
        options = {"stride": stride, "padding": kernel // 2, "bias": width == 5}
        ours, theirs = pair(3, 7, kernel, **options)
        ours.to(memory_format=layout)
        x = torch.randn(5, 3, height, width, dtype=torch.float64).contiguous(memory_format=layout)
        for mine, expected in zip(there_and_back(ours, x), there_and_back(theirs, x), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("pixels", "weights"), [(True, False), (False, True)])
def test_forward_and_backward_are_chosen_by_themselves(always, monkeypatch, pixels, weights):
    always(torch.float64, True, pixels, weights)
    ours, theirs = pair(4, 6, 3, padding=1)
    called: list[str] = []
    for name in ("output", "by_input", "by_weight"):
        real = getattr(convolutions.Rows, name)

        def counted(*given, name=name, real=real):
            called.append(name)
            return real(*given)

        monkeypatch.setattr(convolutions.Rows, name, counted)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    for mine, expected in zip(there_and_back(ours, x), there_and_back(theirs, x), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)
    assert called == (["output", "by_input"] if pixels else ["by_weight"])
    called.clear()
    ours.weight.requires_grad_(False)  # as train.freeze does
    ours(x.requires_grad_()).sum().backward()
    assert called == (["output", "by_input"] if pixels else [])


@pytest.mark.parametrize(
    ("kind", "conv", "images", "side", "chosen"),
    [
        ("avx2", (512, 512, 3, 1), 64, 2, (True, True)),  # the last stage of ResNet-18 at 64 pixels
        ("avx2", (512, 512, 3, 1), 4, 2, (False, False)),
        ("avx2", (64, 64, 3, 1), 64, 2, (False, False)),
        ("avx2", (256, 512, 3, 2), 64, 4, (True, True)),
        ("avx2", (256, 512, 1, 2), 64, 4, (True, True)),
        ("avx2", (256, 256, 3, 1), 64, 4, (False, True)),
        ("avx2", (512, 512, 3, 1), 64, 7, (False, True)),
        ("avx2", (128, 128, 3, 1), 64, 8, (False, False)),
        ("avx512_bf16", (512, 512, 3, 1), 32, 2, (True, True)),  # ResNet-50's last stage
        ("avx512_bf16", (256, 512, 3, 2), 32, 4, (True, True)),
        ("avx512_bf16", (256, 256, 3, 2), 32, 8, (False, True)),
        ("avx512_bf16", (512, 2048, 1, 1), 32, 2, (True, True)),
        ("avx512_bf16", (256, 256, 3, 1), 32, 4, (False, True)),
        ("avx512_bf16", (256, 256, 3, 1), 16, 4, (False, False)),
        ("avx512_bf16", (512, 512, 3, 1), 16, 4, (False, True)),
        ("avx512_bf16", (512, 512, 3, 1), 64, 4, (True, True)),
        ("avx512_bf16", (128, 128, 3, 1), 32, 8, (False, False)),
    ],
)
def test_the_measured_sizes(kind, conv, images, side, chosen):
    sizes = next(found[kind] for found in convolutions.SIZES.values() if kind in found)
    read, written, kernel, stride = conv
    with torch.device("meta"):
        layer = FasterConv2d(read, written, kernel, stride, padding=kernel // 2)
        ways = layer._by_products(torch.empty(images, read, side, side), sizes)
    assert (ways[0] is not None, ways[2] is not None) == chosen
    assert ways[0] is ways[1]


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2},
        {"dilation": 2},
        {"padding": 0},
        {"padding_mode": "circular"},
        {"stride": (1, 2)},
    ],
    ids=str,
)
def test_other_convolutions_are_torchs(always, options):
    always(torch.float64, True)
    ours, theirs = pair(4, 4, 3, **{"padding": 1, **options})
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert type(ours(x).grad_fn) is type(theirs(x).grad_fn)
    assert torch.equal(ours(x), theirs(x))


def test_only_processors_that_were_measured(monkeypatch):
    for flags, there in (
        ({"avx2"}, {F32}),
        ({"avx2", "avx512_bf16"}, {F32, BF16}),
        ({"avx2", "amx_bf16", "avx512_bf16"}, {F32, BF16}),
        (set(), set()),
    ):
        monkeypatch.setattr("spiketriton.system.machine.cpu_flags", lambda flags=flags: flags)
        assert {dtype for dtype in (F32, BF16) if convolutions.sizes_here(dtype)} == there
    monkeypatch.setattr("spiketriton.system.machine.cpu_flags", set)
    ours, theirs = pair(128, 128, 3, padding=1, bias=False, dtype=F32)
    x = torch.randn(8, 128, 1, 1)
    assert torch.equal(ours(x), theirs(x))
    assert type(ours(x).grad_fn) is type(theirs(x).grad_fn)
    monkeypatch.setattr("spiketriton.system.machine.cpu_flags", lambda: {"avx2"})
    assert type(ours(x).grad_fn) is not type(theirs(x).grad_fn)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
def test_in_bf16_the_error_is_at_most_twice_that_of_torch(always, no_tiles, rows, kernel, stride):
    """Against float64, of the same rounded images and weights."""
    always(BF16, rows)
    ours, theirs = pair(32, 48, kernel, stride, kernel // 2, bias=False, dtype=F32)
    x = torch.randn(16, 32, 4, 4).bfloat16()
    exact = nn.Conv2d(32, 48, kernel, stride, kernel // 2, bias=False)
    exact.load_state_dict({"weight": ours.weight.detach().bfloat16()})
    truth = there_and_back(exact.double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = [there_and_back(conv, x) for conv in (ours, theirs)]
    assert found[0][0].dtype == BF16
    assert found[0][2].dtype == F32  # of the weights
    for mine, theirs_, true in zip(*found, truth, strict=True):
        ours_off, theirs_off = ((it.double() - true).norm() for it in (mine, theirs_))
        assert ours_off <= 2 * theirs_off + 1e-6 * true.norm()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_matrix_unit_computes_in_bf16(kernel, stride, layout):
    """Of float32 weights the gradient is float32, never rounded; against float64, of the same rounded values."""
    if not tiles.available():
        pytest.skip("needs AMX and a compiler")
    options = {"stride": stride, "padding": kernel // 2, "bias": True}
    ours, theirs = pair(32, 48, kernel, dtype=F32, **options)
    ours.to(memory_format=layout)
    exact = nn.Conv2d(32, 48, kernel, **options)
    exact.load_state_dict({"weight": ours.weight.bfloat16(), "bias": ours.bias.detach()})
    x = torch.randn(16, 32, 9, 7).bfloat16().contiguous(memory_format=layout)
    truth = there_and_back(exact.double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = [there_and_back(conv, x) for conv in (ours, theirs)]
        assert "Convolution" in str(ours(x).grad_fn.next_functions)
    for mine, theirs_, true in zip(*found, truth, strict=True):
        assert mine.dtype == theirs_.dtype
        ours_off, theirs_off = ((it.double() - true).norm() for it in (mine, theirs_))
        assert ours_off <= 2 * theirs_off + 1e-6 * true.norm()
    of_bf16, _ = pair(16, 16, 3, dtype=BF16, padding=1, bias=False)
    x = torch.randn(2, 16, 4, 4).bfloat16()
    assert [t.dtype for t in there_and_back(of_bf16, x)] == [BF16] * 3


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_matrix_unit_computes_of_spikes_in_fp32(kernel, stride, layout):
    if not tiles.available():
        pytest.skip("needs AMX and a compiler")
    options = {"stride": stride, "padding": kernel // 2, "bias": True}
    ours, theirs = pair(32, 48, kernel, dtype=F32, **options)
    ours.to(memory_format=layout)
    exact = nn.Conv2d(32, 48, kernel, **options).double()
    exact.load_state_dict(ours.state_dict())
    spikes = (torch.randint(0, 9, (16, 32, 9, 7)) * (torch.rand(16, 32, 9, 7) < 0.3)).float()
    for x, kept in ((spikes, BF16), (spikes / 3, F32)):
        x = x.contiguous(memory_format=layout)
        saved: list[torch.dtype] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.dtype) or t, lambda t: t
        ):
            ours(x)
        assert saved == [kept, F32]
        found = [there_and_back(conv, x) for conv in (ours, theirs)]
        for mine, theirs_, true in zip(*found, there_and_back(exact, x.double()), strict=True):
            ours_off, theirs_off = ((it.double() - true).norm() for it in (mine, theirs_))
            assert ours_off <= 2 * theirs_off + 1e-7 * true.norm()
    ours.weight.requires_grad_(False)
    assert ours(spikes.requires_grad_()).grad_fn is not None


@pytest.mark.parametrize(
    ("floats", "dtype", "kernel_and_stride"),
    pairwise([0, convolutions.FLOATS], [F32, BF16], [(3, 1), (3, 2), (1, 2)]),
)
def test_the_gradient_of_others_is_added_where_it_is_written(
    monkeypatch, floats, dtype, kernel_and_stride
):
    """Once, as float64 says; also of what only the others read, and of numbers that are not finite."""
    kernel, stride = kernel_and_stride
    monkeypatch.setattr(convolutions, "FLOATS", floats)
    conv = FasterConv2d(16, 32, kernel, stride, kernel // 2, bias=False)
    x = (torch.rand(6, 16, 9, 7) < 0.3).to(dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    for number in (1.0, torch.inf):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == BF16):
            y, shared = conv.beside(x)
        assert torch.equal(shared, x)
        by_y, by_shared = torch.randn_like(y), torch.randn_like(x)
        by_y[1, 2, 3, 3] = number
        assert torch.equal(
            torch.autograd.grad(shared, x, by_shared, retain_graph=True)[0], by_shared
        )
        (found,) = torch.autograd.grad([y, shared], x, [by_y, by_shared])
        exact = nn.Conv2d(16, 32, kernel, stride, kernel // 2, bias=False)
        exact.load_state_dict({"weight": conv.weight.to(dtype)})
        wide = x.detach().double().requires_grad_()
        (true,) = torch.autograd.grad(exact.double()(wide), wide, by_y.double())
        near = {"rtol": 2**-8, "atol": 1e-2} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(found.double(), true + by_shared, equal_nan=True, **near)


def test_what_nobody_adds_to():
    """Without a gradient, in float64 and where torch traces: x itself."""
    conv = FasterConv2d(16, 16, 3, padding=1)
    x = torch.rand(2, 16, 4, 4)
    with torch.no_grad():
        y, shared = conv.beside(x)
    assert torch.equal(y, conv(x))
    assert torch.equal(shared, x)
    assert conv.double().beside(x.double())[1].dtype == torch.float64
    assert conv._shared is None


@pytest.mark.parametrize("neuron", [parts_of().neuron(), nn.Identity()])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_norm_takes_the_moments_that_its_convolution_has_left(monkeypatch, dtype, neuron):
    """The statistics are float64's. None are left of what was changed, and where nothing is trained."""
    if not tiles.available():
        pytest.skip("needs AMX and a compiler")
    conv, norm = FasterConv2d(16, 32, 3, padding=1, bias=False), Norm(32)
    taken: list[bool] = []
    of = beside.moments_of

    def look(y: Tensor) -> Tensor | None:
        taken.append(of(y) is not None)
        return of(y)

    monkeypatch.setattr(beside, "moments_of", look)
    spikes = (torch.rand(2, 3, 16, 9, 7) < 0.4).to(dtype)
    spikes = spikes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 3))
    for normed in (False, True):
        conv.normed = normed
        norm.reset_running_stats()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == BF16):
            y = folded(conv, spikes)
            norm_neuron(norm, neuron, y)
        assert taken.pop() == normed
        var, mean = torch.var_mean(y.detach().double(), (0, 1, 3, 4))
        torch.testing.assert_close(norm.running_mean.double(), 0.1 * mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * var, rtol=1e-5, atol=0)
    y.detach().mul_(3)
    assert of(y) is None
    with torch.no_grad():
        assert of(folded(conv, spikes)) is None
    assert of(folded(conv.eval(), spikes)) is None


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_spikes_of_a_matrix_unit_are_kept_as_bits(dtype):
    """Whether they are packed or not; whole numbers that they are not in float32 in half of their room."""
    if not tiles.available():
        pytest.skip("needs AMX and a compiler")
    conv = FasterConv2d(16, 16, 3, padding=1, bias=False)
    spikes = (torch.rand(4, 16, 6, 6) < 0.5).to(dtype).contiguous(memory_format=torch.channels_last)
    for packs in (False, True):
        for factor, expected in ((1, torch.int16), (3, BF16)):
            kept: list[Tensor] = []
            half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == BF16)
            given = memory.mark_spikes(spikes) if factor == 1 else factor * spikes
            with memory.PackedSpikes(kept.append) if packs else _seen_by(kept), half:
                conv(given)
            assert [tensor.dtype for tensor in kept] == [expected, F32]


def _seen_by(kept: list[Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
    return torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)


def test_spikes_are_kept_as_bits(always):
    """`model.memory = "packed"` knows a convolution's input again."""
    always(F32, True)
    conv = FasterConv2d(8, 8, 3, padding=1, bias=False)
    spikes = (torch.rand(4, 8, 2, 2) < 0.5).float().contiguous(memory_format=torch.channels_last)
    plain = there_and_back(conv, spikes)
    kept: list[Tensor] = []
    with memory.PackedSpikes(kept.append):
        given = memory.mark_spikes(spikes.clone(memory_format=torch.preserve_format))
        out = conv(given)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    (by_weight,) = torch.autograd.grad((out * weights).sum(), [conv.weight])
    assert [tensor.dtype for tensor in kept] == [torch.uint8, F32]
    assert torch.equal(by_weight, plain[2])


def test_what_traces_sees_a_convolution(always):
    always(F32, True)
    conv, x = FasterConv2d(4, 4, 3, padding=1), torch.randn(2, 4, 2, 2)
    assert "_convolution" in str(torch.jit.trace(conv, x).graph)
    assert "conv2d" in str(torch.export.export(conv, (x,)).graph)


def test_a_gradient_of_a_gradient_is_refused(always):
    always(F32, True)
    conv, x = FasterConv2d(4, 4, 3, padding=1), torch.randn(2, 4, 2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
def test_a_network_computes_what_it_computed(always, monkeypatch, rows):
    """All convolutions of a residual network with both kinds of shortcuts, in float64."""
    model = build("resnet8", width=8).double()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert {type(conv) for conv in convs} == {FasterConv2d, StridedPointwise}
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = []
    for products in (False, True):
        if products:
            always(torch.float64, rows)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in itertools.zip_longest(*found):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.fixture
def an_avx2_processor(monkeypatch, no_tiles):
    need_native()
    monkeypatch.setattr("spiketriton.system.machine.cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")


def spikes(*size: int, share: float, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    x = (torch.rand(*size, generator=draws) < share).float()
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("conv", "share", "by_spikes"),
    [
        ((32, 128, 3, 1), 0.28, True),
        ((32, 128, 3, 1), 0.35, False),
        ((64, 32, 3, 1), 0.15, True),
        ((64, 32, 3, 1), 0.25, False),
        ((16, 16, 3, 1), 0.05, False),
    ],
)
def test_spikes_alone_by_longer_vectors(an_avx2_processor, monkeypatch, conv, share, by_spikes):
    """With AVX-512 they are fewer: what takes all values is twice as fast there."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    read, written, kernel, stride = conv
    ours, theirs = pair(read, written, kernel, stride, kernel // 2, bias=False, dtype=F32)
    x = spikes(16, read, 8, 8, share=share)
    assert (type(ours(x).grad_fn) is not type(theirs(x).grad_fn)) == by_spikes
    found, library = there_and_back(ours, x), there_and_back(theirs, x)
    exact = there_and_back(theirs.double(), x.double())
    for mine, its, true in zip(found, library, exact, strict=True):
        assert torch.equal(mine, its) or (by_spikes and (mine - true).norm() <= 1e-5 * true.norm())


@pytest.mark.parametrize(
    ("conv", "side", "share", "by_spikes"),
    [
        ((32, 128, 3, 1), 8, 0.45, True),
        ((32, 128, 3, 1), 8, 0.6, False),
        ((32, 64, 3, 1), 8, 0.4, True),
        ((32, 64, 3, 1), 8, 0.5, False),
        ((64, 32, 3, 1), 8, 0.3, True),
        ((64, 32, 3, 1), 8, 0.4, False),
        ((16, 16, 3, 1), 8, 0.1, True),
        ((16, 16, 3, 1), 8, 0.2, False),
        ((16, 8, 3, 1), 8, 0.01, False),
        ((16, 36, 3, 1), 8, 0.01, False),
        ((32, 128, 3, 1), 4, 0.15, True),
        ((32, 128, 3, 1), 4, 0.3, False),
        ((32, 128, 3, 1), 3, 0.01, False),
        ((32, 128, 3, 2), 8, 0.1, False),
        ((32, 128, 5, 1), 8, 0.1, False),
        ((32, 128, 1, 1), 8, 0.1, False),
    ],
)
def test_spikes_alone_are_visited_where_few_fire(an_avx2_processor, conv, side, share, by_spikes):
    read, written, kernel, stride = conv
    ours, theirs = pair(read, written, kernel, stride, kernel // 2, bias=share < 0.1, dtype=F32)
    x = spikes(16, read, side, side, share=share)
    out = ours(x)
    assert (type(out.grad_fn) is not type(theirs(x).grad_fn)) == by_spikes
    found, library = there_and_back(ours, x), there_and_back(theirs, x)
    exact = there_and_back(theirs.double(), x.double())
    for mine, its, true in zip(found, library, exact, strict=True):
        assert torch.equal(mine, its) or (by_spikes and (mine - true).norm() <= 1e-5 * true.norm())


def test_where_spikes_alone_are_not_measured(an_avx2_processor, monkeypatch):
    ours, theirs = pair(32, 64, 3, padding=1, bias=False, dtype=F32)
    x = spikes(4, 32, 8, 8, share=0.1)
    library = type(theirs(x).grad_fn)
    assert type(ours(x).grad_fn) is not library
    assert ours(x[:0]).shape == (0, 64, 8, 8)
    with torch.autocast("cpu", BF16):
        assert ours(x).dtype == BF16
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    assert type(ours(x).grad_fn) is library
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("spiketriton_kernels.convolutions.sparse.available", lambda: False)
    assert type(ours(x).grad_fn) is library


def test_images_of_all_time_steps_say_how_many_fire(an_avx2_processor):
    """Of a net's first steps few neurons have reached their threshold."""
    ours, theirs = pair(32, 64, 3, padding=1, bias=False, dtype=F32)
    x = spikes(32, 32, 8, 8, share=1.0)
    x[:8] = 0
    assert type(ours(x).grad_fn) is type(theirs(x).grad_fn)


def not_a_number_in_freed_memory() -> None:
    freed = [torch.full((size,), torch.nan) for k in range(6, 18) for size in (1 << k, 3 << k) * 2]
    del freed


class Derived(nn.Conv2d):
    """A convolution of another library, with torch's own forward."""


NARROW = [  # height and width, kernel, stride, padding
    *((1, 1, 3, 2, 1), (8, 1, 3, 2, 1), (2, 2, 3, 3, 1), (1, 1, 5, 2, 2), (1, 1, 2, 2, 1)),
    *((2, 2, 5, 4, 2), (3, 3, 4, 4, 1), (1, 1, 7, 3, 3)),
]


class Bare(nn.Conv2d):
    """Calls the function, as convolutions with standardised weights do."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, padding=self.padding)


def assert_whole_gradients(net: nn.Module, exact: nn.Module, x: Tensor, *modes) -> None:
    """In bf16, where PyTorch 2.13 hands out memory that it never wrote; modes: in which it is called."""
    exact.load_state_dict({name.removeprefix("0."): v for name, v in net.state_dict().items()})
    truth = there_and_back(exact.double(), x.double())
    for _ in range(4):
        net.zero_grad()
        with ExitStack() as stack:
            for mode in (torch.autocast("cpu", BF16), *modes):
                stack.enter_context(mode)
            out = net(x)
        not_a_number_in_freed_memory()
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        weight = next(net.parameters()).grad
        assert out.shape == truth[0].shape
        for mine, true in zip([out, weight], [truth[0], truth[2]], strict=True):
            assert (mine - true).norm() <= 0.02 * true.norm()


@pytest.mark.parametrize("kind", [FasterConv2d, nn.Conv2d, Derived])
@pytest.mark.parametrize(("height", "width", "kernel", "stride", "padding"), NARROW)
def test_maps_narrower_than_the_stride_have_whole_gradients_in_bf16(
    no_tiles, kind, height, width, kernel, stride, padding
):
    net = nn.Sequential(kind(20, 24, kernel, stride, padding))
    convolutions.keep_sound(net)
    x = torch.randn(4, 20, height, width).contiguous(memory_format=torch.channels_last)
    assert_whole_gradients(net, nn.Conv2d(20, 24, kernel, stride, padding), x)
    twin = copy.deepcopy(net)
    twin[0].weight.data.zero_()
    assert torch.equal(twin(x)[:, :, 0, 0], twin[0].bias.expand(len(x), -1))
    assert pickle.loads(pickle.dumps(net))(x).equal(net(x))


@pytest.mark.parametrize(
    ("make", "exact", "size", "options"),
    [
        *((Bare, nn.Conv2d, size[:2], size[2:]) for size in NARROW),
        *(
            (make, make, size, (3, stride, 1))
            for make, sizes in (
                (nn.Conv1d, [(1,), (2,)]),
                (nn.Conv3d, [(1, 1, 1), (2, 2, 2), (3, 1, 2), (1, 2, 3)]),
            )
            for size in sizes
            for stride in (2, 3)
        ),
        *((make, make, (3, 6, 8), (5, 1, 2)) for make in (nn.Conv3d, nn.ConvTranspose3d)),
        *((nn.ConvTranspose1d, nn.ConvTranspose1d, (n,), (3, 2, 1)) for n in (1, 2)),
        (nn.ConvTranspose2d, nn.ConvTranspose2d, (3, 1), (5, 2, 2)),
    ],
)
def test_functions_of_any_dimension_have_whole_gradients_within_a_mode(
    no_tiles, make, exact, size, options
):
    x = torch.randn(4, 20, *size)
    if len(size) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    sound = convolutions.Sound()
    assert_whole_gradients(make(20, 24, *options), exact(20, 24, *options), x, sound)
    assert sound.met == (len(size) == 3 or size[-1] < options[1])


def test_a_padding_in_words_meets_no_mode():
    with convolutions.Sound() as sound:
        F.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3), padding="same")
    assert not sound.met


class Narrowing(nn.Module):
    """Images of 8x8 -> maps of 2x2 and of 1x1, by functions."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Bare(2, 20, 3, 4, 1), Bare(20, 24, 3, 2, 1)])
        self.last, self.fire, self.head = Bare(24, 24, 3, stride, 1), LIF(), nn.Linear(24, 4)

    def forward(self, x):
        y = x.flatten(0, 1)
        for layer in (*self.layers, self.last):
            y = layer(y)
        return self.head(self.fire(y.mean((2, 3)).unflatten(0, x.shape[:2])))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_handed_network_that_calls_functions_on_narrow_maps_computes_them_soundly(
    no_tiles, stride
):
    model = made(IMAGES, net=Narrowing(stride))._run.model.train()
    x = torch.randn(60, 2, 8, 8)
    for _ in range(4):
        model.zero_grad()
        with torch.autocast("cpu", BF16):
            out = model(x)
        not_a_number_in_freed_memory()
        out.float().square().sum().backward()
        assert model.net.last.weight.grad.isfinite().all()
    assert model._soundly == (stride == 2)
