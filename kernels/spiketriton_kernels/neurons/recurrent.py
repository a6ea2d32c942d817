"""A layer whose own spikes come back to it, a step later, by a matrix."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from ..neuron import Call, Inputs, membrane_dtype
from ..window.recurrent import check_matrix
from .base import SpikingNeuron
from .psn import ParallelNeuron

_ACTIVATIONS = nn.ReLU.__module__


class Recurrent(nn.Module):
    """Currents [T, B, N] -> spikes [T, B, N] of neurons that read ``x[t] + bias + s[t-1] @ weight.T``.

    The whole window is one call, forward and backward, by compiled C++ or Triton. ``define`` is the definition, a plain
    loop in PyTorch:

        for x_t in x:
            s, states = step(x_t + s @ weight.T, states)

    The product is summed in the membrane's dtype, float32 (float64 for float64), of a matrix that is rounded to the
    dtype of x, as autocast rounds a linear layer's. A sum of floats depends on its order, which no two libraries share.
    So spikes equal the definition's to the bit wherever the sums are exact, as those of multiples of 1/64 are; with
    other weights a potential within a rounding of the threshold, about 1e-16 of it in float64 and 1e-7 in float32, may
    fall on its other side, and then that sample takes another course from there on. On a CPU a weight
    that is infinite or NaN has no effect as long as its neuron does not fire.

    Nothing is kept between calls unless the neuron is stateful: then its last spikes are kept with its states, so that
    chunks of any length, or single steps, give what the window gives. The neuron's probe and ``store_v_seq`` are
    those of every neuron.

    Args:
        neuron: any ``SpikingNeuron``, one of your own included; or one of PyTorch's activations, such as ``nn.ReLU()``,
            which makes it a plain recurrent network: PyTorch then runs the loop.
        features: N.
        bias: whether a learnt current is added to each step.

    Attributes:
        weight: [N, N], from the neurons of its columns to those of its rows; uniform within 1 / sqrt(N), as that of
            ``nn.Linear``, is the bias.
        bias: [N], or None.
        stateful, held: of an activation, as those of a neuron: whether its outputs go on to the next call,
            and the last ones, [1, B, N].
        cut_time: of an activation: no gradient goes from step to step; its outputs stay as they are.

    Raises:
        TypeError: a parallel neuron, which reads a whole window at once and so has no step before; another object.
        ValueError: features below 1; in the call, currents of another shape.
    """

    def __init__(self, neuron: nn.Module, features: int, *, bias: bool = False) -> None:
        super().__init__()
        steps = isinstance(neuron, SpikingNeuron) and not isinstance(neuron, ParallelNeuron)
        if not steps and type(neuron).__module__ != _ACTIVATIONS:
            raise TypeError(
                f"Recurrent with {type(neuron).__name__}: accepted: a neuron that takes one step after the other, such "
                "as LIF(), or one of PyTorch's activations, such as nn.ReLU()"
            )
        if steps and "matrix" not in inspect.signature(type(neuron).forward).parameters:
            raise TypeError(
                f"Recurrent with {type(neuron).__name__}, which has a forward of its own; accepted: a neuron with a "
                "step alone, or whose forward takes a matrix and hands it on"
            )
        if not isinstance(features, int) or isinstance(features, bool) or features < 1:
            raise ValueError(f"features {features!r}: accepted: an integer of at least 1")
        self.neuron = neuron
        self.features = features
        self.weight = nn.Parameter(torch.empty(features, features))
        self.bias = nn.Parameter(torch.empty(features)) if bias else None
        self.stateful = self.cut_time = False
        self.held: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias again."""
        for value in (self.weight, self.bias):
            if value is not None:
                nn.init.uniform_(value, -1 / math.sqrt(self.features), 1 / math.sqrt(self.features))

    def forward(self, x: Tensor) -> Tensor:
        """Currents [T, B, N] (of a neuron with step_mode "s" [B, N]) -> spikes of the same shape and dtype."""
        if not isinstance(self.neuron, SpikingNeuron):
            out = self._rates(x, self.held if self.stateful else None)
            self.held = out[-1:] if self.stateful else None
            return out
        single = self.neuron.step_mode == "s"
        check_matrix(x.unsqueeze(0) if single else x, self.weight)
        return self.neuron(self._biased(x), self.weight)

    def define(self, x: Tensor) -> Tensor:
        """The spikes of currents [T, B, N] by the definition, and autograd through it; from the first states on."""
        return self.define_from(x, None)[0]

    def define_from(self, x: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """``define`` from these states on, [states + 1, B, N], spikes last; also the states after the last step."""
        if not isinstance(self.neuron, SpikingNeuron):
            out = self._rates(x, states)
            return out, out[-1:]
        check_matrix(x, self.weight)
        given, call = Inputs(self._biased(x), states), Call(return_states=True)
        found = self.neuron._define(given, call, matrix=self.weight)
        assert found.states is not None
        return found.spikes, found.states

    def _biased(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias.to(x.dtype)

    def _rates(self, x: Tensor, first: Tensor | None) -> Tensor:
        """Of an activation, from its outputs [1, B, N] on."""
        check_matrix(x, self.weight)
        wide = membrane_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            currents, matrix = self._biased(x).to(wide), self.weight.to(x.dtype).to(wide)
            out = torch.zeros_like(currents[0]) if first is None else first[0].to(wide)
            steps = []
            for x_t in currents:
                before = out.detach() if self.cut_time else out
                out = self.neuron(x_t + nn.functional.linear(before, matrix))
                steps.append(out)
        return torch.stack(steps).to(x.dtype)

    def reset(self) -> None:
        """Forgets what is kept: the next call starts a new window."""
        self.held = None
        if isinstance(self.neuron, SpikingNeuron):
            self.neuron.reset()

    def detach(self) -> None:
        """Keeps the values of what is kept and cuts their gradients."""
        self.held = None if self.held is None else self.held.detach()
        if isinstance(self.neuron, SpikingNeuron):
            self.neuron.detach()

    def extra_repr(self) -> str:
        return f"features={self.features}, bias={self.bias is not None}"
