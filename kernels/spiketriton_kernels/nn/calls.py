"""snnTorch's Leaky and norse's cells on our kernels, called as their libraries call them.

The module stays the object that it is, with its tensors, keys, hooks and class, of which it becomes a subclass with
another ``forward``: ``snntorch.utils.reset`` and a norse ``SequentialState`` know modules by their class. What they
fire at exactly the threshold is the one difference: theirs need a potential above it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functions import Reset
from ..lif import multistep_lif
from ..surrogate import Surrogate


class Grafted:
    """A module that stays the object that it is, and of a class of its own with another forward."""

    peer: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles make the class again, which has no name in a module."""
        state = self.__dict__.copy()
        return _bare, (type(self).__mro__[1], self.peer), state


class OnKernel(Grafted):
    """A peer's module whose forward runs on our kernels."""


def _bare(kernel: type[Grafted], peer: type[nn.Module]) -> nn.Module:
    made = on_kernel(kernel, peer)
    return made.__new__(made)


_classes: dict[tuple[type, type], type[nn.Module]] = {}


def on_kernel(kernel: type[Grafted], peer: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a peer's class whose forward is the kernel's, made once."""
    if (kernel, peer) not in _classes:
        body = {"peer": peer, "__doc__": kernel.__doc__}
        _classes[kernel, peer] = type(peer.__name__, (kernel, peer), body)
    return _classes[kernel, peer]


def _constant(value: Tensor, x: Tensor) -> Tensor:
    """A tensor of one value as [], one of several as [C], which has to be dimension 1 of a step."""
    if value.numel() == 1:
        return value.reshape(())
    if x.ndim != 2 or value.shape != x.shape[1:]:
        raise ValueError(
            f"a constant of shape {tuple(value.shape)} with an input of shape {tuple(x.shape)}; accepted: one value, "
            "or [N] with [B, N]"
        )
    return value


_RESETS: dict[str, Reset] = {"subtract": "soft", "zero": "hard", "none": "none"}


class LeakyOnKernel(OnKernel):
    """snnTorch's Leaky: (input, mem) -> (spikes, mem), one time step a call."""

    surrogate: Surrogate

    def forward(self: Any, input_: Tensor, mem: Tensor | None = None) -> Any:
        if mem is not None and self.init_hidden:
            raise TypeError("mem is given to a Leaky with init_hidden=True, which keeps its own")
        before = self.mem if mem is None else mem
        if before.shape != input_.shape:
            before = torch.zeros_like(input_)
        spikes, mem = multistep_lif(
            input_.unsqueeze(0),
            decay=_constant(self.beta.clamp(0, 1), input_),
            threshold=_constant(self.threshold, input_),
            reset=_RESETS[self.reset_mechanism],
            detach_reset=self.reset_delay,
            reset_delay=self.reset_delay,
            surrogate=self.surrogate,
            v_init=before,
            return_v=True,
        )
        self.mem = mem.to(input_.dtype)
        if self.init_hidden and not self.output:
            return spikes[0]
        return spikes[0], self.mem


class CellOnKernel(OnKernel):
    """norse's LIFBoxCell, IAFCell and LIFCell, one time step a call, and IAF and LIF over [T, B, ...]."""

    constants: dict[str, Any]
    synapse: float | None
    """The share of its current that a synapse loses per step; None without one."""

    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> Any:
        state = self.state_fallback(input_tensor) if state is None else state
        window = hasattr(self, "record_states")
        x = input_tensor if window else input_tensor.unsqueeze(0)
        currents, last = x, {}
        if self.synapse is not None:
            current, seen = state.i, []
            for step in x.unbind(0):
                current = current + step
                seen.append(current)
                current = current - self.synapse * current
            currents, last = torch.stack(seen), {"i": current}
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        v = state.v.to(wide).expand(currents.shape[1:])
        spikes, last["v"] = multistep_lif(currents, **self.constants, v_init=v, return_v=True)
        return spikes if window else spikes[0], type(state)(**last)
