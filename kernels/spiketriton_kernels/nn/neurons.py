"""Spiking neurons as modules over the kernels: currents [T, B, ...] -> spikes, time first, in SpikingJelly's words."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any, Literal, Never, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import make_neuron
from ..definition import define, normalised
from ..fire import fire
from ..neuron import Call, Inputs, Neuron, Norm, Outputs
from ..surrogate import Surrogate
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


_NO_CONSTANTS = {"v", "m", "v_seq", "probe", "training", "_began"}
"""Attributes that may change without another ``SpikingNeuron.record``."""


@functools.cache
def _over_ranks() -> Any:
    """``fire`` outside of compiled graphs, which cannot hold a process group; made late, because it imports dynamo."""
    return torch.compiler.disable(fire)


class SpikingNeuron(Stepping):
    """A neuron over a whole time window: input currents [T, B, ...] -> spikes [T, B, ...].

    Spikes are 0 or 1 in the dtype of the currents. A subclass either states its ``kind`` and its constants, in
    ``neuron_arguments()``: the equations are then those of ``multistep_lif`` unless it says otherwise. Or it writes
    its own equations, as one ``step`` in plain PyTorch:

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
    back, and both are printed as C++ and as Triton (``source``), into the passes that the built-in kinds have. Its
    arguments are float32 (float64 for float64), of one shape. It may read numbers, which are compiled in: another
    number is another compilation. And floating-point parameters and buffers of shape [] or [C], which it sees in a
    shape that broadcasts with x. Additions, products, quotients and roots are those of PyTorch to the bit; exp, tanh
    and their kin round in their own way. Channels, where something differs between them, are dimension 2.

    Nothing is kept between calls unless ``stateful``: then the next call starts at ``v``, the membrane after the last
    step ([B, ...], float32; of a ``step`` all its states, [states, B, ...]), and at ``m``, the second state of a CLIF
    or ALIF, so that chunks of any length give the spikes of the whole window. Gradients flow through the states from
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

    Raises:
        ValueError, TypeError: a constant out of its range, here; too few dimensions or a chunk that does not fit the
            kept membrane, in the call; a ``step`` of which no kernel can be made (control flow on values, random
            numbers, other shapes, operations that look at several elements), in the first call, with its line.
    """

    kind = "lif"
    """Its equation, one of ``neuron.KINDS``."""

    resets: tuple[str, ...] = ("hard", "soft", "none")
    shown: tuple[str, ...] = (
        "v_threshold", "v_reset", "reset_mode", "detach_reset", "surrogate", "stateful"
    )  # fmt: skip
    """Attributes that a repr lists."""

    takes_norm = True
    """Whether a call may normalise the current: ``fused_norm``, ``BatchNormLIF``, and ``swap(net, fuse=True)``."""

    v: Tensor | None
    m: Tensor | None
    probe: Tensor | None
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
        self.v = self.m = None
        self._began: Any = None  # the states before the last call
        self.probe = None

    def neuron_arguments(self) -> dict[str, Any]:
        """The neuron's constants by name: floats, or tensors [] or [C], which get gradients."""
        return {
            "decay": 1.0,
            "gain": 1.0,
            "threshold": self.v_threshold,
            "reset": self.reset_mode,
            "v_reset": 0.0 if self.v_reset is None else self.v_reset,
            "detach_reset": self.detach_reset,
            "surrogate": self.surrogate,
        }

    def record(self) -> Neuron:
        """The neuron's constants, checked. Numbers of a class of ours are kept until an attribute changes."""
        if torch.compiler.is_compiling():  # which would compile again for a record that is kept
            return make_neuron(self.kind, **self.neuron_arguments())
        kept = self.__dict__.get("_record")
        if kept is not None:
            return kept
        made = make_neuron(self.kind, **self.neuron_arguments())
        own = type(self).neuron_arguments.__module__.startswith(__package__)
        if own and not any([isinstance(p, Tensor) for p in made.parameters]):
            self.__dict__["_record"] = made
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _NO_CONSTANTS:
            self.__dict__.pop("_record", None)
        super().__setattr__(name, value)
        if (name not in _NO_CONSTANTS or name == "training") and self.has_step():
            self.changed()

    def forward(self, x: Tensor) -> Tensor:
        """Currents [T, B, ...] (with step_mode "s" [B, ...]) -> spikes of the same shape, dtype and memory layout."""
        if isinstance(x, Handed):
            return self._fire_normalised(x)
        if self.step_mode == "s":
            x = x.unsqueeze(0)
        self._check(x)
        spikes = self._fire(x).spikes
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
        out = self._fire(y, norm, return_current, residual, spike_add)
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
            if value is not None and value.ndim and x.shape[2:3] != value.shape:
                raise ValueError(
                    f"input of {type(self).__name__} has shape {tuple(x.shape)}; accepted with "
                    f"{len(value)} values of {name}: [T, B, {len(value)}, ...], channels are dim 2"
                )
        if self.keeps_state and self.v is not None:
            last = self.v[0] if self.has_step() else self.v
            given_, kept = (x.shape[1:], x.device), (last.shape, last.device)
            if given_ != kept:
                raise ValueError(
                    f"a chunk of shape {tuple(x.shape)} on {x.device} does not continue the "
                    f"membrane of shape {tuple(last.shape)} on {last.device}; "
                    "reset() starts a new window"
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
        if self.has_step():
            return self._loop(x, None)[0].to(x.dtype)
        return define(Inputs(x), self.record(), Call()).spikes

    def _define(
        self, inputs: Inputs, call: Call, norm: Norm | None, probe: Tensor | None
    ) -> Outputs:
        """What ``fire`` returns, by the step as it is."""
        x, first, _, residual, spike_add = inputs
        what = "a probe" if probe is not None else "a process group"
        if probe is not None or (norm is not None and norm.process_group is not None):
            raise ValueError(
                f'{what} with {type(self).__name__}, whose backend is "eager"; accepted: none'
            )
        current = x if norm is None else normalised(x, norm)
        if residual is not None:
            current = current + residual.to(current.dtype)
        spikes, states, trace = self._loop(current, first)
        spikes = spikes if spike_add is None else spikes + spike_add
        return Outputs(
            spikes.to(x.dtype),
            torch.stack(states) if call.return_v else None,
            trace=torch.stack(trace) if call.return_trace else None,
            current=current.to(x.dtype) if call.return_current else None,
        )

    def _fire(
        self,
        x: Tensor,
        norm: Norm | None = None,
        return_current: bool = False,
        residual: Tensor | None = None,
        spike_add: Tensor | None = None,
    ) -> Outputs:
        """The one way into the kernels: with the neuron's constants, its probe and its states, which it moves on."""
        keeps, eager = self.keeps_state, self.backend == "eager"
        neuron = None if eager else self._own_record(x) if self.has_step() else self.record()
        call = Call(
            return_v=keeps,
            return_current=return_current,
            return_m=keeps and neuron is not None and neuron.has_m,
            return_trace=self.keeps_trace,
        )
        v = m = None
        if keeps:
            again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
            v, m = self._before_last() if again else (self.v, self.m)
            self._began = None if again else (v, m)
        run = fire if norm is None or norm.process_group is None else _over_ranks()
        inputs = Inputs(x, v, m, residual, spike_add)
        if neuron is None:
            out = self._define(inputs, call, norm, self.probe)
        else:
            out = run(inputs, neuron, call, norm, self.probe)
        if keeps and not again:
            self.v, self.m = out.v_last, out.m_last
        if out.trace is not None:
            self.v_seq = out.trace
        return out

    def _before_last(self) -> tuple[Tensor | None, Tensor | None]:
        """Where the last call began, for a checkpoint that repeats it within backward, once."""
        if self._began is None:
            raise ValueError(
                f"{type(self).__name__} keeps its membrane, and a checkpoint repeats a call before its last one; "
                "accepted: a checkpoint around one call with the whole window, or a neuron that is not stateful"
            )
        return self._began

    def reset(self) -> None:
        """Forgets the states: the next call starts a new window."""
        self.v = self.m = self.v_seq = self._began = None

    def detach(self) -> None:
        """Keeps the states' values and cuts their gradients (truncated back-propagation)."""
        self.v, self.m = (None if s is None else s.detach() for s in (self.v, self.m))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the states without their graph, which torch cannot copy, and no ``v_seq``."""
        states = {n: None if s is None else s.detach() for n, s in (("v", self.v), ("m", self.m))}
        kept = {key: value for key, value in self.__dict__.items() if key != "_steps"}
        return kept | states | {"v_seq": None, "_record": None, "_began": None}

    def extra_repr(self) -> str:
        shown = self.shown
        if self.has_step() and shown is SpikingNeuron.shown:
            shown = ("states", "surrogate", "stateful")
        shown = (*shown, "step_mode") if self.step_mode == "s" else shown
        values = {name: words_of(getattr(self, name)) for name in shown}
        return ", ".join(
            f"{'reset' if name == 'reset_mode' else name}={value}" for name, value in values.items()
        )


class IF(SpikingNeuron):
    """Integrate and fire: h[t] = v[t-1] + x[t]. Arguments: see ``SpikingNeuron``."""


class LIF(SpikingNeuron):
    """Leaky integrate and fire: h[t] = (1 - 1/tau) * v[t-1] + gain * x[t].

    With a hard reset the membrane leaks toward ``v_reset``. SpikingJelly's LIFNode, whose default is
    ``detach_reset=False``.

    Args:
        tau: time constant in steps, >= 1.
        decay_input: gain is 1/tau, else 1.
        v_threshold, v_reset, options: see ``SpikingNeuron``.

    Raises:
        ValueError: a constant out of its range.
    """

    shown = ("tau", "decay_input", *SpikingNeuron.shown)

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        **options: Unpack[AllOptions],
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        self.tau = time_constant("tau", tau)
        self.decay_input = decay_input

    def neuron_arguments(self) -> dict[str, Any]:
        gain = 1 / self.tau if self.decay_input else 1.0
        return super().neuron_arguments() | {"decay": 1 - 1 / self.tau, "gain": gain}


class PLIF(SpikingNeuron):
    """LIF with a learnable leak: 1/tau = sigmoid(w) (Fang et al. 2021, arXiv 2007.05785).

    With ``decay_input`` gradients also flow through the gain 1/tau. SpikingJelly's ParametricLIFNode.

    Args:
        init_tau: time constant in steps at the start, > 1.
        decay_input: gain is 1/tau, else 1.
        per_channel: number of channels C (dim 2 of the input), each with a leak of its own; None for one leak. The
            parameter ``w`` has shape [C] or [].
        v_threshold, v_reset, options: see ``SpikingNeuron``.

    Raises:
        ValueError: a constant out of its range.
    """

    shown = ("init_tau", "decay_input", "per_channel", *SpikingNeuron.shown)

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        *,
        per_channel: int | None = None,
        **options: Unpack[AllOptions],
    ) -> None:
        super().__init__(v_threshold, v_reset, **options)
        if not (init_tau > 1 and math.isfinite(init_tau)):
            raise ValueError(f"init_tau {init_tau!r}: accepted: a finite number above 1")
        if per_channel is not None and per_channel < 1:
            raise ValueError(
                f"per_channel {per_channel!r}: accepted: a number of channels, or None"
            )
        self.init_tau = float(init_tau)
        self.decay_input = decay_input
        self.per_channel = per_channel
        shape = () if per_channel is None else (per_channel,)
        self.w = nn.Parameter(torch.full(shape, -math.log(init_tau - 1)))

    def neuron_arguments(self) -> dict[str, Any]:
        w = wide(self.w)
        # sigmoid(-w) = 1 - sigmoid(w) without the cancellation at a large tau
        learnt = {"decay": torch.sigmoid(-w)}
        if self.decay_input:
            learnt["gain"] = torch.sigmoid(w)
        return super().neuron_arguments() | learnt


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
