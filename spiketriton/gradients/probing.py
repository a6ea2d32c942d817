"""Measures a network's gradients on a few batches without training it."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from spiketriton.gradients.monitor import elements_per_image
from spiketriton.gradients.verdict import Measurement
from spiketriton.models import Network, trial
from spiketriton.training.losses import Batch, Loss
from spiketriton_kernels import PROBE_FIELDS


class Prober:
    """Measures `model` on always the same batches, so that two measurements differ in the net only.

    The net is in training mode, with the batches' own statistics, and is left as it was: running
    statistics, gradients of parameters and random states do not move.

    Args:
        model: a spiking network.
        batches: images [b, C, H, W] and labels [b] on the model's device, all of one size.
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
        channels, height, width = images.shape[1:]
        per_image = elements_per_image(model, (channels, height, width), images.device)
        total = sum(len(images) for images, _ in batches)
        self.elements = [count * total for count in per_image]
        # what one image of the mean loss contributes shall not depend on the number of batches
        self.share = 1 / len(batches)

    def measure(self, tame: bool = False) -> Measurement:
        """One forward and backward pass of each batch; the loss is the mean over all of them.

        `tame` keeps a gradient that explodes or vanishes within what float32 can hold: where it leaves
        the range, it is scaled before it enters the layer. What a layer makes of it is unchanged, and
        so are ratios within a layer; ratios between layers are not.
        """
        shape = (self.model.time_steps, len(PROBE_FIELDS))
        device = self.batches[0][0].device
        sums = np.zeros((len(self.layers), *shape))
        largest = PROBE_FIELDS.index("grad_input_max")
        with self._untouched():
            for _, layer in self.layers:
                layer.on_fire = _hook_taming if tame else None
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
        """How much of an image each layer still tells, [layers]: 1 all of it, 0 nothing.

        Beside each image goes a copy with noise of 5 % of the pixels' standard deviation. The overlap is
        (same - other) / (1 - other): the cosine of a layer's firing rates for an image with those for
        its copy, and with those for another image. A net that is chaotic at depth takes a copy
        for another image (Poole et al. 2016, arXiv 1606.05340; rates are the mean over time steps).
        It needs no gradient. NaN for a batch of one image, which has no other.
        """
        found = np.zeros(len(self.layers))
        with self._untouched():
            for images, _ in self.batches:
                images = images[: max(2, len(images) // 2)]  # twice as many are run
                seeded = torch.Generator().manual_seed(0)
                noise = torch.randn(images.shape, generator=seeded).to(images.device)
                told: list[float] = []
                for _, layer in self.layers:
                    layer.on_fire = lambda spikes, told=told: told.append(_overlap(spikes))
                with self.autocast():
                    self.model(torch.cat([images, images + NOISE * images.std() * noise]))
                found += np.array(told) * self.share
        return found

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        with trial(self.model):
            try:
                yield
            finally:
                for _, layer in self.layers:
                    layer.probe = layer.on_fire = None


NOISE = 0.05  # of the pixels' standard deviation
TAME = 1e6


def _overlap(spikes: Tensor) -> float:
    """Of spikes [T, 2 n, ...], the copies behind the images; of those that make any neuron fire."""
    rates = spikes.float().mean(0).flatten(1)
    images, copies = (rates / rates.norm(dim=1, keepdim=True).clamp_min(1e-12)).chunk(2)
    n, fires = len(images), images.any(1)
    if n == 1:
        return math.nan
    cosines = (images @ copies.T)[fires]
    if not len(cosines):
        return 0.0
    itself = torch.eye(n, dtype=torch.bool, device=rates.device)[fires]
    same, other = float(cosines[itself].mean()), float(cosines[~itself].mean())
    # fires alike whatever is shown: nothing is told
    return (same - other) / (1 - other) if other < 1 - 1e-6 else 0.0


def _hook_taming(spikes: Tensor) -> None:
    if spikes.requires_grad:
        spikes.register_hook(_tamed)


def _tamed(grad: Tensor) -> Tensor:
    """The gradient, divided by its largest value where that is beyond TAME or below 1 / TAME."""
    largest = grad.abs().max()
    wild = (largest > TAME) | ((largest < 1 / TAME) & (largest > 0))
    return torch.where(wild, grad / largest, grad)
