"""Command `step`: a recipe's training step by us, its ANN twin, torch.compile and the peers.

A step is forward, loss, backward and optimizer on one micro-batch of random images that lie on the
device; the loader has a section of its own. All contenders start from the same weights. Their
neurons have one surrogate, SpikingJelly's ATan(2), because no other is common to all: it costs
what any costs, and gradients can be compared.

A network is checked block by block, each on the inputs and output gradients that the definition's
blocks met, and as a whole by its loss and the norm of its gradient (studies/speed/log.md says why).

A peer's network is ours with its neurons, and for SpikingJelly its multi-step batch norm, in the
place of ours, and with torch's convolutions, folded over time as its own layers fold them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiling.harness import attribution, device, memory, peers
from profiling.harness.contenders import (
    OURS,
    Contender,
    Options,
    Row,
    Status,
    Unavailable,
    Work,
    agreement,
    wider,
)
from profiling.harness.peers import ATAN, Variant
from profiling.harness.timing import Effort, Timing
from profiling.sections.kernels import Reference, relative_error, worst
from profiling.sections.recipes import RecipeCase
from spiketriton.config import Recipe, replace
from spiketriton.config.names import SKIPLESS
from spiketriton.models import Network, build_model
from spiketriton.models.blocks import Block
from spiketriton.models.convolutions import FasterConv2d
from spiketriton.models.feedforward import Layer
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton.plugins.tasks import build_loss, image_dim
from spiketriton.system.errors import UserError
from spiketriton.training.environment import choose_precision, name_of
from spiketriton.training.gpu.graphs import WARM_UP, CudaGraphs, Steps, obstacle_of
from spiketriton.training.gpu.precompile import precompile
from spiketriton.training.optim import build_optimizer, tensors_of
from spiketriton.training.placement import Placement

TWIN = "ANN twin"
FLOOR = "convolutions alone"

BATCHES = 4
LONG = 64
"""Steps of a window, beyond which the definition is not compiled: its loop would be unrolled for minutes."""

ALLOWED = (1e-4, 0.05)
"""Share of a block's outputs that differ, relative error of the gradient by its input."""
FLIPPED = 2
"""Spikes inside a block that rounding may move: on maps of a few pixels one goes into 1 % of the block's outputs."""
ALLOWED_WHOLE, ALLOWED_WHOLE_HALF = (0.01, 0.25), (0.1, 0.5)
"""Relative difference of the loss and of the norm of the gradient: of a whole network, where one
rounding more moves many spikes, so that no two runs in half precision agree closely."""
MOST_CHECKED = 2**21
"""Pixels of all time steps: of larger batches the first images are checked, two or more because batch norm of
a single vector has no statistics. ResNet-50 at T = 10 is checked on 4 images, for which the definition saves 6.5 GB."""


OPENED = 0.5


class Bench:
    """What the contenders of a recipe share: weights, batches and the truth."""

    def __init__(self, case: RecipeCase, device: torch.device) -> None:
        self.recipe, self.spec = case.recipe, case.spec
        self.place = Placement.of(self.recipe.train, device)
        self.exact = dataclasses.replace(self.place, precision=torch.float32)
        torch.backends.cudnn.benchmark = device.type == "cuda"  # as the trainer does
        draws = torch.Generator().manual_seed(0)
        batch, classes = self.spec["batch"], self.spec["classes"]
        shape = (*self.spec["frames"], batch, *self.spec["image"])
        images = [torch.randn(shape, generator=draws) for _ in range(BATCHES)]
        labels = [torch.randint(classes, (batch,), generator=draws) for _ in range(BATCHES)]
        self.batches = self.place.batches(zip(images, labels, strict=True))

    @property
    def first_images(self) -> tuple[Tensor, ...]:
        """The first images of the first batch: what the definition saves of all would fill a GPU."""
        (images, labels), T = self.batches[0], self.spec["T"]
        most = max(2, MOST_CHECKED // (T * math.prod(self.spec["image"][1:])))
        dim = image_dim(images)
        return images.narrow(dim, 0, min(most, images.shape[dim])), labels[:most]

    def model(self, *overrides: str) -> Network:
        """The recipe's network, with the weights that all contenders start from.

        A norm that starts at 0 starts at `OPENED`: behind it no mistake of its branch would be seen.
        """
        channels, *sides = self.spec["image"]
        sizes = {"channels": channels, "image_size": sides[0] if sides else 1}
        torch.manual_seed(0)
        recipe = replace(self.recipe, *overrides)
        net = build_model(recipe, classes=self.spec["classes"], **sizes, sequence=not sides)
        for module in net.modules():
            if isinstance(module, Norm) and not module.weight.any():
                nn.init.constant_(module.weight, OPENED)
        return net

    def definition(self) -> Network:
        return with_neurons(self.model("model.fused=false"), Reference)

    @cached_property
    def truth(self) -> Truth:
        """What the definition makes of `first_images`: as a whole in float32, each block in float64."""
        definition = Step(self, self.definition(), place=self.exact)
        half = self.place.precision != torch.float32
        searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:  # cuDNN would try all its algorithms in precisions that are used once
            return Truth(definition, Step(self, definition.model) if half else None)
        finally:
            torch.backends.cudnn.benchmark = searches


class Truth:
    """Loss, norm of the gradient, and every block's arguments, output and gradients."""

    def __init__(self, step: Step, half: Step | None) -> None:
        """`half`: the definition in the half precision that is measured."""
        calls: dict[str, Any] = {}
        parts = {
            name: module
            for name, module in step.model.named_modules()
            if isinstance(module, Block | Layer)
        }

        def keep(name: str, module: nn.Module, arguments: Any, output: Tensor) -> None:
            calls[name] = (arguments, output)

        handles = [parts[name].register_forward_hook(partial(keep, name)) for name in parts]
        loss = step.forward(step.bench.first_images)
        for handle in handles:
            handle.remove()
        outputs = [output for _, output in calls.values()]
        every = torch.autograd.grad(loss, [*step.parameters, *outputs])
        by_output = every[len(step.parameters) :]
        self.loss, self.norm = loss.item(), norm(every[: len(step.parameters)])
        self.blocks = {}
        for (name, ((x, *rest), _)), grad in zip(calls.items(), by_output, strict=True):
            given = (x.detach().cpu(), rest, grad.cpu())  # a GPU's memory is for the contenders
            self.blocks[name] = (given, *in_float64(parts[name], *given, step.device))
        self.allowed, self.allowed_whole = ALLOWED, ALLOWED_WHOLE
        self.allowed_with_norm_of_torch = wider(ALLOWED, self.errors(half or step))
        if half is not None:
            self.allowed = self.allowed_with_norm_of_torch
            self.allowed_whole = wider(ALLOWED_WHOLE_HALF, self.whole_errors(half))

    def errors(self, step: Step) -> tuple[float, float]:
        """The worst share of differing outputs and error of gradients of a network's blocks."""
        differing, errors = [], []
        for name, (given, output, by_input) in self.blocks.items():
            mine, my_gradient = step.block(name, *given)
            # spikes differ by 1, and so do their sums; currents (MS blocks) by less than this
            same = (mine - output).abs() <= 0.01  # NaN is not
            moved = 1 - same.float().mean().item()
            if isinstance(step.model.get_submodule(name), Block):
                moved = max(0.0, moved - FLIPPED * reach(output))
            differing.append(moved)
            errors.append(relative_error(my_gradient, by_input))
        return worst(differing), worst(errors)

    def whole_errors(self, step: Step) -> tuple[float, float]:
        """The relative errors of a network's loss and of the norm of its gradient."""
        loss = step.forward(step.bench.first_images)
        gradient = norm(torch.autograd.grad(loss, step.parameters))
        return abs(loss.item() / self.loss - 1), abs(gradient / self.norm - 1)


def reach(output: Tensor) -> float:
    """Share of a block's output [T, B, C, H, W] that a spike before its last convolution, of 3x3, goes into."""
    pixels = output[0, 0, 0].numel()
    return min(9, pixels) / (output.shape[0] * output.shape[1] * pixels)


def in_float64(
    module: nn.Module, x: Tensor, rest: list[Any], grad: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a block of the definition makes of its input in float64, and the gradient by it.

    In float32 torch's batch norm over many values a channel is itself too far off to judge by (studies/speed/log.md).
    """
    rest = [given.double() if isinstance(given, Tensor) else given for given in rest]
    module = copy.deepcopy(module).double()  # whose running statistics may change
    return there_and_back(module, x.to(device, torch.float64), rest, grad)


def there_and_back(
    module: nn.Module, x: Tensor, rest: list[Any], grad: Tensor
) -> tuple[Tensor, Tensor]:
    """A block's output and the gradient by its input, both on the CPU."""
    output = module(x.requires_grad_(), *rest)
    size = grad.abs().max().clamp(min=1e-30)  # float16 holds no gradients as small as these
    (by_input,) = torch.autograd.grad(output, x, (grad / size).to(output))
    return output.detach().cpu(), by_input.float().cpu() * size


def norm(tensors: Iterable[Tensor]) -> float:
    return torch.stack([t.float().norm() for t in tensors]).norm().item()


class Step(Work):
    """A training step of one network; `checked`: against the definition (the ANN twin has none)."""

    def __init__(
        self,
        bench: Bench,
        model: nn.Module,
        *,
        compiled: bool = False,
        checked: bool = False,
        unequal: str = "",
        norm_of_torch: bool = False,
        place: Placement | None = None,
    ) -> None:
        self.bench, self.checked, self.unequal = bench, checked, unequal
        self.norm_of_torch = norm_of_torch
        self.place, self.turn = place or bench.place, 0
        self.device = self.place.device
        self.model = self.place.place(model)
        self.network = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.loss = build_loss(bench.recipe.loss)
        self.optimizer = build_optimizer(bench.recipe.train, self.model, bench.recipe.peak_lr)
        self.scaler = self.place.scaler()

    def forward(self, batch: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The loss of a batch, or of the one whose turn it is."""
        images, labels = batch or self.bench.batches[self.turn % BATCHES]
        with self.place.autocast():
            return self.loss(self.network(images), labels)

    def backward(self) -> None:
        self.scaler.scale(self.forward()).backward()

    def __call__(self) -> None:
        self.backward()
        self.turn += 1
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def block(self, name: str, x: Tensor, rest: list[Any], grad: Tensor) -> tuple[Tensor, Tensor]:
        """A block's output and the gradient by its input, both on the CPU."""
        # a block is given what autocast's convolutions and neurons give
        x = x.to(self.device, self.place.precision)
        with self.place.autocast():
            return there_and_back(self.model.get_submodule(name), x, rest, grad)

    def compile_ahead(self) -> None:
        if self.model.spiking_layers():
            images, _ = self.bench.batches[0]
            note = partial(print, file=sys.stderr, flush=True)
            precompile(self.model, images.shape, [], nullcontext, self.place, note)

    def check(self) -> Row:
        """Before the first step, and without cuDNN's TF32, whose roundings move more spikes than are allowed."""
        if not self.checked:
            return {"status": Status.OK, "loss": self.forward().item()}
        tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            truth = self.bench.truth
            allowed = truth.allowed_with_norm_of_torch if self.norm_of_torch else truth.allowed
            row = agreement(*truth.errors(self), allowed, self.unequal)
            loss, gradient = truth.whole_errors(self)
        finally:
            torch.backends.cudnn.allow_tf32 = tf32
        row |= {"loss_error": loss, "gradient_norm_error": gradient}
        within = loss <= truth.allowed_whole[0] and gradient <= truth.allowed_whole[1]
        if row["status"] == Status.OK and not within:
            why = f"loss differs by {loss:.2g}, the norm of the gradient by {gradient:.2g}"
            row |= {"status": Status.WRONG, "why": why}
        return row

    def device_time(self, seconds: float) -> Row:
        return device.of_call(self, self.device, seconds)

    def kernels(self, trace: Path) -> Row:
        return attribution.of_call(self, self.once, self.device, trace)

    def once(self) -> None:
        """Forward and backward by launches one by one, whatever a call does; the weights stay."""
        self.forward().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def memory(self) -> Row:
        self()  # makes the optimizer's state
        kept = [tensor for batch in self.bench.batches for tensor in batch]
        return memory.measure(self, self.forward, self.model, self.device, kept)


class Replayed(Step):
    """A step that is captured as `train.graph = "auto"` does: once it has proved itself."""

    def __init__(self, bench: Bench, model: nn.Module) -> None:
        if obstacle := obstacle_of(bench.place.device, 1, bench.place.scaler().is_enabled()):
            raise Unavailable(obstacle)
        super().__init__(bench, model, checked=True)
        self.said: list[str] = []
        self.steps = Steps(
            self._work,
            self.optimizer,
            mode="auto",
            obstacle="",
            state=self.state,
            note=self.said.append,
            graphs=partial(CudaGraphs, self.device),
        )

    def _work(
        self, parts: Iterable[tuple[Tensor, Tensor]], measured: bool
    ) -> tuple[Tensor, Tensor]:
        (batch,) = parts
        loss = self.forward(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), loss.detach()

    def state(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers(), *tensors_of(self.optimizer)]

    def __call__(self) -> None:
        self.steps([self.bench.batches[self.turn % BATCHES]], watched=False)
        self.turn += 1

    def prepare(self, effort: Effort) -> None:
        """RuntimeError: the graph has not proved itself; eager steps would be timed in its name."""
        for _ in range(WARM_UP + 1):
            self()
        if not self.steps.captured:
            raise RuntimeError("; ".join(self.said) or "no finite step to capture")
        super().prepare(effort)


def graph(bench: Bench, name: str) -> list[Contender]:
    """The contender that replays a CUDA graph; none without a GPU."""
    if bench.place.device.type != "cuda":
        return []
    return [Contender(f"{name} graph", lambda: Replayed(bench, bench.model()))]


def with_neurons(
    model: Network,
    neuron: Callable[[SpikingNeuron], nn.Module],
    norm: Callable[[Norm], nn.Module] | None = None,
) -> Network:
    """The network with other neurons, torch's convolutions, and other norms when `norm` makes them, in their places."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SpikingNeuron):
            model.set_submodule(name, neuron(module))
        elif isinstance(module, Norm) and norm is not None:
            model.set_submodule(name, norm(module))
        elif type(module) is FasterConv2d:
            model.set_submodule(name, plain(module))
    return model


def plain(conv: nn.Conv2d) -> nn.Conv2d:
    """torch's convolution with the same parameters."""
    sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    theirs = nn.Conv2d(*sizes, bias=conv.bias is not None)
    theirs.load_state_dict(conv.state_dict())
    return theirs


def spikingjelly_norm(norm: Norm, images: bool = True) -> nn.Module:
    """Its multi-step BatchNorm2d, or of sequences BatchNorm1d, with the same parameters."""
    from spikingjelly.activation_based import layer

    if norm.scale != 1 or norm.step_gain is not None:
        raise Unavailable("spikingjelly's batch norm has neither tdBN's scale nor TEBN's gains")
    kind = layer.BatchNorm2d if images else layer.BatchNorm1d
    theirs = kind(norm.num_features, norm.eps, norm.momentum, step_mode="m")
    theirs.load_state_dict(norm.state_dict())
    return theirs


class TrainingStep(RecipeCase):
    """Time and memory of a recipe's step. UserError: the recipe is an ANN's."""

    weighed = True

    def __init__(self, recipe: Recipe, options: Options) -> None:
        super().__init__(recipe, options)
        if recipe.neuron.kind == "relu":
            about = "accepted: a spiking recipe, whose ANN twin is measured too"
            raise UserError(f"recipe {recipe.name}: neuron.kind is relu; {about}")

    def contenders(self, options: Options) -> list[Contender]:
        torch._dynamo.reset()
        bench = Bench(self, options.device)

        def contender(name: str, make: Callable[[], nn.Module], **how: Any) -> Contender:
            return Contender(name, lambda: Step(bench, make(), **{"checked": True} | how))

        def peer(variant: Variant) -> Step:
            unequal = variant.unequal or ("" if variant.surrogate is ATAN else "it has no ATan")
            norms = spikingjelly_norm if variant.package == "spikingjelly" else None
            if norms is not None and bench.recipe.model.name == "sequence":
                norms = partial(norms, images=False)
            model = with_neurons(bench.model("model.fused=false"), variant.make, norms)
            how = {"compiled": variant.compiled, "checked": True, "norm_of_torch": True}
            return Step(bench, model, unequal=unequal, **how)

        long, again = self.spec["T"] > LONG, self.recipe.model.name in SKIPLESS
        unfused = partial(bench.model, "model.fused=false")
        neuron = bench.model().spiking_layers()[0][1]
        return [
            contender(OURS, bench.model),
            contender(f"{OURS} unfused", unfused, norm_of_torch=True),
            contender(f"{OURS} packed", lambda: bench.model("model.memory=packed")),
            *[contender(f"{OURS} recomputed", lambda: bench.model("model.memory=recomputed"))][
                : int(again)
            ],
            contender(TWIN, lambda: bench.model("neuron.kind=relu"), checked=False),
            contender(
                FLOOR, lambda: with_neurons(unfused(), nn.Identity, nn.Identity), checked=False
            ),
            contender(f"{OURS} compiled", bench.model, compiled=True),
            *graph(bench, OURS),
            contender(
                "eager" if long else "torch.compile",
                bench.definition,
                compiled=not long,
                norm_of_torch=True,
            ),
            *peers.contenders(options.peers, neuron, options.device, bench.place.precision, peer),
        ]

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        """Images per second, and the ratio to T steps of the ANN twin."""
        rows = self.images_per_s(timings)
        for name in timings if TWIN in timings else ():
            if name != TWIN:
                ratio = timings[name].ratio_to(timings[TWIN])
                rows[name]["twin_ratio"] = ratio.median / self.spec["T"]
        return rows


class Modes(TrainingStep):
    """Command `modes`: one kind of residual block eagerly, compiled and as a CUDA graph.

    The kinds are cases of their own, so that few networks lie in memory at once; their rows make one table.
    """

    weighed = False

    def __init__(self, recipe: Recipe, options: Options, block: str) -> None:
        super().__init__(replace(recipe, f"model.block={block}"), options)
        self.first = block

    def contenders(self, options: Options) -> list[Contender]:
        torch._dynamo.reset()
        bench, block = Bench(self, options.device), self.first

        def eager(compiled: bool = False) -> Step:
            return Step(bench, bench.model(), compiled=compiled, checked=True)

        return [
            Contender(block, eager),
            *graph(bench, block),
            Contender(f"{block} compiled", lambda: eager(True)),
        ]

    def numbers(self, timings: dict[str, Timing]) -> dict[str, Row]:
        return self.images_per_s(timings)


def in_precisions(recipe: Recipe, options: Options) -> list[TrainingStep]:
    """A recipe's step in what the device has instructions for and in fp32, or in what the recipe names."""
    if recipe.train.precision != "auto":
        return [TrainingStep(recipe, options)]
    here = name_of(choose_precision("auto", options.device).value)
    precisions = dict.fromkeys([here, "fp32"])
    return [TrainingStep(replace(recipe, f"train.precision={one}"), options) for one in precisions]


def modes(recipe: Recipe, options: Options) -> list[Modes]:
    """A case for each kind of block."""
    return [Modes(recipe, options, block) for block in ("plain", "sew", "ms")]
