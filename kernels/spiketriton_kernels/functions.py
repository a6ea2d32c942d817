"""What the public functions share: each states its arguments and makes a ``Request`` of them, which is then answered.

By the kernels, or by the definition: a function and its ``..._reference`` are one signature and one reading of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec

import torch

from .arguments import check_call, check_float, check_input, check_like
from .neuron import Call, Inputs, Norm, Outputs, States, membrane_dtype
from .neurons.ilif import MAX_LEVELS
from .neurons.stepping import Stepping, Told
from .surrogate import Surrogate, own_surrogate
from .window.fire import fire, leaves

P = ParamSpec("P")
Reset = Literal["soft", "hard", "none"]
RESETS = ("soft", "hard", "none")
DEFAULT_SURROGATE = Surrogate("atan")
Several = tuple[torch.Tensor, ...]
"""Spikes, and behind them what else was asked for."""


def told(
    neuron: Any,
    surrogate: Surrogate,
    options: tuple[Any, ...],
    constants: tuple[float | torch.Tensor, ...],
) -> Told:
    """The checked record of a function's arguments, as far as they can be checked without an input.

    Args:
        neuron: its class. options, constants: in the order of the class's, without ``leaks_to_reset``.

    Raises:
        TypeError: a wrong type. ValueError: a wrong value. Both name what was given and what is accepted.
    """
    if type(surrogate) is Surrogate and type(surrogate.width) is float:
        plain = _PLAIN.issuperset(map(type, options)) and _NUMBERS.issuperset(map(type, constants))
        if plain and own_surrogate(surrogate.shape) is None and not torch.compiler.is_compiling():
            return _remembered(neuron, surrogate, options, constants)
    return _told(neuron, surrogate, options, constants)


_PLAIN, _NUMBERS = {str, bool}, {float, int}


@functools.lru_cache(maxsize=256)
def _remembered(neuron: Any, surrogate: Any, options: Any, constants: Any) -> Told:
    """Networks call a few neurons again and again: equal floats give equal records; surrogates never change."""
    made = _told(neuron, surrogate, options, constants)
    made.kept = {}
    return made


def _told(neuron: type[Stepping], surrogate: Any, chosen: Any, numbers: Any) -> Told:
    names = [name for name in neuron.options if name != "leaks_to_reset"]
    options: dict[str, Any] = dict(zip(names, chosen, strict=True))
    constants: dict[str, Any] = dict(zip(neuron.constants, numbers, strict=True))
    reset, detach_reset = options.get("reset_mode", "soft"), options.get("detach_reset", False)
    if reset not in RESETS:
        raise ValueError(f"reset {reset!r} is unknown; accepted: {', '.join(RESETS)}")
    if not isinstance(surrogate, Surrogate):
        raise TypeError(
            f"surrogate must be a spiketriton_kernels.Surrogate, got {type(surrogate).__name__}"
        )
    if not isinstance(detach_reset, bool):
        raise TypeError(f"detach_reset must be True or False, got {detach_reset!r}")
    levels = constants.get("levels", 1)
    if not isinstance(levels, int) or isinstance(levels, bool) or not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels {levels!r}: accepted: an integer from 1 to {MAX_LEVELS}")
    for name, value in constants.items():
        word = "threshold" if name == "v_threshold" else name
        if (
            not isinstance(value, torch.Tensor) or name == "v_reset"
        ):  # of which start and leak are chosen
            check_float(word, value)
            constants[name] = float(value)
        elif not value.is_floating_point():
            raise TypeError(f"{word} as a tensor must be floating point, got {value.dtype}")
    v_reset = constants.get("v_reset", 0.0)
    if options.get("reset_delay") and reset != "none" and (not detach_reset or v_reset != 0.0):
        raise ValueError(
            f"reset_delay goes with detach_reset=True and v_reset=0.0; got detach_reset={detach_reset}, "
            f"v_reset={v_reset}"
        )
    start = (0.0,) * len(neuron.states)
    if "leaks_to_reset" in neuron.options:
        options["leaks_to_reset"] = reset == "hard" and v_reset != 0.0
        start = (v_reset if options["leaks_to_reset"] else 0.0,)
    return Told(neuron, options, constants, surrogate, start)


class Request(NamedTuple):
    """A call: a neuron, and what ``fire`` takes."""

    inputs: Inputs
    neuron: Told
    call: Call
    norm: Norm | None = None
    probe: torch.Tensor | None = None


def stacked(x: Any, *states: torch.Tensor | None) -> torch.Tensor | None:
    """The states before a window in one tensor; None: all at their starts.

    TypeError, ValueError: one that does not fit x. What is not given beside another one is 0.
    """
    if not any([state is not None for state in states]) or not isinstance(x, torch.Tensor):
        return None
    dtypes, wide = (membrane_dtype(x.dtype), x.dtype), membrane_dtype(x.dtype)
    for name, state in zip(("v_init", "m_init"), states, strict=False):
        if state is not None:
            check_like(name, state, x, x.shape[1:], dtypes)
    given = [x.new_zeros(x.shape[1:], dtype=wide) if s is None else s.to(wide) for s in states]
    return torch.stack(given)


def by_kernels(function: Callable[P, Request]) -> Callable[P, Any]:
    """The public function of one that makes a request of its arguments."""

    @functools.wraps(function)
    def public(*args: P.args, **options: P.kwargs) -> Any:
        inputs, neuron, call, norm, probe = function(*args, **options)
        check_input("x" if norm is None else "y", inputs.x)
        if leaves():
            return _answer(neuron, neuron.define(inputs, call, norm, probe))
        return _answer(neuron, fire(inputs, neuron.record(inputs.x), call, norm, probe))

    public.__annotations__["return"] = "torch.Tensor | tuple"
    return public


def by_definition(public: Callable[..., Any], doc: str) -> Callable[..., Any]:
    """The definition of a public function, with its arguments but for the probe and the process group."""
    name = f"{public.__name__}_reference"

    @functools.wraps(public, updated=())
    def reference(*args: Any, smooth: bool = False, **options: Any) -> Any:
        inputs, neuron, call, norm, probe = public.__wrapped__(*args, **options)  # type: ignore[attr-defined]
        check_input("x" if norm is None else "y", inputs.x)
        check_call(inputs, neuron.record(inputs.x), norm)
        return _answer(neuron, neuron.define(inputs, call, norm, probe, smooth=smooth))

    reference.__name__ = reference.__qualname__ = name
    reference.__doc__ = doc
    return reference


def _answer(neuron: Told, out: Outputs) -> Any:
    """The spikes, with whatever else was asked for behind them."""
    if out.states is out.trace is out.current is None:
        return out.spikes
    if neuron.neuron.kind != "lif":
        assert out.states is not None
        v, *more = out.states.unbind()
        return out.spikes, States(v, more[0] if more else torch.zeros_like(v))
    v_last = None if out.states is None else out.states[0]
    found = (out.spikes, v_last, out.trace, out.current)
    return tuple(value for value in found if value is not None)
