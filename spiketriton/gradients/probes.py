"""Probes: what the kernels' backward pass adds up about each spiking layer, made a `Measurement`.

On a measured pass every spiking layer gets a probe (`spiketriton_kernels.PROBE_FIELDS`). The kernels' backward adds to
its gradient what they hold in registers anyway: no hooks, no tensor kept, no second pass. On all other passes the probe
is None and costs nothing. The monitor fills them by steps of a training, `prober.Prober` by always the same batches.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from spiketriton.gradients.measurement import Measurement
from spiketriton.neurons import SpikingNeuron
from spiketriton.system.ranks import Ranks
from spiketriton_kernels import PROBE_FIELDS

_LARGEST = PROBE_FIELDS.index("grad_input_max")  # the column that is a maximum, not a sum


class Probes:
    """Of some layers, by their names.

    Args:
        steps: time steps that each of them is shown in a pass.
        elements: of each layer, its values in one time step over all images that are measured.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, SpikingNeuron]],
        steps: int,
        elements: Sequence[int],
        device: torch.device,
    ) -> None:
        self.layers, self.elements = layers, elements
        # one tensor per layer for all passes, and one gradient of it: torch.compile and a CUDA graph see the same
        # ones every time
        shape = (steps, len(PROBE_FIELDS))
        self.probes = [torch.zeros(shape, device=device).requires_grad_() for _ in layers]
        self.grads = [torch.zeros_like(probe) for probe in self.probes]
        for probe, grad in zip(self.probes, self.grads, strict=True):
            probe.grad = grad  # autograd adds to it in place

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the forward and backward pass inside."""
        torch._foreach_zero_(self.grads)
        for (_, layer), probe in zip(self.layers, self.probes, strict=True):
            layer.probe = probe
            layer.begin()
        try:
            yield
        finally:
            for _, layer in self.layers:
                layer.probe = None

    def read(self) -> Tensor:
        """What the last pass gave, float64 [layers, T, 8] on the CPU, in one copy that waits for the device."""
        return torch.stack(self.grads).cpu().double()

    def measured(
        self, passes: Sequence[Tensor], scale: float = 1.0, ranks: Ranks | None = None
    ) -> Measurement:
        """The measurement of some passes together, over all ranks. scale: what the loss was multiplied by."""
        stacked = torch.stack([*passes])
        sums, largest = stacked.sum(0), stacked[..., _LARGEST].amax(0)
        if ranks is not None:
            sums, largest = ranks.total(sums), ranks.largest(largest)
        sums[..., _LARGEST] = largest
        names = [name for name, _ in self.layers]
        return Measurement.of_sums(names, sums.numpy(), self.elements, scale)

    def strayed(self) -> str:
        """The first layer that was shown other time steps than were measured, in words; "" where none was."""
        return next((f"{name} {layer.strayed}" for name, layer in self.layers if layer.strayed), "")
