"""Convolutions that on a CPU take less time than its library's, which is made for large maps of values other than 0.

A matrix unit (AMX) computes them in bfloat16, and of spikes in float32 (`tiles`). Elsewhere, on small maps they are
matrix products (`Rows`, `Columns`), and behind neurons they multiply spikes alone (`sparse`).
studies/convolutions has the measurements behind `SIZES` and `sparse.SHARES`. On a GPU nothing changes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    pad,
)
from torch.overrides import TorchFunctionMode

from spiketriton.models.memory import mark_alike
from spiketriton.system import machine
from spiketriton_kernels.backends import beside, words
from spiketriton_kernels.convolutions import sparse, tiles
from spiketriton_kernels.window.fire import traced

Ways = tuple[Any, Any, Any]
"""What computes an output and the gradients by input and weights: a module or class below; None: the library."""
Convolve = Callable[..., Tensor]
TRANSPOSED = (conv_transpose1d, conv_transpose2d, conv_transpose3d)
_BY_TILES: Ways = (tiles, tiles, tiles)


class Sizes(NamedTuple):
    """Where products are faster: for the output and the gradient by the input, and by the weights.

    A size is a square kernel, its least stride, the most pixels of an output, the least channels and images. The fewer
    of the channels that are read and written count; images are those of all time steps.
    rows: kernels above 1x1 are multiplied row by row (`Rows`), otherwise as columns (`Columns`).
    """

    by_pixels: Sequence[tuple[int, ...]]
    by_weights: Sequence[tuple[int, ...]]
    rows: bool


FLOATS = 64 * 64
"""Up to so many pairs of channels read and written the matrix unit has the gradient by a float32 input."""

# by dtype, and by the first instructions that a processor has: medians of one thread of AMD EPYCs
SIZES = {
    torch.float32: {"avx2": Sizes(
        [(3, 1, 4, 128, 8), (1, 2, 16, 256, 64)],
        [(3, 1, 4, 128, 8), (3, 1, 16, 256, 16), (3, 1, 49, 512, 32), (1, 1, 4, 256, 64), (1, 2, 16, 256, 64)],
        rows=True,
    )},
    torch.bfloat16: {"avx512_bf16": Sizes(
        [(3, 1, 4, 128, 8), (3, 1, 16, 512, 64), (3, 2, 4, 256, 32), (1, 1, 16, 256, 32), (1, 2, 16, 256, 32)],
        [
            *((3, 1, 4, 128, 8), (3, 1, 16, 512, 16), (3, 1, 16, 256, 32), (3, 2, 16, 256, 32)),
            *((1, 1, 16, 256, 32), (1, 2, 16, 256, 32)),
        ],
        rows=True,
    )},
}  # fmt: skip


def sizes_here(dtype: torch.dtype) -> Sizes | None:
    """None: nobody measured this dtype on such a processor."""
    flags = machine.cpu_flags()
    return next((sizes for name, sizes in SIZES.get(dtype, {}).items() if name in flags), None)


def in_bfloat16(x: Tensor) -> bool:
    """Whether PyTorch convolves x in it, on a CPU."""
    autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    return x.device.type == "cpu" and dtype == torch.bfloat16


def in_float32(
    convolve: Convolve, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any, **more: Any
) -> Tensor:
    """What `convolve` would return in bfloat16, computed in float32, and so its gradients."""
    added = None if bias is None else bias.float()
    with torch.autocast("cpu", enabled=False):
        exact = convolve(x.float(), weight.float(), added, *options, **more)
    return exact.to(torch.bfloat16)


def is_unsound(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether PyTorch's gradient by the weights holds memory that was never written.

    PyTorch 2.13 does so in bfloat16 on CPUs, where a map is narrower than the stride (studies/convolutions).
    """
    narrow = x.ndim == 4 and x.shape[3] < conv.stride[1]
    return narrow and in_bfloat16(x) and conv.kernel_size != (1, 1) and conv.padding_mode == "zeros"


def soundly(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's convolution; of a map that is narrower than the stride in float32."""
    convolve = partial(nn.Conv2d._conv_forward, conv)
    if is_unsound(conv, x):
        return in_float32(convolve, x, weight, bias)
    return convolve(x, weight, bias)


class Sound(TorchFunctionMode):
    """Within it PyTorch's functions convolve `soundly`, in one to three dimensions, transposed or not.

    Those of three dimensions are computed in float32: in bfloat16 PyTorch's gradient by the weights is wrong on most
    maps as soon as the kernel is wider than 3. Of a transposed one it is wrong where the output is narrower than the
    stride (studies/convolutions).

    Attributes:
        met: whether there was such a convolution, in any dtype.
    """

    met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        convolves = func in (conv1d, conv2d, conv3d) or func in TRANSPOSED
        return (partial(self._convolved, func) if convolves else func)(*args, **(kwargs or {}))

    def _convolved(
        self,
        convolve: Convolve,
        input: Tensor,  # as PyTorch names it
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        *options: Any,
        **more: Any,
    ) -> Tensor:
        given = input, weight, bias, stride, *options
        if input.device.type != "cpu" or max(weight.shape[2:]) == 1:
            return convolve(*given, **more)
        if convolve not in (conv3d, conv_transpose3d):
            y = convolve(*given, **more)
            width = (y if convolve in TRANSPOSED else input).shape[-1]
            if width >= (stride if isinstance(stride, int) else stride[-1]):
                return y
        self.met = True
        return (partial(in_float32, convolve) if in_bfloat16(input) else convolve)(*given, **more)


def keep_sound(net: nn.Module) -> None:
    """Has the convolutions of a network of others compute `soundly`; those that are no modules do within `Sound`."""
    for module in net.modules():
        own = isinstance(module, FasterConv2d) or "_conv_forward" in vars(module)
        if isinstance(module, nn.Conv2d) and not own:
            module._conv_forward = partial(soundly, module)  # type: ignore[method-assign]


class FasterConv2d(nn.Conv2d):
    """A convolution that on a CPU is computed in the way that takes least time; the same numbers up to rounding.

    Output and both gradients are chosen by themselves. Where torch traces, it sees a plain convolution.
    """

    normed = False  # whether a batch norm reads the output: in training, tiles leave its moments
    _shares = False  # whether `beside` calls
    _shared: Tensor | None = None  # x, for it

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and x for others that read it, too: this convolution adds its gradient by x to theirs.

        So the sum takes no time of its own, and is rounded once.
        """
        self._shares = True
        try:
            y: Tensor = self(x)
            shared, self._shared = self._shared, None
        finally:
            self._shares = False
        return y, x if shared is None else shared

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.ndim != 4 or traced((x, self.weight)):
            return super().forward(x)
        half = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if half else x.dtype
        if not self._is_plain():
            return super().forward(x)
        stride, kernel = self.stride[0], self.kernel_size[0]
        served = tiles.serves(dtype, self.in_channels, self.out_channels, kernel, stride)
        served = served and (dtype == torch.bfloat16 or self.weight.dtype == torch.float32)
        sizes = sizes_here(dtype)
        if served and (spikes := _spikes(x := x.to(dtype))) is not None:
            by_input: Any = tiles
            if dtype == torch.float32 and self.in_channels * self.out_channels > FLOATS:
                by_input = None if sizes is None else self._by_products(x, sizes)[1]
            given = x, spikes, self.weight.float(), stride, by_input, self._shares, self._measures
            y, self._shared = _OfSpikes.apply(*given)
            return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
        if served and dtype == torch.bfloat16:
            return self._by(_BY_TILES, x, self.weight.float())
        if is_unsound(self, x):
            return super().forward(x)
        if sizes is None:
            return super().forward(x)
        ways = output, by_input, by_weight = self._by_products(x, sizes)
        near = (self.kernel_size, self.stride, dtype) == ((3, 3), (1, 1), torch.float32)
        if near and sparse.pays(x, self.out_channels):
            ways = output or sparse, by_input, by_weight or sparse
        if not any(ways):
            return super().forward(x)
        return self._by(ways, x.to(dtype), self.weight.to(dtype))

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return soundly(self, x, weight, bias)

    def _by(self, ways: Ways, x: Tensor, weight: Tensor) -> Tensor:
        given = self.stride[0], self.padding[0], ways, self._shares, self._measures
        y, self._shared = _Convolution.apply(x, weight, *given)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    @property
    def _measures(self) -> bool:
        return self.normed and self.training and torch.is_grad_enabled()

    def _is_plain(self) -> bool:
        kernel, stride = self.kernel_size[0], self.stride[0]
        alike = self.kernel_size == (kernel, kernel) and self.stride == (stride, stride)
        padded = self.padding == (kernel // 2, kernel // 2) and self.padding_mode == "zeros"
        return alike and padded and self.groups == 1 and self.dilation == (1, 1)

    def _by_products(self, x: Tensor, sizes: Sizes) -> Ways:
        """Matrix products at the sizes at which they are faster."""
        stride = self.stride[0]
        pixels = -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
        channels = min(self.in_channels, self.out_channels)

        def faster(size: tuple[int, ...]) -> bool:
            kernel, least_stride, most_pixels, least_channels, images = size
            enough = channels >= least_channels and len(x) >= images
            near = stride >= least_stride and pixels <= most_pixels
            return self.kernel_size[0] == kernel and near and enough

        way = Rows if sizes.rows and self.kernel_size[0] > 1 else Columns
        by_pixels = way if any(map(faster, sizes.by_pixels)) else None
        return by_pixels, by_pixels, way if any(map(faster, sizes.by_weights)) else None


class _Convolution(torch.autograd.Function):
    """x [N, C, H, W] by weights [O, C, k, k], padded by (k - 1) / 2, without bias; and x, if it `shares`, else None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        stride: int,
        padding: int,
        ways: Ways,
        shares: bool,
        measures: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        ctx.stride, ctx.padding, ctx.ways = stride, padding, ways
        if ways[0] is None:
            y = conv2d(x, weight, None, stride, padding)
        elif ways[0] is tiles:
            y = _measured(_last(x), weight, stride, x.dtype, measures)
        else:
            y = _channels_first(ways[0].output(_last(x), _last(weight), stride))
        return y, x.view_as(x) if shares else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, more: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return more, *[None] * 6
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        ways = [way if want else None for way, want in zip(ctx.ways[1:], wanted, strict=True)]
        by_library = [want and way is None for want, way in zip(wanted, ways, strict=True)]
        dx = dweight = None
        if any(by_library):
            dx, dweight = _by_library(dy, x, weight, ctx.stride, by_library)
        seen = _last(dy)
        if ways[0] is tiles:
            found = tiles.by_input(seen, _last(weight), ctx.stride, x.shape, _added(more))
            dx, more = _channels_first(found), None
        elif ways[0] is not None:
            dx = _channels_first(ways[0].by_input(seen, _last(weight), ctx.stride, x.shape))
        if ways[1] is not None:
            dweight = _channels_first(ways[1].by_weight(seen, _last(x), ctx.stride, weight.shape))
        return _sum(dx, more), dweight, *[None] * 5


class _OfSpikes(torch.autograd.Function):
    """x [N, C, H, W] by float32 weights [O, C, k, k]; and x, if it `shares`, else None.

    spikes: x as `tiles.bits`, or float32 x `narrowed`, which is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        spikes: Tensor,
        weight: Tensor,
        stride: int,
        by_input: Any,
        shares: bool,
        measures: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(spikes, weight)
        ctx.set_materialize_grads(False)
        ctx.stride, ctx.size, ctx.by_input = stride, x.shape, by_input
        y = _measured(spikes, weight, stride, x.dtype, measures)
        return y, x.view_as(x) if shares else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, more: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return more, *[None] * 6
        spikes, weight = ctx.saved_tensors
        dx = dweight = None
        seen = _last(dy)
        if ctx.needs_input_grad[0]:
            dx = _OfSpikes._by_input(ctx, dy, weight, more)
        if ctx.needs_input_grad[2]:
            found = tiles.by_weight(seen, spikes, ctx.stride, weight.shape)
            dweight = _channels_first(found)
        return dx, None, dweight, *[None] * 4

    @staticmethod
    def _by_input(ctx: Any, dy: Tensor, weight: Tensor, more: Tensor | None) -> Tensor | None:
        given = _last(dy), _last(weight), ctx.stride, ctx.size
        if ctx.by_input is tiles:
            floats = dy.dtype == torch.float32
            way = tiles.by_input_of_floats if floats else tiles.by_input
            found = way(*given, _added(more))
            if found is not None:
                return _channels_first(found)
        elif ctx.by_input is not None:
            return _sum(_channels_first(ctx.by_input.by_input(*given)), more)
        unread = torch.empty(ctx.size, dtype=dy.dtype, memory_format=torch.channels_last)
        return _sum(_by_library(dy, unread, weight, ctx.stride, [True, False])[0], more)


def _measured(
    seen: Tensor, weight: Tensor, stride: int, dtype: torch.dtype, measures: bool
) -> Tensor:
    """The output [N, O, H', W'] of tiles, beside which its moments are kept where it `measures`."""
    if not (measures and seen.numel()):
        return _channels_first(tiles.output(seen, _last(weight), stride, dtype))
    moments = seen.new_empty(2, len(weight), dtype=torch.float64)
    y = _channels_first(tiles.output(seen, _last(weight), stride, dtype, moments))
    beside.keep(y, moments)
    return y


def _spikes(x: Tensor) -> Tensor | None:
    """What a convolution by tiles keeps of x [N, C, H, W], instead of it; None: nothing less than x."""
    last = _last(x.detach())
    spikes = words.of(last)
    if spikes is None:
        spikes = tiles.bits(last)
    if spikes is None and x.dtype == torch.float32 and (spikes := tiles.narrowed(last)) is not None:
        mark_alike(spikes, x)
    return spikes


def _added(more: Tensor | None) -> Tensor | None:
    return None if more is None else _last(more)


def _sum(dx: Tensor | None, more: Tensor | None) -> Tensor | None:
    """dx, which nobody else has, and another's."""
    return more if dx is None else dx if more is None else dx.add_(more)


def _by_library(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of the gradients by x and weights those that are wanted, by PyTorch."""
    strides, padding, dilation, more = ([n, n] for n in (stride, weight.shape[2] // 2, 1, 0))
    options = (None, strides, padding, dilation, False, more, 1, [*wanted, False])
    dx, dweight, _ = torch.ops.aten.convolution_backward(dy, x, weight, *options)
    return dx, dweight


def _last(x: Tensor) -> Tensor:
    """[N, C, H, W] as dense [N, H, W, C]: of channels_last a view."""
    return x.permute(0, 2, 3, 1).contiguous()


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class Rows:
    """One product for each pixel of the output and each row of the kernel, of views: nothing is copied or padded.

    A row of inputs under the kernel lies together in memory, as does that row of the kernel's weights. Each of both
    gradients are the same products, transposed and added up where they come from. All is [N, H, W, C].
    """

    @staticmethod
    def output(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        sides = [-(-side // stride) for side in x.shape[1:3]]
        y = x.new_zeros(len(x), *sides, len(weight))
        for pixel, inputs, weights in Rows._of(y, x, weight, stride):
            pixel.addmm_(inputs, weights.t())
        return y

    @staticmethod
    def by_input(dy: Tensor, weight: Tensor, stride: int, size: torch.Size) -> Tensor:
        dx = dy.new_zeros(size[0], size[2], size[3], size[1])
        for pixel, inputs, weights in Rows._of(dy, dx, weight, stride):
            inputs.addmm_(pixel, weights)
        return dx

    @staticmethod
    def by_weight(dy: Tensor, x: Tensor, stride: int, size: torch.Size) -> Tensor:
        dweight = dy.new_zeros(size[0], size[2], size[3], size[1])
        for pixel, inputs, weights in Rows._of(dy, x, dweight, stride):
            weights.addmm_(pixel.t(), inputs)
        return dweight

    @staticmethod
    def _of(
        y: Tensor, x: Tensor, weight: Tensor, stride: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Views of a pixel [N, O] of y, of n inputs that it sees in one row [N, n * C], of their weights [O, n * C]."""
        kernel = weight.shape[1]
        for down, top, rows in _seen(y.shape[1], x.shape[1], kernel, stride):
            for across, left, columns in _seen(y.shape[2], x.shape[2], kernel, stride):
                end = left + len(columns)
                for place, row in enumerate(rows, top):
                    inputs = x[:, place, left:end].flatten(1)
                    weights = weight[:, row, columns[0] : columns[-1] + 1].flatten(1)
                    yield y[:, down, across], inputs, weights


def _seen(outputs: int, inputs: int, kernel: int, stride: int) -> Iterator[tuple[int, int, range]]:
    """Along a side: each output, the first input that it sees, and the places of the kernel that lie on inputs."""
    for output in range(outputs):
        first = output * stride - kernel // 2
        places = range(max(0, -first), min(kernel, inputs - first))
        yield output, first + places[0], places


class Columns:
    """One product for all pixels, of inputs that are copied once for each place of the kernel; [N, H, W, C]."""

    @staticmethod
    def output(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        columns = Columns._of(x, weight.shape[1], stride)
        return (columns.flatten(0, 2) @ weight.flatten(1).t()).view(*columns.shape[:3], len(weight))

    @staticmethod
    def by_input(dy: Tensor, weight: Tensor, stride: int, size: torch.Size) -> Tensor:
        kernel, (images, channels, height, width) = weight.shape[1], size
        if stride == 1:
            turned = weight.flip(1, 2).permute(1, 2, 0, 3).flatten(0, 2)
            columns = Columns._of(dy, kernel, 1).flatten(0, 2)
            return (columns @ turned).view(images, height, width, channels)
        shares = (dy.flatten(0, 2) @ weight.flatten(1)).view(*dy.shape[:3], kernel, kernel, -1)
        # sums of up to four shares, rounded once
        padded = [stride * side + kernel for side in dy.shape[1:3]]
        dx = dy.new_zeros(
            images, *padded, channels, dtype=torch.promote_types(dy.dtype, torch.float32)
        )
        down, across = (slice(0, stride * side, stride) for side in dy.shape[1:3])
        for row in range(kernel):
            for column in range(kernel):
                dx[:, row:, column:][:, down, across] += shares[:, :, :, row, column]
        edge = kernel // 2
        return dx[:, edge : edge + height, edge : edge + width].to(dy.dtype)

    @staticmethod
    def by_weight(dy: Tensor, x: Tensor, stride: int, size: torch.Size) -> Tensor:
        columns = Columns._of(x, size[2], stride).flatten(0, 2)
        return (dy.flatten(0, 2).t() @ columns).view(size[0], size[2], size[3], size[1])

    @staticmethod
    def _of(x: Tensor, kernel: int, stride: int) -> Tensor:
        """What each pixel of the output sees, [N, H', W', kernel * kernel * C]; of a 1x1 kernel a view."""
        if kernel == 1:
            return x[:, ::stride, ::stride]
        edge = kernel // 2
        heights, widths = (-(-side // stride) for side in x.shape[1:3])
        x = pad(x, (0, 0, edge, edge, edge, edge))
        image, row, column, one = x.stride()
        size = (len(x), heights, widths, kernel, kernel, x.shape[3])
        steps = (image, row * stride, column * stride, row, column, one)
        return x.as_strided(size, steps).flatten(3)
