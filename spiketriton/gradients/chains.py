"""Whether the layers of a network form a chain."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spiketriton.models import trial


def is_chain(
    model: nn.Module, x: Tensor, layers: Iterable[nn.Module], differ: Callable[[Tensor], bool]
) -> bool:
    """Whether no path goes around a layer: as soon as any one is silenced, the outputs for `x` do not `differ`."""
    for neuron in layers:
        cut = neuron.register_forward_hook(lambda _, given, spikes: torch.zeros_like(spikes))
        try:
            with trial(model), torch.no_grad():
                out = model(x)
        finally:
            cut.remove()
        if not isinstance(out, Tensor) or differ(out):
            return False
    return True
