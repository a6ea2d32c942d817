"""Conversion of a trained ANN twin (neuron.kind = "relu") to a spiking network.

Batch norm is folded into the weights, each ReLU replaced by an IF neuron with soft reset that
starts half way to its threshold, the stem's max-pool moved before its neuron (see converted.py).
Spikes are as high as the threshold, so residual sums stay in the units of the ANN.

balanced: a layer's threshold is a percentile of its activations on training images (Diehl et al.
2015; 99.9 % by Rueckauer et al. 2017). Accurate when the window is long.

calibrated: for a short window of T steps. A layer's threshold is the one at which its T + 1 levels
lie closest to its activations in the mean square; then, from the input on, each channel's current
is shifted by what its mean output on the images lacks (Li et al. 2021, "A Free Lunch From ANN:
Towards Efficient, Accurate Spiking Neural Networks Calibration": MMSE thresholds and bias
calibration; the half-threshold start is Bu et al. 2022's). No training.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.config import Recipe, replace
from spiketriton.config.names import CLOSABLE
from spiketriton.config.words import shown
from spiketriton.models import Network, build_model
from spiketriton.models.agreement import counted_graph, noise
from spiketriton.models.converted import ConvertedIF, with_converted_neurons
from spiketriton.models.graph import folded_weights, graph_of, layers
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun
from spiketriton.training.weights import save_run

CHANGES = (
    "loss.read=mean",  # what a converted net answers is a rate
    "model.norm=none",
    "model.memory=standard",
    "neuron.kind=if",
    "neuron.reset=soft",
    "neuron.v_threshold=1.0",
    "train.precision=fp32",
)
SAMPLES = 1 << 18  # activations kept per layer and batch
CANDIDATES = 100  # thresholds that are tried, up to the largest activation


@dataclass(frozen=True, kw_only=True)
class Options:
    method: str = "balanced"
    steps: int = 128  # T of the new recipe; "calibrated" is made for it
    percentile: float = 99.9  # of "balanced"
    per_channel: bool = False
    images: int = 512


@dataclass(frozen=True)
class Converted:
    """The network of a converted ANN, and its recipe: the ANN's with the keys that conversion changes."""

    recipe: Recipe
    model: Network
    source: TrainedRun
    options: Options

    def save(self, folder: RunFolder) -> None:
        """Writes the run folder, which is a run only when all is there. UserError: it cannot be written."""
        run = self.source
        made = {"source": str(run.folder.path), "checkpoint": run.checkpoint, **vars(self.options)}
        weights = self.model.state_dict()
        facts, device = run.facts, run.device
        save_run(folder, self.recipe, facts, weights, device, step=run.step, conversion=made)


@torch.no_grad()
def convert(run: TrainedRun, options: Options) -> Converted:
    """The run as a spiking network. UserError: it is not an ANN."""
    if run.facts.frames:
        raise UserError(
            f"{run.folder.path} sees {run.facts.what}s of {run.facts.name}, "
            f"{'other values' if run.facts.sequence else 'a frame'} at each step: a converted net "
            "needs its input to stay the same for many steps; accepted: the ANN of a run on images. "
            f"On {run.facts.what}s, spiking nets are trained (neuron.kind=lif)"
        )
    if run.kind != "ann":
        raise UserError(
            f"{run.folder.path} is a {run.kind} run (neuron.kind = {run.recipe.neuron.kind!r}); "
            "accepted: its ANN twin, trained with neuron.kind=relu"
        )
    if run.recipe.model.name == "net7b":
        raise UserError(
            f"{run.folder.path}: the max-pools of net7b lie behind sums of spikes, whose maximum is "
            "not that of the rates; accepted: networks without them, such as vggsnn or a ResNet"
        )
    if run.recipe.model.block == "preact":
        raise UserError(
            f"{run.folder.path}: a norm of preact blocks takes a sum and folds into no weights; accepted: "
            f"networks with model.block = {', '.join(map(shown, CLOSABLE))}"
        )
    recipe = replace(run.recipe, f"time_steps={options.steps}", *CHANGES)
    facts = run.facts
    model = with_converted_neurons(build_model(recipe, **facts.sizes))
    model.to(run.device).eval()
    images = calibration_images(run, options.images)
    with recording(run.model, sample) as activations:
        for batch in images:
            run.model(run.to_device(batch))
    found = {name: thresholds(torch.cat(activations[name]), options) for name in activations}

    image = facts.image_shape
    nodes = counted_graph(run.model, noise(run.model, image, bool(facts.frames)))
    for node in layers(nodes, "weights"):
        layer = model.get_submodule(node.name)
        weight, bias = folded_weights(node)
        layer.load_state_dict({"weight": weight, "bias": bias})
    for name, neuron in neurons(model):
        neuron.threshold.copy_(found[name])
    if options.method != "balanced":
        calibrate(run, model, images, options.steps)
    return Converted(recipe, model, run, options)


def thresholds(values: Tensor, options: Options) -> Tensor:
    """A threshold for each channel, from sampled activations [N, C]: [C], all equal per layer."""
    groups = values if options.per_channel else values.reshape(-1, 1)
    if options.method == "balanced":
        found = percentile(groups, options.percentile)
    else:
        found = least_error(groups, options.steps)
    silent = found <= 0
    if silent.any():  # never active: the layer's largest activation serves as well as any
        largest = values.max()
        found = torch.where(silent, largest if largest > 0 else 1.0, found)
    return found.expand(values.shape[1])


def percentile(groups: Tensor, percent: float) -> Tensor:
    """The percentile of each column of [N, C], without interpolation: [C]."""
    rank = max(1, round(len(groups) * percent / 100))
    return groups.kthvalue(rank, dim=0).values


def least_error(groups: Tensor, steps: int) -> Tensor:
    """The threshold of each column of [N, C] whose levels are closest to it in the mean square."""
    largest = groups.amax(0)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for share in torch.linspace(1 / CANDIDATES, 1, CANDIDATES).tolist():
        threshold = largest * share
        error = (levels(groups, threshold, steps) - groups).square().mean(0)
        better = error < least
        best, least = torch.where(better, threshold, best), torch.where(better, error, least)
    return best


def levels(activations: Tensor, threshold: Tensor, steps: int) -> Tensor:
    """Mean output over `steps` steps of a converted neuron whose constant current is given."""
    step = (threshold / steps).clamp_min(torch.finfo(activations.dtype).tiny)
    return step * (activations / step + 0.5).floor().clamp(0, steps)


def calibrate(run: TrainedRun, model: Network, images: list[Tensor], steps: int) -> None:
    """Shifts each layer's current, from the input on, by the ANN's mean output minus its own; last the bias."""
    with recording(run.model, channel_means) as wanted:
        currents = [run.model(run.to_device(batch)).mean((0, 1)) for batch in images]
    for name, neuron in neurons(model):
        with recording(model, channel_means, until=name) as given:
            for batch in images:
                with suppress(_Reached):
                    model(run.to_device(batch), steps)
        neuron.shift += torch.stack(wanted[name]).mean(0) - torch.stack(given[name]).mean(0)
    answers = [model(run.to_device(batch), steps).mean((0, 1)) for batch in images]
    model.fc.bias.add_(torch.stack(currents).mean(0) - torch.stack(answers).mean(0))


class _Reached(Exception):
    """The last layer to record has run: the rest of the network need not."""


@contextmanager
def recording(
    model: Network, keep: Callable[[Tensor], Tensor], until: str | None = None
) -> Iterator[dict[str, list[Tensor]]]:
    """What `keep` makes of each layer's output [T, B, C, ...], by name, for each batch within this context.

    Of a stem with a max-pool it is the pool's output, which the converted neuron replaces.
    """
    kept: dict[str, list[Tensor]] = {}

    def hook(name: str, module: nn.Module, _: Any, out: Tensor) -> None:
        if isinstance(module, nn.MaxPool2d):
            out = out.unsqueeze(0)
        kept.setdefault(name, []).append(keep(out))
        if name == until:
            raise _Reached

    nodes = graph_of(model)
    pools = {pool.inputs: pool for pool in layers(nodes, "maxpool")}
    with ExitStack() as stack:
        for node in layers(nodes, "neuron"):
            place = pools.get((node.name,), node).module
            assert place is not None
            if until in (None, node.name):
                stack.callback(place.register_forward_hook(partial(hook, node.name)).remove)
        yield kept


def sample(out: Tensor) -> Tensor:
    """At most SAMPLES activations of [T, B, C, ...], whole places at even distances: [N, C]."""
    places = out.movedim(2, -1).flatten(0, -2)
    stride = -(-places.numel() // SAMPLES)
    return places[::stride].float()


def channel_means(out: Tensor) -> Tensor:
    """The mean of each channel of [T, B, C, ...]: [C]."""
    return out.movedim(2, -1).flatten(0, -2).float().mean(0)


def calibration_images(run: TrainedRun, count: int) -> list[Tensor]:
    """`count` training images or a few more, in whole batches."""
    batches: list[Tensor] = []
    with closing(run.data.train.from_step(0)) as stream:
        while sum(map(len, batches)) < count:
            batches.append(next(stream)[0])
    return batches


def neurons(model: Network) -> list[tuple[str, ConvertedIF]]:
    """The neurons of a converted network, in forward order."""
    found = model.spiking_layers()
    return [(name, neuron) for name, neuron in found if isinstance(neuron, ConvertedIF)]
