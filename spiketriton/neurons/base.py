"""What the engine adds to the kernels' neurons: a surrogate's width among the weights, and who is told of spikes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton_kernels.neurons.handed import Handed
from spiketriton_kernels.nn import Recurrent, SpikingNeuron

WIDTH = "_extra_state"


def adopt(neuron: SpikingNeuron) -> SpikingNeuron:
    """Makes the surrogate's width, which a run may have measured, part of the neuron's `state_dict`: float64 []; of a
    width that is a tensor, which the neuron keeps itself, [0]."""
    if _add_width not in neuron._state_dict_hooks.values():
        neuron.register_state_dict_post_hook(_add_width)
        neuron.register_load_state_dict_pre_hook(_take_width)
    return neuron


def spiking(module: nn.Module | None) -> SpikingNeuron | None:
    """The spiking neuron that a layer's neuron is, or whose spikes come back to it; None of another module."""
    neuron = module.neuron if isinstance(module, Recurrent) else module
    return neuron if isinstance(neuron, SpikingNeuron) else None


def _add_width(neuron: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    width = neuron.surrogate.width  # type: ignore[union-attr]
    given = [] if isinstance(width, Tensor) else width
    state_dict[f"{prefix}{WIDTH}"] = torch.tensor(given, dtype=torch.float64)


def _take_width(neuron: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights of other programs have none."""
    width = state_dict.pop(f"{prefix}{WIDTH}", torch.tensor([]))
    if not isinstance(width, Tensor) or width.numel() > 1:
        raise ValueError(f"a surrogate's width is one number, not {str(width)[:40]}")
    if width.numel():
        neuron.surrogate = replace(neuron.surrogate, width=width.item())  # type: ignore[type-var]


def normalised(x: Any) -> Tensor:
    """The current of a neuron: x, or what a batch norm that `swap` has fused hands it, normalised."""
    if not isinstance(x, Handed):
        return x
    norm, y, residual = x.norm, x.y, x.residual
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    own = norm.training or norm.running_mean is None
    # this is a trial, by a momentum of 0: the call itself updates the statistics
    current = F.batch_norm(y.flatten(0, 1), *tensors, own, 0.0, norm.eps).unflatten(0, y.shape[:2])
    return current if residual is None else current + residual


@contextmanager
def told_of_spikes(
    neurons: Sequence[tuple[str, SpikingNeuron]], tell: Callable[[str, Tensor], object]
) -> Iterator[None]:
    """Within the block each call of a neuron hands its spikes to `tell`, with the neuron's name."""
    for name, neuron in neurons:
        neuron.on_fire = partial(tell, name)
    try:
        yield
    finally:
        for _, neuron in neurons:
            neuron.on_fire = None
