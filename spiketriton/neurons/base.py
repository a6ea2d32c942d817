"""What all spiking neurons share: the kernels' module, watched, and with the engine's norm in the same operation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spiketriton.errors import UserError
from spiketriton.neurons.norm import Norm
from spiketriton_kernels import multistep_bn_lif
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.nn.neurons import amplified

# a compiled graph cannot hold the process group
_over_ranks = torch.compiler.disable(multistep_bn_lif)


class SpikingNeuron(kernels.SpikingNeuron):
    """A neuron of the engine: input currents [T, B, ...] -> spikes [T, B, ...].

    Everything is explained in `spiketriton_kernels.nn.SpikingNeuron`; wrong constants and shapes
    are a `UserError` here. The surrogate's width, which a run may have measured, is part of the
    `state_dict`.

    Attributes:
        on_fire: None, or a function that each call hands its spikes.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            super().__init__(*args, **options)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None
        self.on_fire: Callable[[Tensor], object] | None = None

    def get_extra_state(self) -> Tensor:
        """The surrogate's width, float64 []; of a width that is a tensor, which the neuron keeps itself, [0]."""
        width = self.surrogate.width
        return torch.tensor([] if isinstance(width, Tensor) else width, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        if state.numel():
            self.surrogate = replace(self.surrogate, width=state.item())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # weights of before the width was kept with them, and those of other programs
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def fuses(self) -> bool:
        """Whether `fused_norm` computes what a call does: not with a `forward` of one's own, which it would pass by."""
        return self.takes_norm and type(self).forward is kernels.SpikingNeuron.forward

    def fused_norm(
        self,
        y: Tensor,
        norm: Norm,
        residual: Tensor | None = None,
        spike_add: Tensor | None = None,
        *,
        return_current: bool = False,
    ) -> Any:
        """`self(norm(y) + residual) + spike_add` in one operation.

        Every tensor is [T, B, C, ...]; `norm` counts the batch and updates its running statistics
        as in a call. Forward hooks of the neuron and of the norm do not fire. With `return_current`,
        which a neuron with a learnable gain of its input does not have, returns these spikes and
        `norm(y) + residual`.
        """
        self._check(y)
        norm.count_batch(y)
        gain = self.input_gain()
        return self._fire(
            multistep_bn_lif if norm.process_group is None else _over_ranks,
            y,
            norm.weight if gain is None else norm.weight * gain,
            norm.bias if gain is None else norm.bias * gain,
            *norm.statistics(),
            training=norm.training,
            process_group=norm.process_group,
            momentum=norm.momentum,
            eps=norm.eps,
            bn_scale=norm.scale,
            step_gain=norm.gains(y.shape[0]),
            residual=None if residual is None else amplified(residual, gain),
            spike_add=spike_add,
            return_current=return_current,
        )

    def _check(self, x: Tensor) -> None:
        try:
            super()._check(x)
        except ValueError as error:
            raise UserError(str(error)) from None

    def _fire(self, kernel: Callable[..., Any], x: Tensor, *tensors: Any, **options: Any) -> Any:
        fired = super()._fire(kernel, x, *tensors, **options)
        if self.on_fire is not None:
            self.on_fire(fired[0] if isinstance(fired, tuple) else fired)
        return fired
