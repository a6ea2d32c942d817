"""Measures a network's gradients on a few batches without training it."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.monitor import elements_per_image
from spiketriton.models import Network, trial
from spiketriton.neurons import SpikingNeuron
from spiketriton.neurons.base import normalised
from spiketriton.neurons.norm import one_by_one
from spiketriton.training.losses import Batch, Loss
from spiketriton_kernels import PROBE_FIELDS


class Prober:
    """Measures `model` always on the same batches, so that measurements differ in the net only.

    The net is put in training mode, with the batches' own statistics, and is left as it was:
    running statistics, gradients of parameters and random states do not change.

    Args:
        model: a spiking network.
        batches: images [b, C, H, W] or frames [T, b, C, H, W], and labels [b], on the model's
            device, all of one size.
        loss: currents [T, b, K], labels [b] -> scalar.
        autocast: the precision of the forward pass.
    """

    def __init__(
        self,
        model: Network,
        batches: Sequence[Batch],
        loss: Loss,
        autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.model, self.batches, self.loss, self.autocast = model, batches, loss, autocast
        self.layers = model.spiking_layers()
        self.names = tuple(name for name, _ in self.layers)
        images = batches[0][0]
        channels, height, width = images.shape[-3:]
        self.steps = len(images) if images.ndim == 5 else model.time_steps
        per_image = elements_per_image(model, (channels, height, width), images.device)
        total = sum(len(labels) for _, labels in batches)
        self.elements = [count * total for count in per_image]
        # so that the loss is the mean over the batches, however many there are
        self.share = 1 / len(batches)

    def measure(self, rescaled: bool = False) -> Measurement:
        """One forward and backward pass of each batch; the loss is the mean over all of them.

        `rescaled` keeps a gradient that explodes or vanishes within float32: where it leaves the
        range 1e-6 to 1e6, it is divided by its largest value before it enters the layer. What a
        layer makes of it and ratios within a layer are unchanged; ratios between layers are not.
        """
        shape = (self.steps, len(PROBE_FIELDS))
        device = self.batches[0][0].device
        sums = np.zeros((len(self.layers), *shape))
        largest = PROBE_FIELDS.index("grad_input_max")
        with self._untouched():
            for _, layer in self.layers:
                layer.on_fire = _hook_rescaling if rescaled else None
            for images, labels in self.batches:
                probes = [torch.zeros(shape, device=device, requires_grad=True) for _ in self.names]
                for (_, layer), probe in zip(self.layers, probes, strict=True):
                    layer.probe = probe
                with self.autocast():
                    loss = self.loss(self.model(images), labels) * self.share
                grads = torch.autograd.grad(loss, probes)
                found = torch.stack(grads).double().cpu().numpy()
                top = np.maximum(sums[..., largest], found[..., largest])
                sums += found
                sums[..., largest] = top
        return Measurement.of_sums(self.names, sums, self.elements)

    @torch.no_grad()
    def overlap(self) -> np.ndarray:
        """How much of an image each layer keeps, [layers]: 1 all of it, 0 nothing.

        Each image is compared with a copy that has noise of 5 % of the pixels' standard deviation. The
        overlap is (same - other) / (1 - other), where `same` is the cosine between a layer's firing
        rates for an image and for its copy, and `other` that for two different images. In a net that
        is chaotic at depth a copy is as different as another image (Poole et al. 2016, arXiv
        1606.05340; rates are the mean over time steps). NaN for a batch of one image.
        """
        found = np.zeros(len(self.layers))
        with self._untouched():
            for images, _ in self.batches:
                half = max(2, images.shape[-4] // 2)  # twice as many are run
                images = images.narrow(-4, 0, min(half, images.shape[-4]))
                seeded = torch.Generator().manual_seed(0)
                noise = torch.randn(images.shape, generator=seeded).to(images.device)
                rates: list[Tensor | float] = [0.0] * len(self.layers)

                def add(index: int, spikes: Tensor, rates: list = rates) -> None:
                    rates[index] = rates[index] + spikes.float().sum(0) / self.steps

                for index, (_, layer) in enumerate(self.layers):
                    layer.on_fire = partial(add, index)
                with self.autocast():
                    self.model(torch.cat([images, images + NOISE * images.std() * noise], dim=-4))
                pairs = images.shape[-4]
                found += np.array([overlap_of(rate, pairs) for rate in rates]) * self.share
        return found

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        with trial(self.model):
            try:
                yield
            finally:
                for _, layer in self.layers:
                    layer.probe = layer.on_fire = None


@contextlib.contextmanager
def cut_time(model: Network) -> Iterator[None]:
    """Within the block no gradient goes from step to step by the membranes; spikes stay as they are."""
    layers = [layer for _, layer in model.spiking_layers()]
    with one_by_one(model):  # so that each neuron is called by itself
        for layer in layers:
            layer.forward = _Stepwise(layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own is back


class _Stepwise:
    """Calls a neuron for one time step after another, and detaches the membrane in between."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        self.neuron, self.call = neuron, neuron.forward

    def __call__(self, x: Tensor) -> Tensor:
        neuron, whole = self.neuron, self.neuron.probe
        if neuron.step_mode == "s":
            spikes = self.call(x)
            neuron.detach()
            return spikes
        handed, continues, steps = neuron.handed_on, neuron.stateful, []
        if handed:  # by its batch norm, of which a step alone has other statistics
            x = normalised(neuron, x)
        neuron.handed_on, neuron.stateful = (), True
        try:
            for t in range(len(x)):
                if whole is not None and len(whole) == len(x):
                    neuron.probe = whole[t : t + 1]
                steps.append(self.call(x[t : t + 1]))
                neuron.detach()
        finally:
            neuron.handed_on, neuron.stateful, neuron.probe = handed, continues, whole
            if not continues:
                neuron.reset()
        return torch.cat(steps)


NOISE = 0.05  # of the pixels' standard deviation
LARGEST = 1e6


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


def _hook_rescaling(spikes: Tensor) -> None:
    if spikes.requires_grad:
        spikes.register_hook(_rescaled)


def _rescaled(grad: Tensor) -> Tensor:
    """The gradient, divided by its largest value where that is above LARGEST or below 1 / LARGEST."""
    largest = grad.abs().max()
    beyond = (largest > LARGEST) | ((largest < 1 / LARGEST) & (largest > 0))
    return torch.where(beyond, grad / largest, grad)
