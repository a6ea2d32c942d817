"""What all spiking neurons share: the kernels' module, watched, and with the engine's norm in the same operation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.neurons.norm import Norm
from spiketriton.system.errors import UserError
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.neuron import Outputs
from spiketriton_kernels.nn.handed import Handed


class SpikingNeuron(kernels.SpikingNeuron):
    """A neuron of the engine: input currents [T, B, ...] -> spikes [T, B, ...].

    Everything is explained in `spiketriton_kernels.nn.SpikingNeuron`; wrong constants and shapes
    are a `UserError` here. The surrogate's width, which a run may have measured, is part of the
    `state_dict`.

    Attributes:
        on_fire: None, or a function that each call hands its spikes.
        window: 0 where one call shows a whole window, else the steps of all of its calls together;
            `reset` or `begin` begins the next window.
    """

    on_fire: Callable[[Tensor], object] | None = None
    window = _seen = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            super().__init__(*args, **options)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None

    def get_extra_state(self) -> Tensor:
        """The surrogate's width, float64 []; of a width that is a tensor, which the neuron keeps itself, [0]."""
        width = self.surrogate.width
        return torch.tensor([] if isinstance(width, Tensor) else width, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        if not isinstance(state, Tensor) or state.numel() > 1:
            raise ValueError(f"a surrogate's width is one number, not {str(state)[:40]}")
        if state.numel():
            self.surrogate = replace(self.surrogate, width=state.item())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # weights of other programs have no width
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def is_binary(self) -> bool:
        """Whether its spikes are 0 or 1, as far as is known; those of I-LIF are 0..levels."""
        if self.has_step():
            return self.backend != "eager" and self.traced().is_binary
        return self.kind != "ilif"

    @property
    def fuses(self) -> bool:
        """Whether `fused_norm` computes what a call does: not with a `forward` of one's own, which it would pass by."""
        return self.takes_norm and type(self).forward is kernels.SpikingNeuron.forward

    def fused_norm(
        self,
        y: Tensor,
        norm: Norm,  # type: ignore[override]  # the module, of which it makes the record
        residual: Tensor | None = None,
        spike_add: Tensor | None = None,
        *,
        return_current: bool = False,
    ) -> Any:
        """`self(norm(y) + residual) + spike_add` in one operation; see the kernels' module.

        `norm` counts the batch and updates its running statistics as in a call. Forward hooks of the
        neuron and of the norm do not fire.
        """
        self._check(y)
        # the record itself comes from a neuron that `swap` has joined with a norm of torch's
        record = norm.record(y) if isinstance(norm, Norm) else norm
        return super().fused_norm(y, record, residual, spike_add, return_current=return_current)

    def _check(self, x: Tensor) -> None:
        try:
            super()._check(x)
        except ValueError as error:
            raise UserError(str(error)) from None

    def _fire(self, x: Tensor, *args: Any, **tensors: Any) -> Outputs:
        whole = self.probe
        self.probe = self._rows(whole, len(x)) if self.window else whole
        try:
            out = super()._fire(x, *args, **tensors)
        finally:
            self.probe = whole
        if self.on_fire is not None:
            self.on_fire(out.spikes)
        return out

    def _rows(self, probe: Tensor | None, steps: int) -> Tensor | None:
        """The rows of the probe for the next `steps` steps of the window; none beyond it."""
        whole = probe is not None and len(probe) == steps
        if whole and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return probe  # a checkpoint repeats the call within backward
        before = self._seen
        self._seen += steps
        if probe is None or whole:
            return probe
        row = before * len(probe) // self.window
        return probe[row : row + steps] if self._seen <= self.window else None

    @property
    def strayed(self) -> str:
        """What its last window was, where it was not what `window` says; "" elsewhere."""
        if self._seen == self.window or not self.window:
            return ""
        return f"is shown {self._seen} time steps, and when the network was looked at {self.window}"

    def begin(self) -> None:
        """Begins the next window, and keeps the states."""
        self._seen = 0

    def reset(self) -> None:
        super().reset()
        self.begin()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles make the class of `of_engine` again, which has no name in a module."""
        kind = type(self).__bases__[-1]
        if _CLASSES.get(kind) is not type(self):
            return super().__reduce_ex__(protocol)
        return _bare, (kind,), self.__getstate__()


def _bare(kind: type[kernels.SpikingNeuron]) -> SpikingNeuron:
    made = of_engine(kind)
    return made.__new__(made)


_CLASSES: dict[type, Any] = {}


def of_engine(kind: type[kernels.SpikingNeuron]) -> Any:
    """The engine's class of a neuron of the kernels, a subclass of both, made once."""
    made = type(kind.__name__, (SpikingNeuron, kind), {"__doc__": kind.__doc__})
    return _CLASSES.setdefault(kind, made)


def adopt(neuron: kernels.SpikingNeuron) -> SpikingNeuron:
    """Makes a neuron of the kernels one of the engine, in place."""
    if not isinstance(neuron, SpikingNeuron):
        neuron.__class__ = of_engine(type(neuron))
    return neuron  # type: ignore[return-value]


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
