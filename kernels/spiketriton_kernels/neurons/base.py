"""Spiking neurons as modules over the kernels: currents [T, B, ...] -> spikes, time first, in SpikingJelly's words."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, Never, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..neuron import Call, Inputs, Norm, Outputs
from ..surrogate import Surrogate
from ..window.fire import fire, leaves
from ..window.recurrent import recur
from .handed import Handed
from .stepping import Stepping

STEP_MODES = ("m", "s")


class Options(TypedDict, total=False):
    """What every ``SpikingNeuron`` takes by name, see there; but for detach_reset."""

    reset: Literal["hard", "soft", "none"] | None
    surrogate: Surrogate | None
    stateful: bool
    step_mode: Literal["m", "s"]
    store_v_seq: bool
    backend: Literal["auto", "eager"]


class AllOptions(Options, total=False):
    detach_reset: bool


_NO_CONSTANTS = {
    "v", "m", "held", "v_seq", "probe", "training", "on_fire", "window", "_began", "_seen",
    "_past", "_at", "_before",
}  # fmt: skip
"""Attributes that may change without another ``SpikingNeuron.record``."""

_OF_A_CALL = {"held", "v_seq", "_began", "_seen"}
"""Those that a call sets."""

_MADE = ("_steps", "_records")
"""What is made again of a copy."""


@functools.cache
def _over_ranks() -> Any:
    """``fire`` outside of compiled graphs, which cannot hold a process group; made late, because it imports dynamo."""
    return torch.compiler.disable(fire)


class SpikingNeuron(Stepping):
    """A neuron over a whole time window: input currents [T, B, ...] -> spikes [T, B, ...].

    Spikes are 0 or 1 in the dtype of the currents, or whole numbers. A subclass writes its equations, as one ``step``
    in plain PyTorch:

        class Adaptive(SpikingNeuron):
            states = ("v", "a")                           # carried from step to step, 0 at the beginning; or ``start``

            def __init__(self, channels):
                super().__init__(surrogate=Surrogate("atan", height=1.0, width=0.3))
                self.beta = nn.Parameter(torch.full((channels,), 0.2))

            def step(self, x, v, a):                      # the currents of a step and the states before it
                h = 0.5 * v + x
                s = self.fire(h - 1.0 - self.beta * a)    # 1 where >= 0; backward the surrogate
                return s, torch.where(s > 0, 0.0, h), 0.9 * a + 0.1 * s

    ``step`` is the definition (``define`` runs it in a loop). When the module is first called it is traced, forth and
    back, and both are printed as C++ and as Triton (``source``), into the passes of every neuron. Its arguments are
    float32 (float64 for float64), of one shape. It may read numbers, which are compiled in (another number is another
    compilation) unless the class names them in ``constants``; and floating-point parameters and buffers of shape [] or
    [C], which it sees in a shape that broadcasts with x. ``self.fire(u)`` gives one spike, ``self.count(h, levels)``
    several, ``self.discharge(h, s, level)`` the membrane behind one. Additions, products, quotients and roots are those
    of PyTorch to the bit; exp, tanh and their kin round in their own way. Channels, where something differs between
    them, are dimension 2.

    Nothing is kept between calls unless ``stateful``: then the next call starts at ``held``, the states after the last
    step ([states, B, ...], float32; ``v`` is the first of them, ``m`` the second), so that chunks of any length give
    the spikes of the whole window. Gradients flow through the states from
    chunk to chunk; ``detach()`` cuts them there, and ``reset()`` forgets them.

    Args:
        v_threshold: membrane potential at which it fires: a number above 0, or a tensor [] or [C]. A Parameter learns
            and is part of the state_dict, another tensor is a buffer of it.
        v_reset: potential after a hard reset, < v_threshold; None means soft reset.
        reset: "hard", "soft" or "none"; None takes it from ``v_reset``, as SpikingJelly does.
        detach_reset: no gradient through the reset.
        surrogate: replaces ds/dh in backward; None: ``Surrogate("atan")``. A plain attribute, which may be replaced.
        stateful: keep the membrane between calls.
        step_mode: "m" takes windows [T, B, ...]; "s" one step [B, ...] a call, and keeps the membrane always.
        backend: "eager" runs a ``step`` as it is, in PyTorch, also one of which no kernel can be made.
        store_v_seq: keep the membrane after every step of the last call as ``v_seq``, [T, B, ...], with its gradient.

    Attributes:
        v_seq: see ``store_v_seq``; None otherwise.
        probe: None, or a float32 tensor [T, 8] that requires grad; backward fills its gradient with the sums named by
            ``PROBE_FIELDS``.
        on_fire: None, or a function that each call hands its spikes.
        window: 0 where one call shows a whole window, else the steps of all of its calls together, over which a probe
            then goes; ``reset`` or ``begin`` begins the next window.

    Raises:
        ValueError, TypeError: a constant out of its range, here; too few dimensions or a chunk that does not fit the
            kept membrane, in the call; a ``step`` of which no kernel can be made (control flow on values, random
            numbers, other shapes, operations that look at several elements), in the first call, with its line.
    """

    resets: tuple[str, ...] = ("hard", "soft", "none")
    shown: tuple[str, ...] = (
        "v_threshold", "v_reset", "reset_mode", "detach_reset", "surrogate", "stateful"
    )  # fmt: skip
    """Attributes that a repr lists."""

    has_surrogate = True
    """Whether its spikes follow a surrogate backwards."""

    takes_norm = True
    """Whether a call may normalise the current: ``fused_norm``, ``BatchNormLIF``, and ``swap(net, fuse=True)``."""

    probe: Tensor | None
    on_fire: Callable[[Tensor], object] | None = None
    window = _seen = 0
    v_threshold: float | Tensor

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        *,
        reset: Literal["hard", "soft", "none"] | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate | None = None,
        stateful: bool = False,
        step_mode: Literal["m", "s"] = "m",
        store_v_seq: bool = False,
        backend: Literal["auto", "eager"] = "auto",
        **unknown: Never,
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(_unknown_argument(type(self), next(iter(unknown))))
        self._check_step(backend)
        self.backend = backend
        if reset is None:
            reset = "soft" if v_reset is None else "hard"
        if reset not in self.resets:
            accepted = ", ".join(self.resets)
            raise ValueError(f"reset {reset!r} of {type(self).__name__}: accepted: {accepted}")
        if step_mode not in STEP_MODES:
            raise ValueError(
                f"step_mode {step_mode!r}: accepted: 'm' (windows [T, B, ...]), 's' (steps [B, ...])"
            )
        lowest = _check_threshold(v_threshold)
        if reset == "hard" and (v_reset is None or not -math.inf < v_reset < lowest):
            raise ValueError(
                f"v_reset {v_reset!r} of a hard reset: accepted: a finite number "
                f"below v_threshold = {lowest}"
            )
        if surrogate is not None and not isinstance(surrogate, Surrogate):
            raise TypeError(
                f"surrogate {surrogate!r}: accepted: a spiketriton_kernels.Surrogate, or None"
            )
        keep(self, "v_threshold", v_threshold)
        self.v_reset = float(v_reset) if reset == "hard" and v_reset is not None else None
        self.reset_mode = reset
        self.detach_reset = detach_reset
        self.surrogate = Surrogate("atan") if surrogate is None else surrogate
        self.stateful = stateful
        self.step_mode = step_mode
        self.store_v_seq = store_v_seq
        self.v_seq: Tensor | None = None
        self.held: Tensor | None = None
        self._began: Any = None  # the states before the last call
        self.probe = None

    @property
    def v(self) -> Tensor | None:
        """The first state that is kept, [B, ...]."""
        return None if self.held is None else self.held[0]

    @v.setter
    def v(self, value: Tensor | None) -> None:
        self._hold(0, value)

    @property
    def m(self) -> Tensor | None:
        """The second; None where there is none."""
        return self.held[1] if self.held is not None and len(self.states) > 1 else None

    @m.setter
    def m(self, value: Tensor | None) -> None:
        self._hold(1, value)

    def _hold(self, place: int, value: Tensor | None) -> None:
        """Keeps a state; the others are those that are kept, or 0."""
        if value is None:
            self.held = None
            return
        nothing = torch.zeros_like(value)
        every = [nothing] * len(self.states) if self.held is None else list(self.held)
        every[place] = value
        self.held = torch.stack(every)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_A_CALL:  # which torch.nn.Module would look for among parameters and modules
            object.__setattr__(self, name, value)
            return
        if name not in _NO_CONSTANTS:
            self.__dict__.pop("_records", None)
        super().__setattr__(name, value)
        if name not in _NO_CONSTANTS or name == "training":
            self.changed()

    def forward(self, x: Tensor, matrix: Tensor | None = None) -> Tensor:
        """Currents [T, B, ...] (with step_mode "s" [B, ...]) -> spikes of the same shape, dtype and memory layout.

        matrix: [N, N], of currents [T, B, N] (``Recurrent``): to those of a step are added ``s @ matrix.T`` of the
        spikes s of the step before, which the neuron then keeps behind its states.
        """
        if isinstance(x, Handed):
            return self._fire_normalised(x)
        if self.step_mode == "s":
            x = x.unsqueeze(0)
        self._check(x)
        spikes = self.call_kernels(x, matrix=matrix).spikes
        return spikes[0] if self.step_mode == "s" else spikes

    def fused_norm(
        self,
        y: Tensor,
        norm: Norm,
        residual: Tensor | None = None,
        spike_add: Tensor | None = None,
        *,
        return_current: bool = False,
    ) -> Any:
        """``self(norm(y) + residual) + spike_add`` in one operation; every tensor is [T, B, C, ...].

        With ``return_current`` returns these spikes and ``norm(y) + residual``.
        """
        if not self.takes_norm:
            raise TypeError(
                f"a batch norm in front of {type(self).__name__}: accepted: a neuron that returns spikes alone and "
                "reads one step after the other, such as LIF"
            )
        out = self.call_kernels(y, norm, residual, spike_add, return_current=return_current)
        return (out.spikes, out.current) if return_current else out.spikes

    def _fire_normalised(self, handed: Handed) -> Tensor:
        """The call of a neuron behind a batch norm that ``swap`` has fused, which hands its input on."""
        if self.step_mode != "m":
            raise ValueError(
                "a neuron that is fused with its batch norm has step_mode 's'; accepted: 'm', "
                "because a step alone has other statistics than a window"
            )
        y, residual = handed.take()
        self._check(y)
        return self.fused_norm(y, norm_record(handed.norm, y), residual)

    def _check(self, x: Tensor) -> None:
        """Refuses currents without time and batch, and a chunk that does not fit the membrane."""
        if x.ndim < 2:
            steps = self.step_mode == "s"
            accepted = "[B, ...] with step_mode 's'" if steps else "[T, B, ...], time first"
            raise ValueError(
                f"input of {type(self).__name__} has shape {tuple(x.shape[steps:])}; accepted: {accepted}"
            )
        for name, value in (*self._parameters.items(), *self._buffers.items()):
            if value is not None and value.ndim == 1 and x.shape[2:3] != value.shape:
                raise ValueError(
                    f"input of {type(self).__name__} has shape {tuple(x.shape)}; accepted with "
                    f"{len(value)} values of {name}: [T, B, {len(value)}, ...], channels are dim 2"
                )
        if self.keeps_state and self.held is not None:
            kept, device = self.held.shape[1:], self.held.device
            if x.shape[1:] != kept or x.device != device:
                raise ValueError(
                    f"a chunk of shape {tuple(x.shape)} on {x.device} does not continue the "
                    f"membrane of shape {tuple(kept)} on {device}; reset() starts a new window"
                )

    @property
    def keeps_state(self) -> bool:
        """Whether the next call starts where this one ends."""
        return self.stateful or self.step_mode == "s"

    @property
    def keeps_trace(self) -> bool:
        """Whether calls set ``v_seq``."""
        return self.store_v_seq

    def define(self, x: Tensor) -> Tensor:
        """The spikes of currents [T, B, ...] by the definition: plain PyTorch, step by step, and its autograd.

        What the kernels are held to. From the first states on, whatever the neuron keeps; it moves no state on.
        """
        return self.define_from(x, None)[0]

    def define_from(self, x: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """``define``, from these states [states, B, ...] on; also the states after the last step."""
        out = self._define(Inputs(x, states), Call(return_states=True))
        assert out.states is not None
        return out.spikes, out.states

    def call_kernels(
        self,
        x: Tensor,
        norm: Norm | None = None,
        residual: Tensor | None = None,
        spike_add: Tensor | None = None,
        *,
        return_current: bool = False,
        matrix: Tensor | None = None,
    ) -> Outputs:
        """The one way into the kernels: with the neuron's constants, its probe and its states, which it moves on.

        The arguments are those of ``forward`` and ``fused_norm``; the latter refuses a norm that a neuron cannot take.
        """
        keeps, first = self.keeps_state, None
        call = Call(
            return_states=keeps, return_current=return_current, return_trace=self.keeps_trace
        )
        if keeps:
            again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
            first = self._before_last() if again else self.held
            self._began = None if again else (first,)
            if matrix is not None and first is not None and len(first) == len(self.states):
                first = torch.cat([first, torch.zeros_like(first[:1])])  # set by hand
        current, probe = self._prepared(x, self._rows(len(x)))
        inputs = Inputs(current, first, residual, spike_add)
        if self.backend == "eager" or leaves():
            out = self._define(inputs, call, norm, probe, matrix=matrix)
        elif matrix is not None:
            out = recur(current, matrix, self.record(current), call, first, probe)
        else:
            run = fire if norm is None or norm.process_group is None else _over_ranks()
            out = run(inputs, self.record(current), call, norm, probe)
        if keeps and not again:
            self.held = out.states
        if out.trace is not None:
            self.v_seq = out.trace
        if out.spikes.dtype != x.dtype:
            out = out._replace(spikes=out.spikes.to(x.dtype))
        if self.on_fire is not None:
            self.on_fire(out.spikes)
        return out

    def _prepared(self, x: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What its step is called with, and the probe of that: here the currents as they are."""
        return x, probe

    def _rows(self, steps: int) -> Tensor | None:
        """The rows of the probe for the next so many steps of the window; none beyond it."""
        probe = self.probe
        if not self.window:
            return probe
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
        """What its last window was, where it was not what ``window`` says; "" elsewhere."""
        if self._seen == self.window or not self.window:
            return ""
        return f"is shown {self._seen} time steps, and when the network was looked at {self.window}"

    def begin(self) -> None:
        """Begins the next window, and keeps the states."""
        self._seen = 0

    @property
    def is_binary(self) -> bool:
        """Whether its spikes are 0 or 1, as far as is known; those of I-LIF are 0..levels."""
        return self.backend != "eager" and self.traced().is_binary

    @property
    def fuses(self) -> bool:
        """Whether ``fused_norm`` computes what a call does: not with a ``forward`` of one's own."""
        return self.takes_norm and type(self).forward is SpikingNeuron.forward

    def _before_last(self) -> Tensor | None:
        """Where the last call began, for a checkpoint that repeats it within backward, once."""
        if self._began is None:
            raise ValueError(
                f"{type(self).__name__} keeps its membrane, and a checkpoint repeats a call before its last one; "
                "accepted: a checkpoint around one call with the whole window, or a neuron that is not stateful"
            )
        return self._began[0]

    def reset(self) -> None:
        """Forgets the states: the next call starts a new window."""
        self.begin()
        self.forget()

    def forget(self) -> None:
        """Forgets the states within a window."""
        self.held = self.v_seq = self._began = None

    def detach(self) -> None:
        """Keeps the states' values and cuts their gradients (truncated back-propagation)."""
        self.held = None if self.held is None else self.held.detach()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the states without their graph, which torch cannot copy, and no ``v_seq``."""
        kept = {key: value for key, value in self.__dict__.items() if key not in _MADE}
        held = None if self.held is None else self.held.detach()
        return kept | {"held": held, "v_seq": None, "_began": None}

    def extra_repr(self) -> str:
        shown = self.shown
        if self._family is None and shown is SpikingNeuron.shown:
            shown = ("states", "surrogate", "stateful")
        shown = (*shown, "step_mode") if self.step_mode == "s" else shown
        values = {name: words_of(getattr(self, name)) for name in shown}
        return ", ".join(
            f"{'reset' if name == 'reset_mode' else name}={value}" for name, value in values.items()
        )


class Beyond(SpikingNeuron):
    """What they share: the decay, as a time constant or as it is."""

    shown = ("decay", *SpikingNeuron.shown)
    constants: tuple[str, ...] = ("decay", "gain", "v_threshold")
    decay: float | Tensor
    gain: float | Tensor = 1.0

    def __init__(
        self,
        tau: float,
        decay: float | Tensor | None,
        v_threshold: float | Tensor,
        v_reset: float | None,
        **options: Unpack[AllOptions],
    ) -> None:
        if v_reset not in (None, 0.0):
            raise ValueError(f"v_reset {v_reset!r} of {type(self).__name__}: accepted: 0.0, None")
        super().__init__(v_threshold, v_reset, **options)
        tau = time_constant("tau", tau)
        keep(self, "decay", 1 - 1 / tau if decay is None else decay)


def norm_record(
    norm: Any, y: Tensor, scale: float = 1.0, process_group: dist.ProcessGroup | None = None
) -> Norm:
    """Of a module with the tensors of torch's batch norm, for a call on y [T, B, C, ...], which it counts."""
    if y.ndim >= 3 and y.shape[2] != norm.num_features:
        raise ValueError(
            f"input of batch norm has shape {tuple(y.shape)}; accepted: [T, B, {norm.num_features}, ...]: "
            f"channels are dim 2, and here {norm.num_features}"
        )
    tracked = norm.running_mean is not None
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and tracked:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    training, group = norm.training or not tracked, process_group if norm.training else None
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return Norm(*tensors, training, momentum, norm.eps, scale, process_group=group)


def _check_threshold(value: float | Tensor) -> float:
    """The lowest threshold; ValueError where one is not a finite number above 0."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.ndim > 1 or value.numel() == 0:
            raise ValueError(
                f"v_threshold of shape {tuple(value.shape)} and {value.dtype}: "
                "accepted as a tensor: floating point, [] or [C]"
            )
        lowest, highest = float(value.detach().min()), float(value.detach().max())
    elif isinstance(value, str):
        raise TypeError(f"v_threshold {value!r}: accepted: a number above 0, or a tensor")
    else:
        lowest = highest = value
    if not (lowest > 0 and math.isfinite(highest)):
        raise ValueError(f"v_threshold {words_of(value)}: accepted: a finite number above 0")
    return lowest


_ELSEWHERE = {
    "threshold": "v_threshold", "beta": "tau (decay is 1 - 1/tau), or Leaky(beta)", "alpha": "surrogate",
    "spike_grad": "surrogate", "surrogate_function": "surrogate", "learn_beta": "PLIF", "tau_mem_inv": "tau",
}  # fmt: skip
"""What other libraries' arguments are here."""


def _unknown_argument(kind: type[nn.Module], name: str) -> str:
    """What is said of an argument that a neuron does not have."""
    own = inspect.signature(kind).parameters.values()
    names = [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names += [key for key in AllOptions.__annotations__ if key not in names]
    meant = f", here {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    return f"{kind.__name__} has no argument {name!r}{meant}; accepted: {', '.join(names)}"


def time_constant(name: str, value: float) -> float:
    if isinstance(value, str):
        raise TypeError(f"{name} {value!r}: accepted: a number of at least 1")
    if not (value >= 1 and math.isfinite(value)):
        raise ValueError(f"{name} {value!r}: accepted: a finite number of at least 1")
    return float(value)


def keep(module: nn.Module, name: str, value: float | Tensor) -> None:
    """Sets a constant: a Parameter learns, another tensor is a buffer, a number is an attribute."""
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    elif isinstance(value, Tensor):
        module.register_buffer(name, value)
    else:
        setattr(module, name, float(value))


def words_of(value: object) -> str:
    """A constant for a repr or an error: a tensor of several values by its shape."""
    if not isinstance(value, Tensor):
        return str(value)
    if value.ndim == 0:
        return f"{value.item():g}"
    return f"[{len(value)} values from {value.min().item():g} to {value.max().item():g}]"


def wide(value: Tensor) -> Tensor:
    """A parameter of half precision in float32: a leak that is rounded to 16 bits is another leak."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
