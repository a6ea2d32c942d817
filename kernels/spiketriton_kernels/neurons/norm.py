"""Batch norm and the spiking neuron behind it as one module: one fused operation each way."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from .base import SpikingNeuron, norm_record
from .lif import LIF


class BatchNormLIF(nn.modules.batchnorm._NormBase):
    """``neuron(batch_norm(y) + residual) + spike_add`` of y [T, B, C, ...], fused.

    Statistics are those of ``torch.nn.BatchNorm2d`` on the folded [T*B, C, H, W] (of BatchNorm1d on [T*B, C] or
    [T*B, C, N]): per channel over T, batch and space. Parameters and buffers have torch's names (``weight``, ``bias``,
    ``running_mean``, ``running_var``, ``num_batches_tracked``); those of the neuron begin with ``neuron.``.

    Args:
        num_features: channels C, dimension 2 of y.
        neuron: any ``SpikingNeuron``; None: ``LIF()``.
        eps, momentum, affine, track_running_stats: as torch's BatchNorm2d; momentum None averages over all batches.
        scale: tdBN's alpha * v_threshold (Zheng et al. 2021), a factor of the normalised current.
        process_group: training statistics over its ranks together, each with the same number of elements.

    Raises:
        ValueError, TypeError: naming what was given and what is accepted, when made and in the call.
    """

    def __init__(
        self,
        num_features: int,
        neuron: SpikingNeuron | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        scale: float = 1.0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features {num_features!r}: accepted: a number of channels")
        neuron = LIF() if neuron is None else neuron
        if not isinstance(neuron, SpikingNeuron) or not neuron.takes_norm:
            raise TypeError(
                f"neuron is a {type(neuron).__name__}; accepted: IF, LIF, PLIF or another SpikingNeuron that "
                "returns spikes alone"
            )
        if neuron.step_mode != "m":
            raise ValueError(
                "neuron has step_mode 's'; accepted: 'm', because a step alone has other statistics than a window"
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.neuron = neuron
        self.scale = scale
        self.process_group = process_group

    def forward(
        self, y: Tensor, residual: Tensor | None = None, spike_add: Tensor | None = None
    ) -> Tensor:
        """y [T, B, C, ...], residual and spike_add like y -> spikes in the shape, dtype and layout of y."""
        self.neuron._check(y)
        norm = norm_record(self, y, self.scale, self.process_group)
        return self.neuron.fused_norm(y, norm, residual, spike_add)

    def reset(self) -> None:
        """Forgets the neuron's membrane."""
        self.neuron.reset()

    def detach(self) -> None:
        """Cuts the gradient of the neuron's membrane."""
        self.neuron.detach()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale:g}"
