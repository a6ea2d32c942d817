"""Whole training steps of a recipe: ours, its ANN twin, the definition compiled, and the peers.

A step is forward, loss, backward and optimizer on one micro-batch of random images that lie on the
device; the loader is a section of its own. All contenders start from the same weights. Their
neurons have one surrogate, SpikingJelly's ATan(2), because no other is common to all: it costs
what any costs, and gradients can be compared.

A whole deep network cannot be compared number by number: one spike that a rounding moves, moves
many behind it, and float32 and float64 runs of the definition itself end up with unrelated
gradients. So a network is checked block by block, each on the inputs and output gradients that the
definition's blocks met, and as a whole by its loss and the norm of its gradient.

A peer's network is ours with its neurons, and for SpikingJelly its multi-step batch norm, put in
the place of ours: the same convolutions, folded over time as its own layers fold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiling.cases import missing, peer_facts, relative_error, worst
from profiling.contenders import (
    OK,
    OURS,
    WRONG,
    Contender,
    Options,
    Spec,
    Verdict,
    agreement,
)
from profiling.memory import Memory, measure
from profiling.peers import ATAN, Unavailable, Variant, variants, version
from profiling.timing import Sampler, Timing
from spiketriton.config import Recipe, load_recipe, recipe_from_toml, replace, to_toml
from spiketriton.errors import UserError
from spiketriton.gradients.monitor import GradientMonitor
from spiketriton.models import Network, build_model
from spiketriton.models.feedforward import Layer
from spiketriton.models.resnet import Block
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton.training import environment
from spiketriton.training.losses import build_loss
from spiketriton.training.optim import build_optimizer
from spiketriton_kernels import multistep_lif_reference

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

IMAGES = {
    "imagenette": (3, 224, 10),
    "imagefolder": (3, 224, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "fashion_mnist": (1, 28, 10),
    "digits": (1, 8, 10),
    "synthetic": (3, 32, None),
}
"""Channels, side and classes of each data set's images: a step needs no data at hand."""

COMMON_SURROGATE = (
    "neuron.surrogate.shape=atan",
    f"neuron.surrogate.height={ATAN.height!r}",
    f"neuron.surrogate.width={ATAN.width!r}",
)

BATCHES = 4

ALLOWED = (1e-4, 0.05)
"""Share of a block's outputs that differ, relative error of the gradient by its input."""
ALLOWED_WHOLE, ALLOWED_WHOLE_HALF = (0.01, 0.25), (0.1, 0.5)
"""Relative difference of the loss and of the norm of the gradient: of a whole network, where one
rounding more moves many spikes, so that no two runs in half precision agree closely."""
MOST_CHECKED = 2**21
"""Pixels of all time steps: of larger batches blocks are checked on the first images, two or more
because batch norm of a single vector has no statistics."""
OF_ITS_OWN = 2
"""In half precision, how many times the definition's own distance from float32 is allowed too."""


def find_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by its path, or by its name in recipes/. UserError: there is none."""
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPES / f"{name}.toml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
            raise UserError(f"recipe {name!r}: accepted: a TOML file, or one of {known}")
    return load_recipe(path, tuple(overrides))


def recipe_spec(recipe: Recipe, options: Options) -> Spec:
    """A step in words that JSON holds."""
    if recipe.neuron.kind != "relu":
        recipe = replace(recipe, *COMMON_SURROGATE)
    if options.quick:
        steps = f"time_steps={min(recipe.time_steps, 2)}"
        recipe = replace(recipe, "train.batch_size=2", "train.accumulate=1", steps)
    channels, side, classes = IMAGES[recipe.data.name]
    return {
        "recipe": recipe.name,
        "toml": to_toml(recipe),
        "T": recipe.time_steps,
        "batch": recipe.train.batch_size // recipe.train.accumulate,
        "image": [channels, recipe.data.image_size or side, recipe.data.image_size or side],
        "classes": classes or recipe.data.classes,
        "precision": recipe.train.precision,
        "layout": "channels_last" if recipe.train.channels_last else "contiguous",
    }


def refuse_ann(recipe: Recipe) -> None:
    if recipe.neuron.kind == "relu":
        raise UserError(
            f"recipe {recipe.name}: neuron.kind is relu; accepted: a spiking recipe, whose ANN "
            "twin is measured beside it"
        )


class Bench:
    """What the contenders of a recipe share: weights, batches and the truth."""

    def __init__(self, spec: Spec, device: torch.device) -> None:
        self.recipe = recipe_from_toml(spec["toml"], spec["recipe"])
        self.spec, self.device = spec, device
        self.exact = False  # while the definition is run in float32
        train = self.recipe.train
        self.dtype = environment.choose_precision(train.precision, device).value
        torch.backends.cudnn.benchmark = device.type == "cuda"  # as the trainer does
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        draws = torch.Generator().manual_seed(0)
        shape = (spec["batch"], *spec["image"])
        self.batches = [
            (
                torch.randn(shape, generator=draws).to(device, memory_format=self.layout),
                torch.randint(spec["classes"], shape[:1], generator=draws).to(device),
            )
            for _ in range(BATCHES)
        ]

    def model(self, *overrides: str) -> Network:
        """The recipe's network, with the weights that all contenders start from."""
        channels, side, _ = self.spec["image"]
        torch.manual_seed(0)
        recipe = replace(self.recipe, *overrides)
        return build_model(recipe, classes=self.spec["classes"], channels=channels, image_size=side)

    @property
    def half(self) -> bool:
        return self.dtype != torch.float32

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.half and not self.exact)

    @cached_property
    def truth(self) -> Truth:
        """What the definition of the neuron makes of the first batch, in float32."""
        definition = Step(self, with_neurons(self.model("model.fused=false"), Reference))
        self.exact = True
        truth = Truth(definition)
        self.exact = False
        if self.half:
            truth.allow(definition)
        return truth


def blocks(model: nn.Module) -> list[str]:
    """Names of the parts that a network is checked by, in forward order."""
    return [name for name, module in model.named_modules() if isinstance(module, Block | Layer)]


class Truth:
    """Loss, norm of the gradient, and every block's arguments, output and gradients."""

    allowed, allowed_whole = ALLOWED, ALLOWED_WHOLE

    def __init__(self, step: Step) -> None:
        self.calls: dict[str, tuple[tuple[Any, ...], Tensor]] = {}
        handles = [
            step.model.get_submodule(name).register_forward_hook(partial(self._keep, name))
            for name in blocks(step.model)
        ]
        loss = step.forward()
        for handle in handles:
            handle.remove()
        outputs = [output for _, output in self.calls.values()]
        every = torch.autograd.grad(loss, [*step.parameters, *outputs])
        self.loss, self.norm = loss.item(), norm(every[: len(step.parameters)])
        self.blocks = {}
        _, height, width = step.bench.spec["image"]
        images = max(2, MOST_CHECKED // (step.bench.spec["T"] * height * width))
        for (name, (arguments, output)), grad in zip(
            self.calls.items(), every[len(step.parameters) :], strict=True
        ):
            x, *rest = arguments
            batch = 1 if x.ndim == output.ndim else 0  # a first layer's images have no time
            # a GPU's memory is for the contenders
            x = x.detach().narrow(batch, 0, min(images, x.shape[batch])).cpu()
            grad = grad[:, :images].cpu()
            self.blocks[name] = (x, rest, grad, *_by_input(step, name, x, rest, grad))
        self.calls.clear()

    def _keep(self, name: str, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self.calls[name] = (arguments, output)

    def errors(self, step: Step) -> tuple[float, float]:
        """The worst share of differing outputs and error of gradients of a network's blocks."""
        differing, errors = [], []
        for name, (x, rest, grad, output, by_input) in self.blocks.items():
            mine, my_gradient = _by_input(step, name, x, rest, grad)
            # spikes differ by 1, and so do their sums; currents (MS blocks) by less than this
            same = (mine - output).abs() <= 0.01  # NaN is not
            differing.append(1 - same.float().mean().item())
            errors.append(relative_error(my_gradient, by_input))
        return worst(differing), worst(errors)

    def whole_errors(self, step: Step) -> tuple[float, float]:
        """The relative errors of a network's loss and of the norm of its gradient."""
        loss = step.forward()
        gradient = norm(torch.autograd.grad(loss, step.parameters))
        return abs(loss.item() / self.loss - 1), abs(gradient / self.norm - 1)

    def allow(self, definition: Step) -> None:
        """Allows what the definition itself is off by in the precision that is measured."""
        own, whole = self.errors(definition), self.whole_errors(definition)
        self.allowed = _wider(ALLOWED, own)
        self.allowed_whole = _wider(ALLOWED_WHOLE_HALF, whole)


def _wider(allowed: tuple[float, float], own: tuple[float, float]) -> tuple[float, float]:
    first, second = (max(a, OF_ITS_OWN * b) for a, b in zip(allowed, own, strict=True))
    return first, second


def _by_input(
    step: Step, name: str, x: Tensor, rest: list[Any], grad: Tensor
) -> tuple[Tensor, Tensor]:
    """A block's output and the gradient by its input, both on the CPU."""
    bench = step.bench  # a block is given what autocast's convolutions and neurons give
    x = x.to(bench.device, torch.float32 if bench.exact else bench.dtype).requires_grad_()
    with bench.autocast():
        output = step.model.get_submodule(name)(x, *rest)
    size = grad.abs().max().clamp(min=1e-30)  # float16 holds no gradients as small as these
    scaled = (grad / size).to(bench.device, output.dtype)
    (by_input,) = torch.autograd.grad(output, x, scaled)
    return output.detach().cpu(), by_input.float().cpu() * size


def norm(tensors: Iterable[Tensor]) -> float:
    return torch.stack([t.float().norm() for t in tensors]).norm().item()


class Step:
    """A training step of one network (the Work of a contender)."""

    def __init__(
        self,
        bench: Bench,
        model: nn.Module,
        *,
        compiled: bool = False,
        truth: Callable[[], Truth] | None = None,
        unequal: str = "",
    ) -> None:
        self.bench, self.truth, self.unequal = bench, truth, unequal
        self.model = model.to(bench.device, memory_format=bench.layout)  # type: ignore[call-overload]
        self.network = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.loss = build_loss(bench.recipe.loss)
        self.optimizer = build_optimizer(bench.recipe.train, self.model)
        scaled = bench.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(bench.device.type, enabled=scaled)
        self.turn = 0
        self.sampler = Sampler(self, bench.device)
        self.prepare, self.sample = self.sampler.prepare, self.sampler.sample

    def forward(self, turn: int = 0) -> Tensor:
        images, labels = self.bench.batches[turn % BATCHES]
        with self.bench.autocast():
            return self.loss(self.network(images), labels)

    def __call__(self) -> None:
        loss = self.forward(self.turn)
        self.turn += 1
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def check(self) -> Verdict:
        """Against the definition, before the first step; the ANN twin has none."""
        if self.truth is None:
            return Verdict(OK, numbers={"loss": self.forward().item()})
        truth = self.truth()
        differ, error = truth.errors(self)
        verdict = agreement(differ, error, truth.allowed, self.unequal)
        off, allowed = truth.whole_errors(self), truth.allowed_whole
        numbers = verdict.numbers | {"loss_error": off[0], "gradient_norm_error": off[1]}
        if verdict.status == OK and not (off[0] <= allowed[0] and off[1] <= allowed[1]):
            why = f"loss differs by {off[0]:.2g}, the norm of the gradient by {off[1]:.2g}"
            return Verdict(WRONG, why, numbers)
        return Verdict(verdict.status, verdict.why, numbers)

    def memory(self) -> Memory:
        self()  # makes the optimizer's state
        kept = [*self.model.parameters(), *self.model.buffers()]
        kept += [tensor for batch in self.bench.batches for tensor in batch]
        return measure(self, self.forward, kept, self.bench.device, self.model)


class Reference(nn.Module):
    """The definition of a neuron in plain PyTorch, in the neuron's place."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        gain = self.neuron.input_gain()
        x = x if gain is None else (x * gain).to(x.dtype)
        return multistep_lif_reference(x, **self.neuron.neuron_arguments())


def with_neurons(
    model: Network,
    neuron: Callable[[SpikingNeuron], nn.Module],
    norm: Callable[[Norm], nn.Module] | None = None,
) -> Network:
    """The network with other neurons, and other norms when `norm` makes them, in their places."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SpikingNeuron):
            model.set_submodule(name, neuron(module))
        elif isinstance(module, Norm) and norm is not None:
            model.set_submodule(name, norm(module))
    return model


def spikingjelly_norm(norm: Norm) -> nn.Module:
    """Its multi-step BatchNorm2d with the same parameters."""
    from spikingjelly.activation_based import layer

    if norm.scale != 1 or norm.step_gain is not None:
        raise Unavailable("spikingjelly's batch norm has neither tdBN's scale nor TEBN's gains")
    theirs = layer.BatchNorm2d(
        norm.num_features, eps=norm.eps, momentum=norm.momentum, step_mode="m"
    )
    theirs.load_state_dict(norm.state_dict())
    return theirs


def contender(
    bench: Bench,
    name: str,
    make: Callable[[], nn.Module],
    facts: dict[str, Any] | None = None,
    **step: Any,
) -> Contender:
    return Contender(name, lambda: Step(bench, make(), **step), facts or {})


class TrainingStep:
    """Section `step`."""

    name = "step"

    def __init__(self, recipes: list[Recipe]) -> None:
        self.recipes = recipes

    def specs(self, options: Options) -> list[Spec]:
        """UserError: a recipe is an ANN's."""
        for recipe in self.recipes:
            refuse_ann(recipe)
        return [recipe_spec(recipe, options) for recipe in self.recipes]

    def contenders(self, spec: Spec, options: Options) -> list[Contender]:
        torch._dynamo.reset()
        bench = Bench(spec, options.device)
        truth = lambda: bench.truth  # noqa: E731
        make = partial(contender, bench)
        everyone = [
            make(OURS, bench.model, truth=truth),
            make(f"{OURS} unfused", lambda: bench.model("model.fused=false"), truth=truth),
            make(f"{OURS} packed", lambda: bench.model("model.memory=packed"), truth=truth),
            make(TWIN, lambda: bench.model("neuron.kind=relu")),
            make(f"{OURS} compiled", bench.model, truth=truth, compiled=True),
            make(
                "torch.compile",
                lambda: with_neurons(bench.model("model.fused=false"), Reference),
                truth=truth,
                compiled=True,
            ),
        ]
        for peer in options.peers:
            everyone += self._peers(peer, bench)
        return everyone

    def _peers(self, peer: str, bench: Bench) -> list[Contender]:
        if version(peer) is None:
            return [missing(peer)]
        neuron = bench.model().spiking_layers()[0][1]
        found = []
        for variant in variants(peer, neuron, bench.device, bench.dtype):
            unequal = variant.unequal or ("" if variant.surrogate is ATAN else "it has no ATan")
            compiles = variant.compiled
            found.append(
                contender(
                    bench,
                    variant.name,
                    partial(peer_network, bench, variant),
                    peer_facts(variant),
                    truth=lambda: bench.truth,
                    unequal=unequal,
                    compiled=compiles,
                )
            )
        return found

    def numbers(self, spec: Spec, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
        """Images per second, and the ratio to T steps of the ANN twin."""
        rows = {}
        for name, timing in timings.items():
            row = {"images_per_s": spec["batch"] / timing.median}
            if TWIN in timings and name != TWIN:
                ratio = timing.ratio_to(timings[TWIN])
                row["twin_ratio"] = ratio.median / spec["T"]
            rows[name] = row
        return rows


TWIN = "ANN twin"


def peer_network(bench: Bench, variant: Variant) -> Network:
    norm = spikingjelly_norm if variant.package == "spikingjelly" else None
    return with_neurons(bench.model("model.fused=false"), variant.make, norm)


class Monitoring:
    """Section `gradients`: the step with the gradient monitor off, and measuring every time."""

    name = "gradients"

    def __init__(self, recipes: list[Recipe]) -> None:
        self.recipes = recipes

    def specs(self, options: Options) -> list[Spec]:
        """UserError: a recipe is an ANN's."""
        for recipe in self.recipes:
            refuse_ann(recipe)
        return [
            recipe_spec(recipe, options)
            | {"measures_every": recipe.monitor.every or recipe.train.log_every}
            for recipe in self.recipes
        ]

    def contenders(self, spec: Spec, options: Options) -> list[Contender]:
        bench = Bench(spec, options.device)
        return [
            Contender(OFF, lambda: Step(bench, bench.model())),
            Contender(EVERY, lambda: MonitoredStep(bench, bench.model())),
        ]

    def numbers(self, spec: Spec, timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
        """`cost`: of a measured step; `cost_in_training`: spread over the steps between two."""
        rows: dict[str, dict[str, Any]] = {name: {} for name in timings}
        if len(timings) == 2:
            ratio = timings[EVERY].ratio_to(timings[OFF])
            rows[EVERY] = {
                "cost": ratio.median - 1,
                "cost_p20": ratio.quantile(0.2) - 1,
                "cost_p80": ratio.quantile(0.8) - 1,
                "cost_in_training": (ratio.median - 1) / spec["measures_every"],
            }
        return rows


OFF, EVERY = f"{OURS} monitor off", f"{OURS} monitor on every step"


class MonitoredStep(Step):
    """A step whose gradients the trainer's own monitor measures."""

    def __init__(self, bench: Bench, model: Network) -> None:
        super().__init__(bench, model)
        self.measurements: list[list[dict[str, Any]]] = []
        self.monitor = GradientMonitor(
            model,
            due=lambda step: True,
            batch=bench.spec["batch"],
            image_shape=tuple(bench.spec["image"]),
            scale=self.scaler.get_scale,
            write=self.keep,
        )

    def keep(self, rows: list[dict[str, Any]]) -> None:
        self.measurements = [rows]

    def __call__(self) -> None:
        with self.monitor.watch(self.turn + 1, last=True):
            loss = self.forward(self.turn)
            self.turn += 1
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
