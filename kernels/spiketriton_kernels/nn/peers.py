"""What other libraries' neurons are in ours: each peer's module by its name, without importing the library.

A module that means the same gives one of ours with the same constants and the same Parameter objects; any other
neuron gives the reason why it stays. Only a class itself is known, or a subclass that overrides nothing but its
constructor: what else a subclass changes cannot be seen from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..state_neuron import MAX_LEVELS
from ..surrogate import Surrogate
from .neurons import IF, LIF, PLIF, SpikingNeuron
from .states import CLIF, ILIF


class Left(Exception):
    """Why a peer's neuron is left as it is."""


def translate(module: nn.Module) -> SpikingNeuron | None:
    """Ours for a peer's neuron; None for what is no neuron. Raises ``Left`` with the reason for one that stays."""
    library = next((name for name in _LIBRARIES if _is_neuron(module, name)), None)
    if library is None:
        return None
    kinds = _LIBRARIES[library]
    kind = next((c.__name__ for c in type(module).__mro__ if _of(c, library)), "")
    own = _overridden(module, library)
    if own:
        raise Left(f"{type(module).__name__} is a {kind} that overrides {', '.join(own)}")
    if kind not in kinds:
        raise Left(f"{kind}: its equation is none of ours; swapped are {', '.join(kinds)}")
    ours = kinds[kind](module)
    extra = set(dict(module.named_parameters())) - set(dict(ours.named_parameters()))
    if extra:
        raise Left(f"{kind} with parameters of its own: {', '.join(sorted(extra))}")
    return ours


def _is_neuron(module: nn.Module, library: str) -> bool:
    return any(_of(cls, library) for cls in type(module).__mro__)


def _of(cls: type, library: str) -> bool:
    """Whether a class is one of the library's neurons: its module's path says so."""
    root, *rest = cls.__module__.split(".")
    return root == library and "neuron" in rest and issubclass(cls, nn.Module)


_HARMLESS = {"__module__", "__doc__", "__init__", "extra_repr", "__annotations__", "__qualname__"}
_HARMLESS |= {
    "__static_attributes__",
    "__firstlineno__",
    "__annotate_func__",
    "__annotations_cache__",
}


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
    if isinstance(value, torch.Tensor):
        if value.requires_grad or value.numel() != 1:
            raise Left(
                f"{name} is a tensor of shape {tuple(value.shape)} that no kernel constant holds"
            )
        return float(value)
    return float(value)


# ---- SpikingJelly


def _spikingjelly_surrogate(function: Any) -> Surrogate:
    name = type(function).__name__
    if (
        not type(function).__module__.startswith("spikingjelly.")
        or name not in _SPIKINGJELLY_SLOPES
    ):
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
    if getattr(node, "store_v_seq", False):
        raise Left("store_v_seq=True: a swapped neuron keeps the last membrane only")
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
        v_reset=None if node.v_reset is None else _number(node.v_reset, "v_reset"),
        surrogate=_spikingjelly_surrogate(node.surrogate_function),
    )


def _with_state(node: Any, ours: SpikingNeuron) -> SpikingNeuron:
    """A node in the middle of a window goes on from there."""
    v = getattr(node, "v", None)
    if isinstance(v, torch.Tensor):
        ours.v = v if v.dtype == torch.float64 else v.float()
    return ours


def _if(node: Any) -> SpikingNeuron:
    return _with_state(node, IF(**_spikingjelly_options(node)))


def _lif(node: Any) -> SpikingNeuron:
    decay_input = getattr(node, "decay_input", True)
    return _with_state(node, LIF(node.tau, decay_input, **_spikingjelly_options(node)))


def _plif(node: Any) -> SpikingNeuron:
    ours = PLIF(decay_input=getattr(node, "decay_input", True), **_spikingjelly_options(node))
    ours.w = node.w  # the same Parameter: optimizers and state_dicts go on
    ours.init_tau = float(1 + torch.exp(-node.w.detach().float()))
    return _with_state(node, ours)


def _ilif(node: Any) -> SpikingNeuron:
    count = node.surrogate_function
    window, levels = (count.grad_min, count.grad_max), int(count.max_spike_count)
    if window != (0, levels):
        raise Left(f"a gradient window of {window}; accepted: {(0.0, float(levels))}")
    if levels > MAX_LEVELS:
        raise Left(f"{levels} spikes a step; accepted: up to {MAX_LEVELS}")
    return _with_state(node, ILIF(node.tau, levels=levels, **_spikingjelly_call(node)))


def _clif(node: Any) -> SpikingNeuron:
    if node.store_state_seqs:
        raise Left("store_state_seqs=True: a swapped neuron keeps the last states only")
    slope = _spikingjelly_surrogate(node.surrogate_function)
    ours = CLIF(node.tau, surrogate=slope, **_spikingjelly_call(node))
    if isinstance(node.m, torch.Tensor):
        ours.m = node.m if node.m.dtype == torch.float64 else node.m.float()
    return _with_state(node, ours)


def _simple(make: Callable[[Any], SpikingNeuron]) -> Callable[[Any], SpikingNeuron]:
    """SimpleIFNode and SimpleLIFNode start at 0, not at v_reset."""

    def checked(node: Any) -> SpikingNeuron:
        if node.v_reset not in (None, 0.0):
            raise Left(f"{type(node).__name__} with v_reset {node.v_reset} starts at 0")
        return make(node)

    return checked


_LIBRARIES: dict[str, dict[str, Callable[[Any], SpikingNeuron]]] = {
    "spikingjelly": {
        "IFNode": _if,
        "LIFNode": _lif,
        "ParametricLIFNode": _plif,
        "ILIFNode": _ilif,
        "ComplementaryLIFNode": _clif,
        "SimpleIFNode": _simple(_if),
        "SimpleLIFNode": _simple(_lif),
        "MultiStepIFNode": _if,
        "MultiStepLIFNode": _lif,
        "MultiStepParametricLIFNode": _plif,
    },
}
