"""The gradient monitor: norms by spiking layer and time step, measured on some steps of a training.

The last micro-batch of a step is measured. The norms are those of the true gradient of the whole
step's loss, the mean over the global batch: the loss of a micro-batch is divided by the number of
micro-batches before backward, so that each element's dL/dx is the true one, and the factor of the
loss scaler (fp16) is divided out here. They are root mean squares over the elements of one time
step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.probes import Probes
from spiketriton.gradients.through_time import Shares
from spiketriton.models import Network
from spiketriton.models.network import in_eval_mode
from spiketriton.neurons import told_of_spikes
from spiketriton.system.ranks import Ranks


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
            elements = [batch * count for count in counts]
            self.probes = Probes(self.layers, frames or model.time_steps, elements, device)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Measures the forward and backward inside, for `read`."""
        self.scaled = self.scale()
        with self.probes.watching():
            yield

    def read(self, step: int, ways: Callable[[], Shares | None] | None = None) -> None:
        """Waits for the device, and writes what was measured last, as of this step.

        ways: measures what is known of time, or None; it calls the neurons again.
        """
        if self.counts_steps and self._strayed(step):
            return
        # each rank's loss is the mean over its own images, so its gradients are world_size times as large
        scale = self.scaled * self.ranks.world_size
        measured = self.probes.measured([self.probes.read()], scale, self.ranks)
        if ways is not None and (shares := ways()) is not None:
            measured = replace(measured, **vars(shares))
        rate = float(np.average(measured.firing_rate.mean(1), weights=self.probes.elements))
        ratios = _finite(measured.depth_ratio), _finite(measured.time_ratio)
        self.summary = Summary(step, rate, *ratios, int(measured.nonfinite.sum()))
        self.write(step, measured)

    def _strayed(self, step: int) -> bool:
        """Whether a neuron of any rank was shown other time steps than those that rows are for."""
        line = self.probes.strayed()
        if line and not self.warned:
            self.warn(f"step {step} is not measured: {line}; nor are others like it")
            self.warned = True
        return bool(self.ranks.total(torch.tensor(float(bool(line)))))

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
