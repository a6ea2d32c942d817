"""The one record of a neuron layer's constants, from the public functions to the kernels' launches.

Around it the records of one call: what it wants (``Call``), reads (``Inputs``) and returns (``Outputs``); the gradients
that come in on the way back (``Upstream``), and those that are found (``Gradients``).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .steps.forms import named
from .steps.step import Step


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, so that the membrane never rounds to 16 bits; else the dtype itself."""
    return torch.float64 if dtype == torch.float64 else torch.float32


Running = tuple[torch.Tensor, torch.Tensor, float]
"""Running mean, running variance and momentum of a batch norm."""


class Call(NamedTuple):
    """What a call wants of a neuron.

    ``group``: the process group that shares the norm's statistics, by name. ``batch_statistics``: they are those of the
    batch, measured by the forward pass where none are given.
    """

    group: str = ""
    batch_statistics: bool = False
    save: bool = False
    return_states: bool = False
    return_current: bool = False
    return_trace: bool = False


NORM = ("mean", "var", "weight", "bias", "step_gain")


class States(NamedTuple):
    """What the next window starts from, [B, ...] each, float32 (float64 for float64 input)."""

    v: torch.Tensor
    m: torch.Tensor


class Norm(NamedTuple):
    """A batch norm in front of a neuron, in the words of ``multistep_bn_lif``."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    scale: float = 1.0
    step_gain: torch.Tensor | None = None
    process_group: dist.ProcessGroup | None = None

    def count(self, y: torch.Tensor) -> int:
        """Elements a channel of y that training statistics are taken over."""
        ranks = 1 if self.process_group is None else dist.get_world_size(self.process_group)
        return y.numel() // y.shape[2] * ranks


class Neuron(NamedTuple):
    """What the backends know of a neuron: its step, what that reads, and the norm in front (``mean`` is None: none).

    ``constants``: in the order of ``step.constants``, floats or tensors () or (C,); ``is_plain``: whether all are
    floats. ``starts``: the states before the first step, where none are given.
    An operator takes it apart into tensors, one string and one list of floats, because its cost grows with each
    argument and torch.compile can carry a float that it does not know into a list, but not into a string. ``of`` puts
    it together again for the backends, as ``adapted`` does where a call needs no operator: tensors are then
    contiguous, 1-d and in the membrane's dtype.
    """

    step: Step
    constants: tuple[float | torch.Tensor, ...] = ()
    starts: tuple[float, ...] = ()
    is_plain: bool = True
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    step_gain: torch.Tensor | None = None
    eps: float = 0.0
    bn_scale: float = 1.0

    @staticmethod
    def made(
        step: Step, constants: tuple[float | torch.Tensor, ...], starts: tuple[float, ...]
    ) -> Neuron:
        plain = not any([isinstance(c, torch.Tensor) for c in constants])
        return Neuron(step, constants, starts, plain)

    def floats(self) -> list[float]:
        """All that are, 1 in a tensor's place."""
        constants = [1.0 if isinstance(c, torch.Tensor) else c for c in self.constants]
        return [self.eps, self.bn_scale, *self.starts, *constants]

    def words(self, call: Call) -> str:
        """The step, of each constant whether it is a tensor, and the call."""
        tensors = "".join(["01"[isinstance(c, torch.Tensor)] for c in self.constants])
        flags = ["01"[flag] for flag in call[1:]]
        return " ".join((self.step.word, f"-{tensors}", call.group, *flags))

    @staticmethod
    def of(
        x: torch.Tensor, tensors: dict[str, torch.Tensor], words: str, floats: list[float]
    ) -> Neuron:
        """For the input x, from what ``words``, ``floats`` and the operator's tensors say."""
        name, learnt, _ = parsed(words)
        step = named(name)
        eps, bn_scale, *numbers = floats
        starts = tuple(numbers[: len(step.states)])
        constants: list[float | torch.Tensor] = [*numbers[len(step.states) :]]
        if "constants" in tensors:
            rows = iter(tensors["constants"])
            for i, is_tensor in enumerate(learnt):
                constants[i] = as_small(next(rows), x) if is_tensor else constants[i]
        norm = [as_small(tensors[name], x) if name in tensors else None for name in NORM]
        made = Neuron.made(step, tuple(constants), starts)
        return Neuron._make((*made[:_OWN], *norm, eps, bn_scale))

    def behind(self, norm: Norm, mean: Any, var: Any) -> Neuron:
        """Behind a norm with these statistics. ``_replace`` takes three times as long."""
        rest = norm.weight, norm.bias, norm.step_gain, float(norm.eps), float(norm.scale)
        return Neuron._make((*self[:_OWN], mean, var, *rest))

    def adapted(self, x: torch.Tensor, given: dict[str, torch.Tensor]) -> Neuron:
        """With those of the tensors that are its own as the kernels read them for x; itself where nothing changes."""
        small: dict[str, Any] = {}
        for name, value in given.items():
            if name in NORM and (fitting := as_small(value, x)) is not value:
                small[name] = fitting
        if not self.is_plain:
            some = [as_small(c, x) if isinstance(c, torch.Tensor) else c for c in self.constants]
            small["constants"] = tuple(some)
        return self._replace(**small) if small else self

    def given(self) -> dict[str, torch.Tensor]:
        """Its constants that are tensors, by the names of ``place``."""
        return {place(i): c for i, c in enumerate(self.constants) if isinstance(c, torch.Tensor)}

    @property
    def has_norm(self) -> bool:
        return self.mean is not None

    @property
    def holds_more(self) -> bool:
        """Whether a walk back keeps more of each step of a chunk than one value: what it read, another state."""
        return self.has_norm or self.step.holds_more

    @property
    def rows(self) -> int:
        """How many of its constants have a row in ``Gradients.constants``: ``step.rows``."""
        return sum(self.step.learns)

    @property
    def norm(self) -> tuple[Any, ...]:
        """Mean, variance, weight, bias, step gain; None for what is not given."""
        return self[_OWN : _OWN + len(NORM)]

    @property
    def channels(self) -> int:
        """Values of the largest constant; 0 where there are no channels."""
        sizes = [c.numel() for c in self.constants if isinstance(c, torch.Tensor)]
        return max(sizes, default=1) if min(sizes, default=1) else 0

    @property
    def per_channel(self) -> bool:
        """Whether anything differs between channels."""
        return self.has_norm or self.channels > 1


def place(i: int) -> str:
    """What constant i is called among the tensors of a call."""
    return f"constant {i}"


@functools.lru_cache
def parsed(words: str) -> tuple[str, tuple[bool, ...], Call]:
    """The step's word, which constants are tensors, the call."""
    name, tensors, group, *flags = words.split(" ")
    call = Call(group, *(flag == "1" for flag in flags))
    return name, tuple(flag == "1" for flag in tensors[1:]), call


def as_small(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A parameter or norm tensor as the kernels read it: contiguous, in the membrane's dtype, not of 0 dimensions."""
    wide = membrane_dtype(x.dtype)
    if value.dtype == wide and value.dim() and value.is_contiguous():
        return value
    value = value.detach()
    value = value if value.dtype == wide else value.to(wide)
    return value.reshape(-1).contiguous() if value.dim() else value.view(1)


_OWN = Neuron._fields.index("mean")
"""How many of a neuron's fields are its own, before those of its norm."""


class Inputs(NamedTuple):
    """What a call reads: x [T, B, ...], dense with time outermost, and the rest in its memory order."""

    x: torch.Tensor
    states: torch.Tensor | None = None  # [states, B, ...], in the membrane's dtype
    residual: torch.Tensor | None = None  # like x, as spike_add
    spike_add: torch.Tensor | None = None


class Outputs(NamedTuple):
    """What a forward pass fills; None: not wanted."""

    spikes: torch.Tensor  # like x
    states: torch.Tensor | None = None  # after the last step
    trace: torch.Tensor | None = (
        None  # the first state of every step: like x, in the membrane's dtype
    )
    saved: torch.Tensor | None = None  # [rows, states, neurons]: the states between chunks
    current: torch.Tensor | None = None  # like x


class Upstream(NamedTuple):
    """The gradients by ``Outputs`` but for ``saved``; None: 0."""

    spikes: torch.Tensor
    states: torch.Tensor | None = None
    trace: torch.Tensor | None = None
    current: torch.Tensor | None = None


class Gradients(NamedTuple):
    """What one walk back fills; None: not wanted.

    ``dx`` is the gradient by the neuron's current (also the residual's); ``dy`` the gradient by the norm's input.
    """

    dx: torch.Tensor | None = None
    dy: torch.Tensor | None = None
    sums: torch.Tensor | None = None  # [2, C]: sum of dz, sum of dz * xhat; dz = step_gain * dx
    states: torch.Tensor | None = None  # before the first step
    constants: torch.Tensor | None = None  # [neuron.rows, C or 1]
    step_gain: torch.Tensor | None = None  # [T]
    probe: torch.Tensor | None = None  # [T, 8]
