"""A neuron for each place at which a network calls a ReLU: what ``swap(net, relu=...)`` does.

A ReLU has no state, and many networks call one module in several places. Neurons in its place that keep a membrane
would share it there, so each place gets its own. torch.fx shows in training and in eval mode how often a forward calls
a module; where it cannot, the ReLU stays.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neurons.base import SpikingNeuron
from .fuse import graphs_of, line
from .peers import is_neuron

_FUNCTIONS = (
    torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_, "relu", "relu_"
)  # fmt: skip


class Places(nn.ModuleList):
    """The neurons in place of one module that each forward of a network calls so many times, in the order of calls.

    RuntimeError: a forward calls it more or fewer times, or it is called outside of one.
    """

    def __init__(self, neurons: list[SpikingNeuron], name: str) -> None:
        super().__init__(neurons)
        self.name, self.called = name, 0

    def forward(self, x: Tensor) -> Tensor:
        """By the neuron of the next place."""
        if self.called == len(self):
            raise RuntimeError(
                self._refusal("once more", "forward of the network that was swapped")
            )
        self.called += 1
        return self[self.called - 1](x)

    def complete(self) -> None:
        """A forward ends here."""
        if self.called != len(self):
            raise RuntimeError(
                self._refusal(f"{self.called} times", "forward that always calls it")
            )

    def _refusal(self, times: str, accepted: str) -> str:
        return (
            f"{self.name} has {len(self)} neurons, one for each place at which a forward calls it, and is called "
            f"{times}; accepted: a {accepted}"
        )


class _Begin:
    """Before each forward of the network: the next call is at the first place."""

    def __init__(self, places: list[Places]) -> None:
        self.places = places

    def __call__(self, net: nn.Module, given: Any) -> None:
        for place in self.places:
            place.called = 0


class _End(_Begin):
    """Behind each."""

    def __call__(self, net: nn.Module, given: Any, out: Any = None) -> None:
        for place in self.places:
            place.complete()


def in_place_of_relus(
    net: nn.Module, neuron: SpikingNeuron
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Puts copies of a neuron in place of a network's ReLUs. Returns ({name: what is there}, {name: why it stays})."""
    names: dict[int, list[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if name and type(module) is nn.ReLU:
            names.setdefault(id(module), []).append(name)
    try:
        graphs = graphs_of(net, _Whole())
    except Exception as error:  # of any kind: the user's code runs on proxies
        why = f"torch.fx cannot trace {type(net).__name__}.forward, which would show its calls: {line(error)}"
        return {}, dict.fromkeys([n for own in names.values() for n in own] or [""], why)
    calls = {
        mode: Counter(
            id(net.get_submodule(str(n.target))) for n in graph.nodes if n.op == "call_module"
        )
        for mode, graph in graphs.items()
    }
    swapped: dict[str, nn.Module] = {}
    left = _functions(net, graphs)
    for key, own in names.items():
        counts = {mode: found[key] for mode, found in calls.items()}
        times = {*counts.values()}
        if times == {0}:
            left |= dict.fromkeys(own, "no forward calls it, as far as torch.fx sees")
        elif len(times) > 1 and times != {0, 1}:
            words = " and ".join(f"{count} times in {mode}" for mode, count in counts.items())
            left |= dict.fromkeys(own, f"it is called {words}")
        else:
            made = [copy.deepcopy(neuron) for _ in range(max(times))]
            swapped |= dict.fromkeys(own, made[0] if len(made) == 1 else Places(made, own[0]))
    for name, module in swapped.items():
        parent, _, child = name.rpartition(".")
        net.get_submodule(parent)._modules[child] = module
    places = [m for m in dict.fromkeys(swapped.values()) if isinstance(m, Places)]
    if places:
        net.register_forward_pre_hook(_Begin(places))
        net.register_forward_hook(_End(places))
    return swapped, left


class _Whole(fx.Tracer):
    """Goes into everything but neurons and modules of torch.nn."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        neuron = isinstance(m, SpikingNeuron) or is_neuron(m)
        return neuron or super().is_leaf_module(m, module_qualified_name)


def _functions(net: nn.Module, graphs: dict[str, fx.Graph]) -> dict[str, str]:
    """What computes a ReLU without a module of it, by where it is called."""
    found: dict[str, str] = {}
    for graph in graphs.values():
        for node in graph.nodes:
            where = [*node.meta.get("nn_module_stack", {"": None})][-1]
            if node.op in ("call_function", "call_method") and node.target in _FUNCTIONS:
                found[f"{where}.forward".lstrip(".")] = (
                    f"it calls relu as a function ({node.name}), which no module stands for"
                )
    for name, module in net.named_modules():
        if any(value in _FUNCTIONS[:4] for value in vars(module).values() if callable(value)):
            found[name] = f"{type(module).__name__} calls relu as a function"
    return found
