"""The one record of a neuron layer's constants, from the public functions to the kernels' launches.

Around it the records of one call: what it wants (``Call``), reads (``Inputs``) and returns (``Outputs``); the gradients
that come in on the way back (``Upstream``), and those that are found (``Gradients``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .steps.step import Step, named


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
    return_v: bool = False
    return_current: bool = False
    return_m: bool = False
    return_trace: bool = False

    @staticmethod
    def of(words: str) -> Call:
        return _parsed(words)[1]


KINDS = ("lif", "ilif", "clif", "alif", "cuba")
"""The equations: see ``backends``. IF and PLIF are "lif" with constants of their own; any other kind names a
``Step``."""

RESETS = ("soft", "hard", "none", "delayed_soft", "delayed_hard")
"""A delayed reset belongs to the next step: v[t] is h[t], and h[t+1] is charged from what the reset leaves of it."""

MAX_LEVELS = 255

PARAMETERS = ("decay", "threshold", "width", "gain", "rho", "beta")
"""What may learn, in the order of the rows of ``Gradients.parameters``."""

GIVEN = (*PARAMETERS, "height", "whole levels", "shape")
"""What a step is told of its neuron, in the order of ``Parameter`` in neurons.h."""

NORM = ("mean", "var", "weight", "bias", "step_gain")
TENSORS = (*PARAMETERS, "constants", *NORM)
"""Of a neuron, in the operators' order."""
_FLOATS_ALONE = (float,) * len(PARAMETERS)

FLOATS = (
    "decay", "gain", "threshold", "v_reset", "height", "width", "rho", "beta", "eps", "bn_scale",
)  # fmt: skip
"""Of a neuron, in the operators' order."""


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
    """The constants of a neuron and of the batch norm in front of it (``mean`` is None: there is none).

    ``make_neuron`` makes one of a caller's arguments: ``PARAMETERS`` are floats or tensors () or (C,). rho is
    ALIF's and CuBa-LIF's, beta ALIF's, levels I-LIF's D; shape is one of ``SHAPES`` or the name of a surrogate of one's
    own. Of a step of one's own (``own``) the kind is its name, ``constants`` [P, C or 1] are what it reads, and the
    other parameters mean nothing.
    An operator takes it apart into tensors, one string and one list of floats, because its cost grows with each
    argument and torch.compile can carry a float that it does not know into a list, but not into a string. ``of`` puts
    it together again for the backends, as ``adapted`` does where a call needs no operator: tensors are then
    contiguous, 1-d and in the membrane's dtype.
    """

    decay: float | torch.Tensor
    gain: float | torch.Tensor
    threshold: float | torch.Tensor
    reset: str
    v_reset: float
    detach_reset: bool
    shape: str
    height: float
    width: float | torch.Tensor
    kind: str = "lif"
    rho: float | torch.Tensor = 0.0
    beta: float | torch.Tensor = 0.0
    levels: int = 1
    constants: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    step_gain: torch.Tensor | None = None
    eps: float = 0.0
    bn_scale: float = 1.0

    def floats(self) -> list[float]:
        """In the order of ``FLOATS``; 1 in a tensor's place."""
        values = (getattr(self, name) for name in FLOATS)
        return [1.0 if isinstance(value, torch.Tensor) else float(value) for value in values]

    def words(self, call: Call) -> str:
        flags = (self.detach_reset, *call[1:])
        words = (self.kind, self.reset, self.shape, str(self.levels), call.group)
        return " ".join((*words, *("01"[flag] for flag in flags)))

    @staticmethod
    def of(
        x: torch.Tensor, tensors: Iterable[torch.Tensor | None], words: str, floats: list[float]
    ) -> Neuron:
        """For the input x, from what ``tensors``, ``words`` and ``floats`` gave."""
        given = dict(zip(FLOATS, floats, strict=True))
        named = zip(TENSORS, tensors, strict=True)
        small = {name: as_small(value, x) for name, value in named if value is not None}
        return Neuron(**_parsed(words)[0], **(given | small))  # type: ignore[arg-type]

    def behind(self, norm: Norm, mean: Any, var: Any) -> Neuron:
        """Behind a norm with these statistics. ``_replace`` takes three times as long."""
        rest = norm.weight, norm.bias, norm.step_gain, float(norm.eps), float(norm.scale)
        return Neuron._make((*self[:_OWN], mean, var, *rest))

    def adapted(self, x: torch.Tensor, given: dict[str, torch.Tensor]) -> Neuron:
        """With those of the tensors that are its own as the kernels read them for x; itself where nothing changes."""
        small: dict[str, Any] = {}
        for name, value in given.items():
            if name in TENSORS and (fitting := as_small(value, x)) is not value:
                small[name] = fitting
        return self._replace(**small) if small else self

    def given(self) -> dict[str, torch.Tensor]:
        """Its parameters that are tensors, by their names."""
        if self.is_plain:
            return {}
        if self.constants is not None:
            return {"constants": self.constants}
        named = zip(PARAMETERS, self.parameters, strict=True)
        return {name: value for name, value in named if isinstance(value, torch.Tensor)}

    @property
    def is_plain(self) -> bool:
        """Whether its parameters are floats."""
        return self.constants is None and tuple(map(type, self.parameters)) == _FLOATS_ALONE

    @property
    def v_start(self) -> float:
        """v[-1] when no v_init is given."""
        return self.v_reset if self.reset == "hard" else 0.0

    @property
    def leaks_to_reset(self) -> bool:
        return self.reset == "hard" and self.v_reset != 0.0

    @property
    def has_m(self) -> bool:
        """Whether it has a second state beside the membrane."""
        return self.kind in ("clif", "alif", "cuba")

    @property
    def is_binary(self) -> bool:
        """Whether its spikes are 0 or 1, with a surrogate; of a kind of ours."""
        return self.kind != "ilif"

    @property
    def own(self) -> Step | None:
        """The step of one's own that it is; None for a kind of ours."""
        return None if self.kind in KINDS else named(self.kind)

    @property
    def by_hand(self) -> bool:
        """Whether its step is written by hand for Triton; else it is printed (studies/speed/log.md)."""
        return self.kind == "lif"

    @property
    def states(self) -> int:
        """How many states a step hands to the next."""
        own = self.own
        return 1 + self.has_m if own is None else len(own.states)

    @property
    def has_norm(self) -> bool:
        return self.mean is not None

    @property
    def holds_more(self) -> bool:
        """Whether a walk back keeps more of each step of a chunk than h: what it read, or the second state."""
        return self.has_norm or self.kind not in ("lif", "ilif")

    @property
    def parameters(self) -> tuple[float | torch.Tensor, ...]:
        """In the order of ``PARAMETERS``."""
        return self.decay, self.threshold, self.width, self.gain, self.rho, self.beta

    @property
    def rows(self) -> int:
        """How many of ``PARAMETERS`` have a row in ``Gradients.parameters``: the later ones are rarely learnt."""
        own = self.own
        if own is not None:
            return len(own.constants)
        if self.kind in ("alif", "cuba"):
            return 6
        return 4 if isinstance(self.gain, torch.Tensor) else 3

    @property
    def norm(self) -> tuple[Any, ...]:
        """Mean, variance, weight, bias, step gain; None for what is not given."""
        return self[_OWN : _OWN + len(NORM)]

    @property
    def parameter_size(self) -> int:
        """Values of the largest parameter; 0 where there are no channels."""
        if self.constants is not None:
            return self.constants.numel() // self.rows
        sizes = [p.numel() if isinstance(p, torch.Tensor) else 1 for p in self.parameters]
        return max(sizes) if min(sizes) else 0

    @property
    def per_channel(self) -> bool:
        """Whether anything differs between channels."""
        return self.has_norm or self.parameter_size > 1


@functools.lru_cache
def _parsed(words: str) -> tuple[dict[str, Any], Call]:
    """A neuron's fields that are words, and the call."""
    kind, reset, shape, levels, group, *flags = words.split(" ")
    detach_reset, *wanted = (flag == "1" for flag in flags)
    neuron: dict[str, Any] = dict(
        kind=kind, reset=reset, shape=shape, levels=int(levels), detach_reset=detach_reset
    )
    return neuron, Call(group, *wanted)


def as_small(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A parameter or norm tensor as the kernels read it: contiguous, in the membrane's dtype, not of 0 dimensions."""
    wide = membrane_dtype(x.dtype)
    if value.dtype == wide and value.dim() and value.is_contiguous():
        return value
    return value.detach().to(wide).reshape(-1).contiguous()


_OWN = Neuron._fields.index("mean")
"""How many of a neuron's fields are its own, before those of its norm."""


class Inputs(NamedTuple):
    """What a call reads: x [T, B, ...], dense with time outermost, and the rest in its memory order."""

    x: torch.Tensor
    v_init: torch.Tensor | None = (
        None  # [B, ...], in the membrane's dtype, as m_init; own: [states, B, ...]
    )
    m_init: torch.Tensor | None = None
    residual: torch.Tensor | None = None  # like x, as spike_add
    spike_add: torch.Tensor | None = None


class Outputs(NamedTuple):
    """What a forward pass fills; None: not wanted."""

    spikes: torch.Tensor  # like x
    v_last: torch.Tensor | None = None  # like v_init
    m_last: torch.Tensor | None = None
    trace: torch.Tensor | None = None  # v of every step: like x, in the membrane's dtype
    saved: torch.Tensor | None = None  # [rows, v or v and m, neurons]: the states between chunks
    current: torch.Tensor | None = None  # like x


class Upstream(NamedTuple):
    """The gradients by ``Outputs`` but for ``saved``; None: 0."""

    spikes: torch.Tensor
    v_last: torch.Tensor | None = None
    m_last: torch.Tensor | None = None
    trace: torch.Tensor | None = None
    current: torch.Tensor | None = None


class Gradients(NamedTuple):
    """What one walk back fills; None: not wanted.

    ``dx`` is the gradient by the neuron's current (also the residual's); ``dy`` the gradient by the norm's input.
    """

    dx: torch.Tensor | None = None
    dy: torch.Tensor | None = None
    sums: torch.Tensor | None = None  # [2, C]: sum of dz, sum of dz * xhat; dz = step_gain * dx
    v_init: torch.Tensor | None = None
    parameters: torch.Tensor | None = None  # [neuron.rows, C or 1]: see ``PARAMETERS``
    step_gain: torch.Tensor | None = None  # [T]
    probe: torch.Tensor | None = None  # [T, 8]
    m_init: torch.Tensor | None = None
