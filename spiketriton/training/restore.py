"""A checkpoint's state against that of the trainer which takes it: what is damaged or forged is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spiketriton.system.errors import UserError
from spiketriton.training.randomness import set_random_state

_ELSEWHERE = ("recipe", "name", "version", "data")  # not taken from it, or looked at before


def refuse_damage(path: Path, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """UserError: a part of a checkpoint in `path` is missing, or has not the form of the trainer's own.

    Sets the random generators.
    """
    try:
        for name, part in own.items():
            if name == "optimizer":
                _compare_optimizer(given.get(name), part)
            elif name == "random":
                _compare_random(given.get(name), part)
            elif name == "model":
                _compare_weights(given.get(name), part)
            elif name == "scaler" and given.get(name) == {}:
                continue  # of a session that did not scale its loss
            elif name not in _ELSEWHERE and (isinstance(part, Mapping) or name in given):
                _compare(given.get(name), part, name)
        if given.get("step", 0) < 0:
            raise ValueError(f"step is {given['step']}")
    except ValueError as error:
        raise UserError(f"{path}: the checkpoint is damaged: {error}") from None


def _compare(given: Any, own: Any, where: str) -> None:
    """ValueError: `given` lacks a key of `own`, or has other shapes, lengths or kinds of values."""
    if not _alike(given, own):
        raise ValueError(f"{where} is {_short(given)} where it should be as {_short(own)}")
    if isinstance(own, Mapping):
        for name in own:
            _compare(given[name], own[name], f"{where}.{name}")
    elif isinstance(own, list | tuple):
        for at, (one, other) in enumerate(zip(given, own, strict=True)):
            _compare(one, other, f"{where}[{at}]")


def _alike(given: Any, own: Any) -> bool:
    if isinstance(own, Tensor):
        return isinstance(given, Tensor) and (given.shape, given.dtype) == (own.shape, own.dtype)
    if isinstance(own, Mapping):
        return isinstance(given, Mapping) and own.keys() <= given.keys()
    if isinstance(own, list | tuple):
        return isinstance(given, list | tuple) and len(given) == len(own)
    integer = type(given) is int and abs(given) < 2**53
    if type(own) is int:
        return integer
    if own is None or type(own) is float:
        return integer or type(given) is float or (own is None and given is None)
    return type(given) is type(own)


def _compare_weights(given: Any, own: Mapping[str, Any]) -> None:
    """A neuron's extra state is its surrogate's width: a number, or [0] where the neuron learns it."""
    weights = {name: value for name, value in own.items() if not name.endswith("_extra_state")}
    _compare(given, weights, "model")
    if absent := own.keys() - given.keys():
        raise ValueError(f"model lacks {min(absent)}")
    for name in given:
        if name not in own:
            raise ValueError(f"model.{_short(name)} is not known")
        if name not in weights and isinstance(own[name], Tensor):
            width = given[name]
            if not (isinstance(width, Tensor) and width.numel() <= 1 and bool((width > 0).all())):
                raise ValueError(f"model.{name} is {_short(width)} where it should be a width")


def _compare_optimizer(given: Any, own: Mapping[str, Any]) -> None:
    """A parameter that has got no gradient yet has no state."""
    _compare(given, {**own, "state": {}}, "optimizer")
    state = {number: own["state"].get(number) for number in given["state"]}
    _compare(given["state"], state, "optimizer.state")
    numbers = [[group["params"] for group in part["param_groups"]] for part in (given, own)]
    if numbers[0] != numbers[1]:
        raise ValueError("optimizer.param_groups has other parameters")


def _compare_random(given: Any, own: Mapping[str, Any]) -> None:
    _compare(
        given, {**own, "cuda": given.get("cuda")} if isinstance(given, dict) else own, "random"
    )
    if not 0 <= given["numpy"][2] <= 624:  # numpy itself does not look
        raise ValueError("random.numpy is no state of its generator")
    try:
        set_random_state(given)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"random: {error}") from None


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
