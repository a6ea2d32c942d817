"""Counts the activations that a network reads and writes on a GPU, without one: launches are noted, not run.

A Triton launch moves each of its whole tensors once, which `lowering` shows of the compiled code. An
operation of torch moves what `TORCH` says: what it must at least, in eager mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spiketriton.config import ModelConfig, NeuronConfig
from spiketriton.models.blocks import BLOCKS, BlockNetwork
from spiketriton.models.layers import Parts
from spiketriton_kernels import fire, passes

aten = torch.ops.aten
TORCH: dict[Any, tuple[int, ...]] = {
    aten.convolution.default: (1,),
    aten.convolution_backward.default: (2, 1),  # for the input and for the weights; the input once
    aten.native_batch_norm.default: (2,),  # statistics, normalise
    aten.native_batch_norm_backward.default: (2, 2),  # sums, then the gradient
    aten.add.Tensor: (1, 1),
}
"""How often an operation reads its whole inputs, in order; its whole outputs are written once."""
FREE = {aten.detach.default, aten.view.default, aten._unsafe_view.default, aten.alias.default}
"""Move nothing."""
ROOM = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
}
"""Allocate."""

T, B, WIDTH, SIDE = 4, 2, 16, 8


class Traffic(TorchDispatchMode):
    """Counts whole tensors, those of at least `smallest` elements, in `moved` elements."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest, self.moved = smallest, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and function not in FREE:
            given, made = self._whole(args), self._whole(out)
            reads = TORCH.get(function)
            if reads is None and (given or made) and not function.is_view:
                raise AssertionError(f"{function}: how often it reads its inputs is not known")
            for tensor, times in zip(given, reads or (), strict=False):
                self.moved += times * tensor.numel()
            self.moved += sum(t.numel() for t in made) if reads else 0
        return out

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """In place of `triton.JITFunction.run`."""
        self.moved += sum(t.numel() for t in self._whole((args, kwargs)))

    def _whole(self, values: Any) -> list[Tensor]:
        tensors = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
        return [t for t in tensors if t.numel() >= self.smallest]


def counted(call: Callable[[], Any], smallest: int) -> tuple[int, Any]:
    """Elements moved by a call in whole tensors, and its result, whose values mean nothing."""
    traffic = Traffic(smallest)
    with (
        mock.patch.object(passes, "backend_for", return_value="triton"),
        mock.patch.object(
            triton.JITFunction, "run", lambda kernel, *a, **k: traffic.launch(kernel, *a, **k)
        ),
        traffic,
    ):
        result = call()
    return traffic.moved, result


class _Launches(TorchDispatchMode):
    """Names of what puts work on a GPU: kernels of Triton, and operations of torch that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not function.is_view and function not in FREE and function not in ROOM:
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def launches(call: Callable[[], object]) -> list[str]:
    """What a call on CPU tensors would launch on a GPU, in order, eagerly called; nothing is computed."""
    found = _Launches()
    with (
        mock.patch.object(passes, "backend_for", return_value="triton"),
        mock.patch.object(fire, "traced", return_value=False),
        mock.patch.object(
            triton.JITFunction, "run", lambda kernel, *_, **__: found.names.append(kernel.__name__)
        ),
        found,
    ):
        call()
    return found.names


class Chain(BlockNetwork):
    """Identity bottlenecks alone: x [T, B, 4 width, H, W] in and out."""

    def __init__(self, parts: Parts, block: str, count: int) -> None:
        super().__init__(parts, 4 * WIDTH)
        self.neuron1 = None
        self.layers = nn.ModuleList(
            BLOCKS[block](parts, 4 * WIDTH, WIDTH, 1, True) for _ in range(count)
        )
        self.neuron_last = parts.neuron(4 * WIDTH) if block == "ms" else None
        self.checkpoint_blocks = False


def of_bottleneck(block: str, *, fused: bool = True) -> tuple[float, float]:
    """Passes forward and backward of an identity bottleneck within a network, in tensors of 4 width channels."""
    parts = Parts(ModelConfig(name="resnet8", fused=fused), NeuronConfig(), T)
    shape = (T, B, 4 * WIDTH, SIDE, SIDE)
    smallest = T * B * WIDTH * SIDE * SIDE
    sums = []
    for count in (3, 2):
        chain = Chain(parts, block, count)
        x, grad = torch.zeros(shape, requires_grad=True), torch.zeros(shape)
        forward, out = counted(lambda: chain.through(chain.layers, x), smallest)  # noqa: B023
        backward, _ = counted(lambda: out.backward(grad), smallest)  # noqa: B023
        sums.append((forward, backward))
    (forward, backward), less = sums
    unit = 4 * smallest
    return (forward - less[0]) / unit, (backward - less[1]) / unit
