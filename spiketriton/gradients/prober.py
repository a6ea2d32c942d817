"""Measures a network's gradients on a few batches without training it."""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiketriton.config.names import BLOCK_NETS, SKIPLESS
from spiketriton.data import Data
from spiketriton.gradients.chains import is_chain
from spiketriton.gradients.measurement import Measurement, Signal
from spiketriton.gradients.monitor import elements_per_image
from spiketriton.gradients.probes import Probes
from spiketriton.gradients.through_time import Shares, drawn_alike, neurons_of, through_time
from spiketriton.gradients.verdict import LIMITS
from spiketriton.models import Network, trial
from spiketriton.neurons import told_of_spikes
from spiketriton.plugins.tasks import Batch, answers, has_time, image_dim
from spiketriton.system.errors import UserError
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.nn import LIF

# images of a batch: as many as keep (neurons x time steps) within the budget, from FEWEST to MOST;
# where not even FEWEST do, they are cropped, to a multiple of CROP
BUDGET = {"cpu": 24e6, "cuda": 4e9}
FEWEST, MOST = 4, {"cpu": 32, "cuda": 64}
CROP = 32
# images by which the ways through time are told apart; where they stand still no word depends on it
FEW, FEW_STILL = 8, 4
NOISE = 0.05  # of the pixels' standard deviation
# neurons whose state tells what they remember, by the rows of studies/through_time
CARRYING = (
    *(kernels.IF, kernels.LIF, kernels.PLIF, kernels.ILIF, kernels.CLIF, kernels.ALIF),
    kernels.CuBaLIF,
)


def probe_batches(data: Data, model: Network, device: torch.device, count: int) -> list[Batch]:
    """The first `count` batches of the training stream, each cut to a few images.

    As many as are quick to measure with `model` on `device`, and only their middles where few large
    ones would be slow: what a network of convolutions makes of a gradient depends little on the size
    of its images. Always the same ones for a recipe, its seed and a kind of device.
    """
    size = data.facts.image_shape[-1]
    neurons = sum(elements_per_image(model, data.facts.image_shape, device))
    fit = BUDGET[device.type] / (neurons * model.time_steps)
    if model.takes_any_size and data.task.moves and fit < FEWEST:
        size = min(size, max(2 * CROP, int(size * math.sqrt(fit / FEWEST)) // CROP * CROP))
        fit *= (data.image_size / size) ** 2
    images, margin = min(MOST[device.type], max(FEWEST, int(fit))), (data.image_size - size) // 2
    middle = slice(margin, margin + size)
    alone = replace(data.train.loading, workers=0)
    stream_of_all = replace(data.train, rank=0, world_size=1, loading=alone)
    with contextlib.closing(stream_of_all.from_step(0)) as stream:
        found = []
        for x, y, *lengths in islice(stream, count):
            few = min(images, len(y))
            cropped = x.narrow(image_dim(x), 0, few)
            if not data.facts.sequence:
                cropped = cropped[..., middle, middle]
            rest = (one[:few].to(device) for one in (y, *lengths))
            found.append((cropped.contiguous().to(device), *rest))
        return found


class Prober:
    """Measures `model` always on the same batches, so that measurements differ in the net only.

    The net is put in training mode, with the batches' own statistics, and is left as it was:
    running statistics, gradients of parameters and random states do not change.

    Args:
        model: a network, or any module whose neurons are `spiketriton.neurons.SpikingNeuron`.
        batches: inputs and labels, and of sequences perhaps lengths, on the model's device, all of one size.
        loss: outputs, labels -> scalar.
        autocast: the precision of the forward pass.
        images: the dimension of the inputs that counts images; None: that of our networks.

    UserError: no neuron is called, or they are shown different numbers of time steps.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[tuple[Any, ...]],
        loss: Callable[..., Tensor],
        autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        images: int | None = None,
    ) -> None:
        self.model, self.batches, self.loss, self.autocast = model, batches, loss, autocast
        self.images = image_dim(batches[0][0]) if images is None else images
        self.share = 1 / len(batches)  # so that the loss is the mean over the batches
        self.layers, shown = neurons_of(model), batches[0][0]
        fired: dict[
            str, list[torch.Size]
        ] = {}  # shapes of the calls, in the order of the first ones
        told = told_of_spikes(self.layers, lambda n, s: fired.setdefault(n, []).append(s.shape))
        with trial(model), torch.no_grad(), autocast(), told:
            model.eval()  # a batch of one has no statistics
            model(shown)
        if isinstance(model, Network):
            self.steps = len(shown) if has_time(shown) else model.time_steps
        else:
            neurons = dict(self.layers)
            self.layers = [(name, neurons[name]) for name in fired]
            steps = {name: sum(shape[0] for shape in calls) for name, calls in fired.items()}
            if len(set(steps.values())) != 1:
                found = sorted(set(steps.values())) or "no"
                raise UserError(
                    f"the neurons of {type(model).__name__} are shown {found} time steps; accepted: neurons of "
                    "spiketriton_kernels.nn, or that swap puts there, all for one number of steps"
                )
            for name, layer in self.layers:
                layer.window = steps[name] if len(fired[name]) > 1 else 0
            self.steps = min(steps.values())
        self.names = tuple(name for name, _ in self.layers)
        sizes = {name: sum(shape.numel() for shape in calls) for name, calls in fired.items()}
        self.elements = [sizes[name] // self.steps * len(batches) for name in self.names]

    def measure(self, *, time: bool = False) -> Measurement:
        """One forward and backward pass of each batch; the loss is the mean over all of them.

        time: whether the ways through time are told apart, `through_time`.
        """
        device = self.batches[0][0].device
        probes, passes = Probes(self.layers, self.steps, self.elements, device), list[Tensor]()
        weights = {n: p for n, p in self.model.named_parameters() if p.ndim > 1 and p.requires_grad}
        totals = [torch.zeros_like(weight) for weight in weights.values()]
        with trial(self.model), drawn_alike(device):
            for images, labels, *lengths in self.batches:
                with probes.watching():
                    with self.autocast():
                        currents = answers(self.model, images, lengths)
                        loss = self.loss(currents, labels, *lengths) * self.share
                    if line := probes.strayed():
                        raise UserError(
                            f"{line}; accepted: as many of all images, in training as in a test"
                        )
                    sought = [*probes.probes, *weights.values()]
                    grads = torch.autograd.grad(
                        loss, sought, allow_unused=True, materialize_grads=True
                    )
                torch._foreach_copy_(probes.grads, [*grads[: len(probes.grads)]])
                passes.append(probes.read())
                for total, grad in zip(totals, grads[len(probes.grads) :], strict=True):
                    total += grad
        rms = [float(total.double().square().mean().sqrt()) for total in totals]
        found = replace(probes.measured(passes), weights=dict(zip(weights, rms, strict=True)))
        return replace(found, **vars(self.through_time())) if time else found

    def through_time(self) -> Shares:
        """What reaches each time step by way of time, and without, of the first few images of the first batch."""
        x, y, *lengths = self.batches[0]
        few = min(FEW if self.images % x.ndim else FEW_STILL, x.shape[self.images])
        if isinstance(y, Tensor):
            x, y, *lengths = x.narrow(self.images, 0, few), *(one[:few] for one in (y, *lengths))

        def loss() -> Tensor:
            return self.loss(answers(self.model, x, lengths), y, *lengths)

        return through_time(self.model, self.layers, self.steps, loss)

    @torch.no_grad()
    def signal(self) -> Signal:
        """How much of an image each layer keeps, 1 all of it, 0 nothing, and whether any of it reaches the outputs.

        Each image is compared with a copy that has noise of 5 % of the pixels' standard deviation. The
        overlap is (same - other) / (1 - other), where `same` is the cosine between a layer's firing
        rates for an image and for its copy, and `other` that for two different images. In a net that
        is chaotic at depth a copy is as different as another image (Poole et al. 2016, arXiv
        1606.05340; rates are the mean over time steps). NaN for a batch of one image, of which an image
        arrives wherever outputs are finite.
        """
        found, arrives = np.zeros(len(self.layers)), False
        for images, _, *lengths in self.batches:
            pairs = images.shape[self.images]
            pairs = min(max(2, pairs // 2), pairs)  # twice as many are run
            images = images.narrow(self.images, 0, pairs)
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
            copies = images + NOISE * images.std() * noise.to(images.device)
            rates: dict[str, Any] = dict.fromkeys(self.names, 0.0)

            def add(name: str, spikes: Tensor, rates: dict[str, Any] = rates) -> None:
                rates[name] = rates[name] + spikes.float().sum(0) / self.steps

            told = told_of_spikes(self.layers, add)
            with trial(self.model), drawn_alike(images.device), self.autocast(), told:
                both = [torch.cat([one[:pairs]] * 2) for one in lengths]
                out = answers(self.model, torch.cat([images, copies], dim=self.images), both)
            arrives |= tells_apart(torch.as_tensor(out), 2 * pairs)
            overlaps = [overlap_of(torch.as_tensor(rate), pairs) for rate in rates.values()]
            found += np.array(overlaps) * self.share
        deep = len(self.layers) >= LIMITS.chain.layers and not knows_its_paths(self.model)
        judged = deep and arrives and all(isinstance(layer, LIF) for _, layer in self.layers)
        memory, (x, y, *_) = self.memory(), self.batches[0]
        apart = classes_apart(x, y) if memory and len(x) == self.steps else ()
        if not judged:
            return Signal(found, arrives, memory=memory, apart=apart)
        neurons = [neuron for _, neuron in self.layers]
        differ = partial(tells_apart, images=x.shape[self.images])
        return Signal(found, arrives, is_chain(self.model, x, neurons, differ), memory, apart)

    def memory(self) -> str:
        """What the net remembers by, see `Signal.memory`."""
        x, kinds = self.batches[0][0], [neuron for _, neuron in self.layers]
        if self.images % x.ndim == 0 or self.steps == 1 or bool((x == x[:1]).all()):
            return ""
        modules = [*self.model.modules()]
        if self.steps < LIMITS.window or any(isinstance(m, kernels.Delays) for m in modules):
            return "other"
        if all(isinstance(neuron, kernels.ParallelNeuron) for neuron in kinds):
            return "windows"
        if not all(isinstance(neuron, CARRYING) for neuron in kinds):
            return "other"
        returned = any(isinstance(module, kernels.Recurrent) for module in modules)
        return "feedback" if returned else "states"


def classes_apart(x: Tensor, y: Any) -> tuple[float, ...]:
    """Of inputs [T, B, ...], which time steps tell classes apart: 1 at those, 0 at others.

    They have at least half of the largest variance between the classes' means, less what chance gives; of B inputs of
    K classes it gives (K - 1) / (B - 1) of all of the variance. () where no step has any, or y is not a class [B] of
    each.
    """
    known = isinstance(y, Tensor) and y.shape == x.shape[1:2] and not y.is_floating_point()
    if not known or x.is_complex():
        return ()
    values, classes = x.double().flatten(2), y.unique()
    middle = values.mean(1, keepdim=True)
    whole = (values - middle).square().sum((1, 2))
    between = torch.zeros_like(whole)
    for label in classes:
        mine = values[:, y == label]
        between += mine.shape[1] * (mine.mean(1, keepdim=True) - middle).square().sum((1, 2))
    chance = (len(classes) - 1) / max(1, len(y) - 1)
    found = between - chance * whole
    if not bool(
        (found > 1e-9 * whole).any()
    ):  # but for rounding, where every input has a class of its own
        return ()
    return tuple((found >= 0.5 * found.max()).double().tolist())


def tells_apart(out: Tensor, images: int) -> bool:
    """Whether outputs [T, B, K] or [B, K] of so many images differ between them; also where no dimension counts them.

    What differs by less than a millionth of the largest output is rounding.
    """
    places = [i for i, size in enumerate(out.shape[:2]) if size == images]
    if not places or images == 1:
        return True
    out = out.detach().float()
    spread = out.amax(places[-1]) - out.amin(places[-1])
    return not bool((spread <= 1e-6 * out.abs().max()).all())


def knows_its_paths(model: nn.Module) -> bool:
    """Whether it is one of ours, whose recipe says where paths go around layers."""
    made_from = model.made_from if isinstance(model, Network) else None
    return made_from is not None and made_from.model.name in (*BLOCK_NETS, *SKIPLESS)


def overlap_of(rates: Tensor, pairs: int) -> float:
    """The overlap in firing rates [2 n, ...] of n images and their n copies, over those that fire.

    NaN where the first dimension is not that of images, as in a layer of a network of others.
    """
    if len(rates) != 2 * pairs:
        return math.nan
    rates = rates.flatten(1)
    images, copies = (rates / rates.norm(dim=1, keepdim=True).clamp_min(1e-12)).chunk(2)
    n, fires = len(images), images.any(1)
    if n == 1:
        return math.nan
    cosines = (images @ copies.T)[fires]
    if not len(cosines):
        return 0.0
    itself = torch.eye(n, dtype=torch.bool, device=rates.device)[fires]
    same, other = float(cosines[itself].mean()), float(cosines[~itself].mean())
    # the same rates whatever is shown: nothing of the image is kept
    return (same - other) / (1 - other) if other < 1 - 1e-6 else 0.0
