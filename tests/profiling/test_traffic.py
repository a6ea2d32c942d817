"""Passes over memory of a residual block, counted: what joining the MS blocks' sum with the next neuron saves.

Launches are noted, not run, in a child process, because the interpreter launches nothing. A Triton launch moves each of
its whole tensors once, which test_lowering shows of the compiled code; an operation of torch moves what `READS` says:
what it must at least, in eager mode.
"""

import json
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
from spiketriton_kernels import PROBE_FIELDS, multistep_bn_lif, multistep_lif
from spiketriton_kernels.window import fire, passes
from tests.processes import done

READS = {
    "convolution.default": (1,),
    "convolution_backward.default": (2, 1),  # for the input and for the weights; the input once
    "native_batch_norm.default": (2,),  # statistics, normalise
    "native_batch_norm_backward.default": (2, 2),  # sums, then the gradient
    "add.Tensor": (1, 1),
}
"""How often an operation reads its whole inputs, in order; its whole outputs are written once."""
T, B, WIDTH, SIDE = 4, 2, 16, 8


class Traffic(TorchDispatchMode):
    """What a call would launch on a GPU, and the elements of large tensors that it moves; no kernel runs."""

    def __init__(self, call: Callable[[], Any], smallest: float = float("inf")) -> None:
        super().__init__()
        self.smallest, self.moved, self.names = smallest, 0, []
        run = lambda kernel, *given, grid, warmup, **more: self.note(kernel.__name__, (given, more))  # noqa: E731
        with (
            mock.patch.object(passes, "backend_for", return_value="triton"),
            mock.patch.object(fire, "traced", return_value=False),
            mock.patch.object(triton.JITFunction, "run", run),
            self,
        ):
            self.result = call()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out, name = function(*args, **(kwargs or {})), function.__name__
        if not function.is_view and not name.startswith(
            ("detach", "_unsafe_view", "empty", "new_empty")
        ):
            if self.whole((args, out)):
                reads = zip(self.whole(args), READS[name], strict=False)
                self.moved += sum(tensor.numel() * (times - 1) for tensor, times in reads)
            self.note(name, (args, out))
        return out

    def note(self, name: str, values: Any) -> None:
        self.names.append(name)
        self.moved += sum(tensor.numel() for tensor in self.whole(values))

    def whole(self, values: Any) -> list[Tensor]:
        tensors = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
        return [t for t in tensors if t.numel() >= self.smallest]


class Chain(BlockNetwork):
    """Identity bottlenecks alone: x [T, B, 4 width, H, W] in and out."""

    def __init__(self, block: str, count: int) -> None:
        parts = Parts(ModelConfig(name="resnet8", fused=True), NeuronConfig(), T)
        super().__init__(parts, 4 * WIDTH)
        self.neuron1 = None
        bottlenecks = (BLOCKS[block](parts, 4 * WIDTH, WIDTH, 1, True) for _ in range(count))
        self.layers = nn.ModuleList(bottlenecks)
        self.neuron_last = parts.neuron(4 * WIDTH) if block == "ms" else None
        self.checkpoint_blocks = False


def of_bottleneck(block: str) -> list[float]:
    """Passes forward and backward of one within a network, in tensors of 4 width channels."""
    shape, smallest = (T, B, 4 * WIDTH, SIDE, SIDE), T * B * WIDTH * SIDE * SIDE
    moved = []
    for count in (2, 3):
        chain = Chain(block, count)
        x, gradient = torch.zeros(shape, requires_grad=True), torch.zeros(shape)
        forward = Traffic(lambda: chain.through(chain.layers, x), smallest)  # noqa: B023
        backward = Traffic(lambda: forward.result.backward(gradient), smallest)  # noqa: B023
        moved.append((forward.moved, backward.moved))
    return [(three - two) / (4 * smallest) for two, three in zip(*moved, strict=True)]


def launches(
    function: Callable[..., Any], *given: Tensor, **options: Tensor
) -> tuple[list[str], list[str]]:
    """Of a call that is not the first, in which a step is traced."""
    x = torch.zeros(T, 2, 8, 4, 4, requires_grad=True)
    Traffic(lambda: function(x, *given, **options))
    forward = Traffic(lambda: function(x, *given, **options))
    gradient, wanted = torch.zeros_like(x), [x, *given[:2], *options.values()]
    backward = Traffic(lambda: torch.autograd.grad(forward.result, wanted, gradient))
    return forward.names, backward.names


def count() -> str:
    """All that is counted, as JSON."""
    found: dict[str, Any] = {block: of_bottleneck(block) for block in ("plain", "sew", "ms")}
    with mock.patch("spiketriton.models.blocks.gives_current", return_value=False):
        found["ms, one by one"] = of_bottleneck("ms")
    norm = [torch.ones(8, requires_grad=i < 2) for i in range(4)]
    probe = torch.zeros(T, len(PROBE_FIELDS), requires_grad=True)
    residual = torch.zeros(T, 2, 8, 4, 4, requires_grad=True)
    found["lif"] = launches(multistep_lif)
    found["plif"] = launches(multistep_lif, decay=torch.tensor(0.5, requires_grad=True))
    found["probe"] = launches(multistep_lif, probe=probe)
    found["bn_lif"] = launches(multistep_bn_lif, *norm)
    found["bn_lif+residual"] = launches(multistep_bn_lif, *norm, residual=residual)
    return json.dumps(found)


def test_an_ms_bottleneck_moves_26_tensors_instead_of_32_and_few_launches_are_small(tmp_path):
    program = "from tests.profiling import test_traffic; print(test_traffic.count())"
    counted = done("-c", program, folder=tmp_path)
    assert counted.returncode == 0, counted.stderr
    fire, walk, join = ["fire_kernel"], ["walk_kernel"], ["join_kernel"]
    measured = ["statistics_kernel", "join_statistics_kernel", *fire]
    assert json.loads(counted.stdout) == {
        "plain": [8.5, 18.5],
        "sew": [8.5, 16.5],
        "ms": [9.5, 16.5],
        "ms, one by one": [12.5, 19.5],
        "lif": [fire, walk],
        "plif": [fire, [*walk, "join_groups_kernel"]],
        "probe": [fire, [*walk, "join_groups_kernel"]],
        "bn_lif": [measured, [*walk, *join, *walk]],
        "bn_lif+residual": [measured, [*walk, *join, "norm_backward_kernel"]],
    }
