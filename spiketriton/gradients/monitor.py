"""The gradient monitor: norms by spiking layer and time step, measured on some steps of a training.

On a measured step every spiking layer gets a probe (`spiketriton_kernels.PROBE_FIELDS`). The
kernels' backward adds to its gradient what they hold in registers anyway: no hooks, no tensor kept,
no second pass. On all other steps the probe is None and costs nothing.

The last micro-batch of a step is measured. The norms are those of the true gradient of the whole
step's loss, the mean over the global batch: the loss of a micro-batch is divided by the number of
micro-batches before backward, so that each element's dL/dx is the true one, and the factor of the
loss scaler (fp16) is divided out here. They are root mean squares over the elements of one time
step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiketriton.gradients.measurement import Measurement
from spiketriton.models import Network
from spiketriton.models.network import in_eval_mode
from spiketriton.neurons import told_of_spikes
from spiketriton.system.ranks import Ranks
from spiketriton_kernels import PROBE_FIELDS


@dataclass(frozen=True)
class Summary:
    """One measurement in four numbers; plain data, saved in every checkpoint.

    firing_rate: spikes per neuron and time step, over all neurons.
    depth_ratio, time_ratio: those of the Measurement where they are finite, else None.
    nonfinite: values of dL/dx that are not finite.
    """

    step: int
    firing_rate: float | None = None
    depth_ratio: float | None = None
    time_ratio: float | None = None
    nonfinite: int = 0


class GradientMonitor:
    """Measures `model` in the steps that are watched.

    Args:
        model: the network itself, not its compiled form; an ANN is never measured.
        batch: images of a micro-batch, over all ranks.
        image_shape: (C, H, W) of an image, or (C,) of a sequence.
        frames: of a training recording or sequence; 0: constant images, for the network's time steps.
        scale: the present factor of the loss scaler.
        ranks: what is measured is summed over them; each has an equal part of the micro-batch.
        write: called with the step and the Measurement.
        warn: called once with a line where a step could not be measured.
    """

    def __init__(
        self,
        model: Network,
        *,
        batch: int,
        image_shape: tuple[int, ...],
        scale: Callable[[], float],
        write: Callable[[int, Measurement], None],
        warn: Callable[[str], None] = lambda line: None,
        ranks: Ranks | None = None,
        frames: int = 0,
    ) -> None:
        self.layers = model.spiking_layers()
        self.scale, self.write, self.warn = scale, write, warn
        self.warned = False
        self.counts_steps = any(layer.window for _, layer in self.layers)
        self.ranks = ranks or Ranks()
        self.summary = Summary(step=0)
        if self.layers:
            device = next(model.parameters()).device
            counts = elements_per_image(model, image_shape, device)
            self.elements = [batch * count for count in counts]
            # one tensor per layer for the whole run, and one gradient of it: torch.compile and a CUDA graph
            # see the same ones every time
            shape = (frames or model.time_steps, len(PROBE_FIELDS))
            self.probes = [torch.zeros(shape, device=device).requires_grad_() for _ in self.layers]
            self.sums = [torch.zeros_like(probe) for probe in self.probes]
            for probe, grad in zip(self.probes, self.sums, strict=True):
                probe.grad = grad  # autograd adds to it in place

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Measures the forward and backward inside, for `read`."""
        self.scaled = self.scale()
        torch._foreach_zero_(self.sums)
        for (_, layer), probe in zip(self.layers, self.probes, strict=True):
            layer.probe = probe
        try:
            yield
        finally:
            for _, layer in self.layers:
                layer.probe = None

    def read(self, step: int) -> None:
        """Waits for the device, and writes what was measured last, as of this step."""
        if self.counts_steps and self._strayed(step):
            return
        # [layers, T, 8] in one copy from the device
        own = torch.stack(self.sums).cpu().double()
        sums, largest = self.ranks.total(own), PROBE_FIELDS.index("grad_input_max")
        sums[..., largest] = self.ranks.largest(own[..., largest].contiguous())
        names = [name for name, _ in self.layers]
        # each rank's loss is the mean over its own images, so its gradients are world_size times as large
        scale = self.scaled * self.ranks.world_size
        measured = Measurement.of_sums(names, sums.numpy(), self.elements, scale)
        rate = float(np.average(measured.firing.mean(1), weights=self.elements))
        ratios = _finite(measured.depth_ratio), _finite(measured.time_ratio)
        self.summary = Summary(step, rate, *ratios, int(measured.nonfinite.sum()))
        self.write(step, measured)

    def _strayed(self, step: int) -> bool:
        """Whether a neuron of any rank was shown other time steps than those that rows are for."""
        lines = [f"{n} {layer.strayed}" for n, layer in self.layers if layer.strayed]
        if lines and not self.warned:
            self.warn(f"step {step} is not measured: {lines[0]}; nor are others like it")
            self.warned = True
        return bool(self.ranks.total(torch.tensor(float(len(lines)))))

    def state_dict(self) -> dict[str, Any]:
        return vars(self.summary).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.summary = Summary(**state)


@torch.no_grad()
def elements_per_image(
    model: Network, image_shape: tuple[int, ...], device: torch.device
) -> list[int]:
    """Neurons of each spiking layer that fire in a time step, found by showing one image.

    A layer that is called twice in a step counts twice. Leaves the model as it was; batch norm's
    statistics do not move.
    """
    layers, steps = model.spiking_layers(), model.time_steps
    counts = dict.fromkeys((name for name, _ in layers), 0)

    def count(name: str, spikes: Tensor) -> None:
        counts[name] += spikes.numel()

    with in_eval_mode(model), told_of_spikes(layers, count):
        model(model.blank(image_shape[-1], device), time_steps=steps)
    return [count // steps for count in counts.values()]


def _finite(ratio: float | None) -> float | None:
    return None if ratio is None or math.isinf(ratio) else ratio
