"""What other libraries' neurons are in ours: each peer's module by its name, without importing the library.

A module that means the same gives one of ours with the same constants and the same Parameter objects; any other
neuron gives the reason why it stays. Only a class itself is known, or a subclass that overrides nothing but its
constructor: what else a subclass changes cannot be seen from here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..neurons.base import SpikingNeuron
from ..neurons.clif import CLIF
from ..neurons.ilif import ILIF, MAX_LEVELS
from ..neurons.lif import IF, LIF
from ..neurons.plif import PLIF
from ..neurons.psn import PSN, MaskedPSN, ParallelNeuron, SlidingPSN
from ..surrogate import Surrogate


class Left(ValueError):
    """Why a peer's neuron is left as it is."""


def translate(module: nn.Module) -> SpikingNeuron | None:
    """Ours for a peer's neuron; None for what is no neuron of theirs.

    Raises ``ValueError`` with the reason for one that stays.
    """
    library, theirs = _named(module)
    if library is None:
        return None
    known = _LIBRARIES[library]
    own = _overridden(module, library)
    if own:
        raise Left(f"{type(module).__name__} is a {theirs} that overrides {', '.join(own)}")
    if theirs not in known:
        raise Left(f"{theirs}: no kernel has its equation; known are {', '.join(known)}")
    ours = known[theirs](module)
    for name in ("v", "m"):  # a node in the middle of a window goes on from there
        state = getattr(module, name, None)
        if isinstance(state, torch.Tensor):
            setattr(ours, name, state if state.dtype == torch.float64 else state.float())
    extra = set(dict(module.named_parameters())) - set(dict(ours.named_parameters()))
    if extra:
        raise Left(f"{theirs} with parameters of its own: {', '.join(sorted(extra))}")
    return ours


def is_neuron(module: nn.Module) -> bool:
    """Whether it is a neuron of one of the libraries, equal to one of ours or not."""
    return _named(module)[0] is not None


def _named(module: nn.Module) -> tuple[str | None, str]:
    """The library of a peer's neuron, and the name of its class there."""
    for cls in type(module).__mro__:
        for library in _LIBRARIES:
            if _of(cls, library):
                return library, cls.__name__
    return None, ""


def _of(cls: type, library: str) -> bool:
    """Whether a class is one of the library's neurons: its module's path, and for norse its bases, say so."""
    root, *rest = cls.__module__.split(".")
    if root != library or _FOLDERS[library] not in rest or not issubclass(cls, nn.Module):
        return False
    return library != "norse" or any(c.__name__ in _NORSE_BASES for c in cls.__mro__[1:])


_FOLDERS = {"spikingjelly": "neuron", "snntorch": "_neurons", "norse": "module"}
_NORSE_BASES = ("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell")


_HARMLESS = {
    "__module__", "__doc__", "__init__", "extra_repr", "__annotations__", "__qualname__", "__static_attributes__",
    "__firstlineno__", "__annotate_func__", "__annotations_cache__",
}  # fmt: skip


def _overridden(module: nn.Module, library: str) -> list[str]:
    """What a user's subclass, or the instance, puts in place of the library's own methods."""
    names = {"forward"} & module.__dict__.keys()
    for cls in type(module).__mro__:
        if _of(cls, library):
            break
        names |= cls.__dict__.keys() - _HARMLESS
    return sorted(names)


def _number(value: Any, name: str) -> float:
    """A constant that may be a tensor of one element; one that learns cannot be carried over as a number."""
    if isinstance(value, torch.Tensor) and (value.requires_grad or value.numel() != 1):
        raise Left(
            f"{name} is a tensor of shape {tuple(value.shape)} that no kernel constant holds"
        )
    return float(value)


# ---- SpikingJelly


def _spikingjelly_surrogate(function: Any) -> Surrogate:
    name = type(function).__name__
    theirs = type(function).__module__.startswith("spikingjelly.")
    if not theirs or name not in _SPIKINGJELLY_SLOPES:
        accepted = ", ".join(_SPIKINGJELLY_SLOPES)
        raise Left(f"surrogate {name} has no equal here; accepted: {accepted}")
    if not getattr(function, "spiking", True):
        raise Left(f"surrogate {name} with spiking=False gives no spikes")
    alpha = _number(function.alpha, f"alpha of surrogate {name}")
    return _SPIKINGJELLY_SLOPES[name](alpha)


_SPIKINGJELLY_SLOPES: dict[str, Callable[[float], Surrogate]] = {
    "ATan": Surrogate.atan,
    "Sigmoid": Surrogate.sigmoid,
    "PiecewiseQuadratic": Surrogate.piecewise_quadratic,
    "SoftSign": Surrogate.soft_sign,
    "SuperSpike": Surrogate.super_spike,
    "Erf": Surrogate.erf,
    "Rect": lambda alpha: Surrogate("rectangle", height=alpha, width=0.5 / alpha),
}


def _spikingjelly_call(node: Any) -> dict[str, Any]:
    """What every node has: how it is called, and that it keeps its state."""
    if getattr(node, "_neuron_precision", None) is not None:
        raise Left("its precision was set by prepare_model_for_precision")
    windows = type(node).__name__.startswith("MultiStep")  # versions before step_mode
    return dict(
        v_threshold=_number(node.v_threshold, "v_threshold"),
        detach_reset=node.detach_reset,
        step_mode="m" if windows else getattr(node, "step_mode", "s"),
        stateful=True,  # theirs keep v until reset_net
    )


def _spikingjelly_options(node: Any) -> dict[str, Any]:
    return _spikingjelly_call(node) | dict(
        store_v_seq=getattr(node, "store_v_seq", False),
        v_reset=None if node.v_reset is None else _number(node.v_reset, "v_reset"),
        surrogate=_spikingjelly_surrogate(node.surrogate_function),
    )


def _if(node: Any) -> SpikingNeuron:
    return IF(**_spikingjelly_options(node))


def _lif(node: Any) -> SpikingNeuron:
    decay_input = getattr(node, "decay_input", True)
    return LIF(node.tau, decay_input, **_spikingjelly_options(node))


def _plif(node: Any) -> SpikingNeuron:
    ours = PLIF(decay_input=getattr(node, "decay_input", True), **_spikingjelly_options(node))
    ours.w = node.w  # the same Parameter: optimizers and state_dicts go on
    ours.init_tau = float(1 + torch.exp(-node.w.detach().float()))
    return ours


def _ilif(node: Any) -> SpikingNeuron:
    if node.store_v_seq:
        raise Left("store_v_seq=True: an ILIF keeps the last membrane only")
    count = node.surrogate_function
    window, levels = (count.grad_min, count.grad_max), int(count.max_spike_count)
    if window != (0, levels):
        raise Left(f"a gradient window of {window}; accepted: {(0.0, float(levels))}")
    if levels > MAX_LEVELS:
        raise Left(f"{levels} spikes a step; accepted: up to {MAX_LEVELS}")
    return ILIF(node.tau, levels=levels, **_spikingjelly_call(node))


def _clif(node: Any) -> SpikingNeuron:
    if node.store_state_seqs:
        raise Left("store_state_seqs=True: a swapped neuron keeps the last states only")
    slope = _spikingjelly_surrogate(node.surrogate_function)
    return CLIF(node.tau, surrogate=slope, **_spikingjelly_call(node))


def _parallel(make: Callable[..., ParallelNeuron]) -> Callable[[Any], SpikingNeuron]:
    """Of a PSN, with its own Parameters and buffers."""

    def translated(node: Any) -> SpikingNeuron:
        if getattr(node, "step_mode", "m") != "m":
            raise Left(
                f"step_mode {node.step_mode!r}: the module here takes whole windows; accepted: 'm'"
            )
        ours = make(node, surrogate=_spikingjelly_surrogate(node.surrogate_function))
        ours._parameters.update(node._parameters)
        ours._buffers.update(node._buffers)
        ours._non_persistent_buffers_set = node._non_persistent_buffers_set  # the same state_dict
        return ours

    return translated


def _simple(make: Callable[[Any], SpikingNeuron]) -> Callable[[Any], SpikingNeuron]:
    """SimpleIFNode and SimpleLIFNode start at 0, not at v_reset."""

    def checked(node: Any) -> SpikingNeuron:
        if node.v_reset not in (None, 0.0):
            raise Left(f"{type(node).__name__} with v_reset {node.v_reset} starts at 0")
        return make(node)

    return checked


# ---- snnTorch


def _snntorch_surrogate(function: Any) -> Surrogate:
    """A closure of ``snntorch.surrogate``, by its name and the number that it holds."""
    name = getattr(function, "__name__", type(function).__name__)
    if getattr(function, "__module__", "") == "snntorch.surrogate":
        name = function.__qualname__.split(".")[0]
    else:
        name = f"{name} of your own"
    if name not in _SNNTORCH_SLOPES:
        raise Left(f"surrogate {name} has no equal here; accepted: {', '.join(_SNNTORCH_SLOPES)}")
    (number,) = inspect.getclosurevars(function).nonlocals.values()
    return _SNNTORCH_SLOPES[name](_number(number, f"the constant of surrogate {name}"))


_SNNTORCH_SLOPES: dict[str, Callable[[float], Surrogate]] = {
    "atan": Surrogate.atan,
    "fast_sigmoid": Surrogate.fast_sigmoid,
    "sigmoid": Surrogate.sigmoid,
}


def _snntorch_constants(leaky: Any) -> dict[str, Any]:
    """Arguments of ``Leaky``; Left where it has no equal."""
    for name in ("inhibition", "state_quant", "surrogate_disable"):
        if getattr(leaky, name) is not False:
            raise Left(f"{name}={getattr(leaky, name)}")
    factor = leaky.graded_spikes_factor
    if isinstance(factor, nn.Parameter) or factor.numel() != 1 or float(factor) != 1.0:
        raise Left("graded_spikes_factor: its spikes are not 0 and 1")
    if leaky.reset_mechanism == "subtract" and not leaky.reset_delay:
        raise Left(
            "reset_mechanism subtract without reset_delay subtracts twice after 2 thresholds"
        )
    return dict(
        beta=leaky.beta,
        v_threshold=leaky.threshold,
        v_reset=0.0 if leaky.reset_mechanism == "zero" else None,
        reset="none" if leaky.reset_mechanism == "none" else None,
        detach_reset=leaky.reset_delay,
        reset_delay=leaky.reset_delay,
        surrogate=_snntorch_surrogate(leaky.spike_grad),
    )


def _leaky(leaky: Any) -> SpikingNeuron:
    _snntorch_constants(leaky)
    raise Left(f"{_STEPWISE}; Leaky.from_snntorch(module) takes a whole window")


_STEPWISE = "it is called one step at a time, with its state"


def read_snntorch(leaky: nn.Module) -> dict[str, Any]:
    """Arguments of ``Leaky`` for a snnTorch Leaky; ValueError where it has no equal."""
    if not any(c.__module__ == "snntorch._neurons.leaky" for c in type(leaky).__mro__):
        raise ValueError(f"{type(leaky).__name__}; accepted: a snntorch.Leaky")
    try:
        return _snntorch_constants(leaky)
    except Left as reason:
        raise ValueError(f"{type(leaky).__name__} has no equal here: {reason}") from reason


# ---- norse

_NORSE_SLOPES: dict[str, Callable[[float], Surrogate]] = {
    "super": lambda alpha: Surrogate.super_spike(1.0),  # norse's does not use its alpha
    "triangle": lambda alpha: Surrogate("triangle", height=alpha, width=1.0),
    "tanh": lambda alpha: Surrogate("sigmoid", height=1.0, width=0.5 / alpha),
    "heavi_erfc": lambda alpha: Surrogate(
        "gaussian", height=2 / math.sqrt(math.pi), width=1 / (alpha * math.sqrt(2))
    ),
}


def _norse_constants(cell: Any) -> dict[str, Any]:
    """Arguments of ``Leaky``; Left where a cell has no equal."""
    p, leaks = cell.p, hasattr(cell.p, "tau_mem_inv")
    if p.method not in _NORSE_SLOPES:
        raise Left(f"method {p.method} has no equal here; accepted: {', '.join(_NORSE_SLOPES)}")
    rate = cell.dt * _number(p.tau_mem_inv, "tau_mem_inv") if leaks else 0.0
    if not 0 <= rate <= 1:
        raise Left(f"dt * tau_mem_inv = {rate}; accepted: 0 to 1")
    v_reset = p.v_reset
    if isinstance(v_reset, torch.Tensor) and not isinstance(v_reset, nn.Parameter):
        v_reset = v_reset.detach()  # norse's IAF marks it as learning, to start from it
    v_reset, threshold = _number(v_reset, "v_reset"), _number(p.v_th, "v_th")
    method = getattr(getattr(p, "reset_method", None), "__name__", "reset_value")
    rest = _number(p.v_leak, "v_leak") if leaks else v_reset
    if method not in ("reset_value", "reset_subtract"):
        raise Left(f"reset_method {method}; accepted: reset_value, reset_subtract")
    pull = v_reset if method == "reset_value" else 0.0
    if rest != pull:
        raise Left(f"v_leak {rest}; accepted: {pull}, where the reset goes")
    if threshold <= pull:
        raise Left(f"v_th {threshold}; accepted: above {pull}")
    return dict(
        beta=1 - rate,
        gain=rate if leaks else 1.0,
        v_threshold=threshold,
        v_reset=v_reset if method == "reset_value" else None,
        detach_reset=False,
        surrogate=_NORSE_SLOPES[p.method](_number(p.alpha, "alpha")),
    )


def _cell(cell: Any) -> SpikingNeuron:
    _norse_constants(cell)
    raise Left(f"{_STEPWISE}; Leaky.from_norse(module) takes a whole window")


def _behind_synapse(cell: Any) -> SpikingNeuron:
    raise Left("it filters its current by a synapse, which Leaky has not")


def read_norse(cell: nn.Module) -> dict[str, Any]:
    """Arguments of ``Leaky`` for a norse cell; ValueError where it has no equal."""
    kinds = [name for name, make in _LIBRARIES["norse"].items() if make is _cell]
    if any(c.__name__ in ("LIFCell", "LIF") and _of(c, "norse") for c in type(cell).__mro__):
        raise ValueError(
            f"{type(cell).__name__} filters its current by a synapse, which Leaky has not; accepted: "
            f"{', '.join(kinds)}"
        )
    if not any(c.__name__ in kinds and _of(c, "norse") for c in type(cell).__mro__):
        raise ValueError(f"{type(cell).__name__}; accepted: norse's {', '.join(kinds)}")
    try:
        return _norse_constants(cell)
    except Left as reason:
        raise ValueError(f"{type(cell).__name__} has no equal here: {reason}") from reason


_LIBRARIES: dict[str, dict[str, Callable[[Any], SpikingNeuron]]] = {
    "spikingjelly": {
        "IFNode": _if,
        "LIFNode": _lif,
        "ParametricLIFNode": _plif,
        "ILIFNode": _ilif,
        "ComplementaryLIFNode": _clif,
        "PSN": _parallel(lambda node, **options: PSN(node.T, **options)),
        "MaskedPSN": _parallel(lambda node, **options: MaskedPSN(node.k, node.T, **options)),
        "SlidingPSN": _parallel(lambda node, **options: SlidingPSN(node.k, **options)),
        "SimpleIFNode": _simple(_if),
        "SimpleLIFNode": _simple(_lif),
        "MultiStepIFNode": _if,
        "MultiStepLIFNode": _lif,
        "MultiStepParametricLIFNode": _plif,
    },
    "snntorch": {"Leaky": _leaky},
    "norse": {
        **dict.fromkeys(("LIFBoxCell", "IAFCell", "IAF"), _cell),
        **dict.fromkeys(("LIFCell", "LIF"), _behind_synapse),
    },
}
