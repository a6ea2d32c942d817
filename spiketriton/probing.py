"""Measures a network's gradients on a few batches without training it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from spiketriton.gradients import elements_per_image
from spiketriton.models import Network
from spiketriton.verdict import Measurement
from spiketriton_kernels import PROBE_FIELDS

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


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

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        training = self.model.training
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.model.train()
        try:
            yield
        finally:
            for _, layer in self.layers:
                layer.probe = layer.on_fire = None
            self.model.train(training)
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(kept[name])


TAME = 1e6


def _hook_taming(spikes: Tensor) -> None:
    if spikes.requires_grad:
        spikes.register_hook(_tamed)


def _tamed(grad: Tensor) -> Tensor:
    """The gradient, divided by its largest value where that is beyond TAME or below 1 / TAME."""
    largest = grad.abs().max()
    wild = (largest > TAME) | ((largest < 1 / TAME) & (largest > 0))
    return torch.where(wild, grad / largest, grad)
