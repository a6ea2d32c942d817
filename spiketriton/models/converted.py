"""The network of a converted ANN: the ANN's weights with batch norm folded in, and IF neurons.

A neuron of threshold theta that spikes with amplitude theta and starts at theta / 2 has, after T
steps of a constant current a, the mean output

    theta / T * clip(floor(a * T / theta + 1 / 2), 0, T),

the ReLU of a, clipped at theta and rounded to T levels (Bu et al. 2022, "Optimal ANN-SNN
Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks"). The amplitude is a
factor of the weights behind the neuron: only 0 or 1 has to be transmitted.
"""

import torch
from torch import Tensor, nn

from spiketriton.models import Network
from spiketriton.models.graph import channels_of, graph_of
from spiketriton.models.layers import EachStep
from spiketriton_kernels import multistep_lif
from spiketriton_kernels import nn as kernels


class ConvertedIF(kernels.IF):
    """IF with soft reset in place of a ReLU: currents [T, B, C, ...] -> 0 or its threshold; it starts half way to it.

    threshold: float32 [C], above 0. shift: float32 [C], added to the current at each step: what calibration corrects.
    """

    threshold: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(reset="soft")
        self.register_buffer("threshold", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Currents [T, B, C, ...] -> spikes of amplitude `threshold`, same shape and dtype."""
        self._check(x)
        amplitude = _along_channels(self.threshold, x)
        v = self.v if self.v is not None else (amplitude[0] / 2).expand(x.shape[1:]).clone()
        spikes, v = multistep_lif(
            x + _along_channels(self.shift, x),
            decay=1.0,
            threshold=self.threshold,
            reset="soft",
            v_init=v,
            return_v=True,
        )
        if self.stateful:
            self.v = v
        return spikes * amplitude


def with_converted_neurons(model: Network) -> Network:
    """The network of a converted run's recipe, as `build_model` makes it, with IF neurons in place of its own."""
    nodes = graph_of(model)
    for node in nodes.values():
        if node.kind == "neuron":
            place, _, last = node.name.rpartition(".")
            neuron = ConvertedIF(channels_of(nodes, node))
            model.get_submodule(place)._modules[last] = neuron
    pool = getattr(model, "maxpool", None)
    if isinstance(pool, nn.MaxPool2d) and "neuron1" in nodes:
        # before its neuron: a maximum of spikes is not the spikes of the maximum, and that of a ReLU is exact
        model.bn1 = EachStep(pool)
        model._modules["maxpool"] = None
    return model


def _along_channels(value: Tensor, x: Tensor) -> Tensor:
    """[C] in the shape that broadcasts with x [T, B, C, ...], in its dtype."""
    return value.to(x.dtype).view(1, 1, -1, *[1] * (x.ndim - 3))
