"""Joins a batch norm and the spiking neuron behind it, where a graph shows that nothing else reads between.

torch.fx traces the network in training and in eval mode, or where it cannot the largest parts of it that it can, and
only what both show is joined. The norm stays the object that it is, but hands its input on (``Handed``); the neuron
normalises it in its own kernel, and adds what a residual block adds in between.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections import Counter, OrderedDict, deque
from typing import Any

import torch
from torch import fx, nn

from ..neurons.base import SpikingNeuron
from ..neurons.handed import hand_on
from ..neurons.recurrent import Recurrent
from .draws import drawn, undrawn

log = logging.getLogger("spiketriton_kernels")

_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
_FOLDS = ("reshape", "view", "unflatten", "contiguous")
"""What may lie between a norm of [T*B, C, ...] and a neuron of [T, B, C, ...]; checked in every call."""

_ADDS = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}
"""What may lie between, once, and becomes the residual of the fused operation."""
_IN_PLACE = (operator.iadd, "add_")


def fuse(
    net: nn.Module, neurons: dict[str, SpikingNeuron]
) -> tuple[dict[str, str], dict[str, str]]:
    """Joins what can be joined, in place. Returns ({neuron: norm}, {neuron: why it has none}), by names in the net."""
    places = Counter(id(m) for _, m in net.named_modules(remove_duplicate=False))
    fused: dict[str, str] = {}
    reasons: dict[str, str] = dict.fromkeys(neurons, "no graph of the part that calls it")

    def visit(prefix: str, part: nn.Module) -> None:
        inside = [n for n in neurons if n.startswith(prefix)]
        if not inside:
            return
        try:
            graphs = graphs_of(part, _Tracer())
        except Exception as error:  # of any kind: the user's code runs on proxies
            log.debug("no graph of %s: %s", prefix or "the network", error)
            for name in inside:
                what = f"{type(part).__name__}.forward"
                reasons[name] = f"torch.fx cannot trace {what}: {line(error)}"
            for child_name, child in part.named_children():
                visit(f"{prefix}{child_name}.", child)
            return
        for name in inside:
            found = _norm_in_every(part, prefix, graphs, name, places)
            if isinstance(found, str):
                reasons[name] = found
            else:
                norm_name, folded = found
                fused[name] = norm_name
                del reasons[name]
                _join(net, norm_name, folded)

    visit("", net)
    return fused, reasons


def graphs_of(part: nn.Module, tracer: fx.Tracer) -> dict[str, fx.Graph]:
    """Of a part in training mode, in eval mode, and as it is, where some of it is in the one and some in the other."""
    modules = list(part.modules())
    own = [m.training for m in modules]
    modes = {"training mode": [True] * len(own), "eval mode": [False] * len(own)}
    if own not in modes.values():
        modes["the mode that it is in"] = own
    graphs, held = {}, _held(part)
    for mode, flags in modes.items():
        began = drawn()
        try:
            for module, training in zip(modules, flags, strict=True):
                module.training = training
            with undrawn(devices=[]):
                graphs[mode] = tracer.trace(part)
                if drawn() != began:
                    raise ValueError(
                        f"in {mode} it draws random numbers, and others may give another graph"
                    )
        finally:  # forward has run on proxies, and may have kept one
            for container, content in held:
                container.clear()
                keep = container.extend if isinstance(container, list | deque) else container.update
                keep(content)
    return graphs


def _held(part: nn.Module) -> list[tuple[Any, Any]]:
    """Of each module its attributes, and what is in those that are containers, buffers among them."""
    attributes = [m.__dict__ for m in part.modules()]
    inside = [v for d in attributes for v in d.values() if type(v) in _CONTAINERS]
    return [(container, copy.copy(container)) for container in (*attributes, *inside)]


_CONTAINERS = (dict, OrderedDict, list, deque, set)


class _Tracer(fx.Tracer):
    """Goes into modules that contain neurons, and into plain Sequentials; all others are one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is nn.Sequential:
            return False
        return isinstance(m, SpikingNeuron | Recurrent) or not any(
            isinstance(c, SpikingNeuron) for c in m.modules()
        )


def _norm_in_every(
    part: nn.Module, prefix: str, graphs: dict[str, fx.Graph], name: str, places: Counter[int]
) -> tuple[str, bool] | str:
    """(name of the norm in front of the neuron in every graph, whether it sees folded steps), or why it has none."""
    found = {m: _norm_in_front(part, prefix, graph, name, places) for m, graph in graphs.items()}
    if len({*found.values()}) == 1:
        return next(iter(found.values()))
    for mode, reason in found.items():
        if isinstance(reason, str):
            return f"in {mode} {reason}"
    return f"it is behind another batch norm in {' than in '.join(found)}"


def _norm_in_front(
    part: nn.Module, prefix: str, graph: fx.Graph, name: str, places: Counter[int]
) -> tuple[str, bool] | str:
    """(name of the norm in front of the neuron, whether it sees folded steps), or why it has none."""
    target = name[len(prefix) :]
    neuron = part.get_submodule(target)
    calls = [n for n in graph.nodes if n.op == "call_module" and _is(part, n, neuron)]
    if len(calls) != 1:
        return f"it is called {len(calls)} times in {type(part).__name__}.forward"
    if places[id(neuron)] > 1:
        return "it is shared between several places"
    if not neuron.takes_norm:
        return f"{type(neuron).__name__} returns more than spikes"
    if neuron.step_mode != "m":
        return "a single step has other statistics than a window"
    if _has_hooks(neuron):
        return "hooks on it read the current"
    given = calls[0].args[0] if calls[0].args else None
    found = _norm_behind(part, prefix, graph, given, places)
    if isinstance(found, str):
        return found
    norm, path, folded = found
    changed = _changed_before(part, graph, norm.args[0], calls[0])
    if changed:
        return f"{changed} changes the input of {norm.target} in place before it is read"
    return prefix + path, folded


def _norm_behind(
    part: nn.Module,
    prefix: str,
    graph: fx.Graph,
    node: Any,
    places: Counter[int],
    folds: bool = False,
    added: bool = False,
) -> tuple[fx.Node, str, bool] | str:
    """(the norm's node, its path, whether it sees folded steps) from a node on back, or why there is none.

    Through folds, and through one addition of two tensors.
    """
    while isinstance(node, fx.Node) and node.op == "call_method" and node.target in _FOLDS:
        if len(node.users) > 1:
            return f"{node.name} in front of it is read elsewhere"
        node, folds = node.args[0], True
    if not added and isinstance(node, fx.Node) and node.target in _ADDS.get(node.op, ()):
        if len(node.users) > 1:
            return f"{node.name} in front of it is read elsewhere"
        if node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            return f"{node.name} in front of it adds more than a tensor"
        reasons = []
        for term in node.args:
            found = _norm_behind(part, prefix, graph, term, places, folds, added=True)
            if not isinstance(found, str):
                if node.target in _IN_PLACE and term is not node.args[0]:
                    return f"{node.name} in front of it changes {node.args[0]} in place"
                return found
            reasons.append(f"of {node.name} in front of it: {found}")
        return reasons[0]
    if not isinstance(node, fx.Node) or node.op != "call_module":
        what = node.name if isinstance(node, fx.Node) else "nothing"
        return f"{what} is in front of it, no batch norm"
    ending = _ending_norm(part.get_submodule(str(node.target)), str(node.target), folds)
    if isinstance(ending, str):
        return ending
    norm, path, container, folded = ending
    if len(node.users) > 1:
        return f"{node.target} in front of it is read elsewhere"
    calls = [n for n in graph.nodes if n.op == "call_module"]
    if sum(_is(part, n, norm) or n.target == node.target for n in calls) > 1:
        return f"{node.target} in front of it is called several times"
    if any(places[id(m)] > 1 for m in (norm, container)):
        return f"{path} in front of it is shared between several places"
    if _has_hooks(norm) or _has_hooks(container):
        return f"hooks on {path} read what it gives"
    if any(n.op == "get_attr" and str(n.target).startswith(f"{path}.") for n in graph.nodes):
        return f"{type(part).__name__}.forward reads a tensor of {path} in front of it"
    return node, path, folded


def _changed_before(part: nn.Module, graph: fx.Graph, y: Any, call: fx.Node) -> str:
    """The node that changes y, or what may be a view of it, in place before the neuron's call; "" for none."""
    views = {y}
    for node in graph.nodes:
        if node is call:
            break
        if not views.intersection(node.all_input_nodes):
            continue
        if node.op == "call_module":
            if getattr(part.get_submodule(str(node.target)), "inplace", False):
                return node.name
            continue
        word = getattr(node.target, "__name__", str(node.target))
        own = word.strip("_") in _OPERATORS or (word.endswith("_") and not word.startswith("_"))
        changed = node.args[:1] if own or node.kwargs.get("inplace") else [node.kwargs.get("out")]
        if views.intersection(changed):
            return node.name
        views.add(node)
    return ""


_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "imod", "setitem")


def _is(part: nn.Module, node: fx.Node, module: nn.Module) -> bool:
    return part.get_submodule(str(node.target)) is module


def _ending_norm(
    module: nn.Module, path: str, folds: bool
) -> tuple[nn.Module, str, nn.Module, bool] | str:
    """(norm, its path, what holds it, whether it sees folded steps) of a norm, or of a container that ends with one."""
    name = type(module).__name__
    root = type(module).__module__.split(".")[0]
    if root == "spikingjelly" and name == "SeqToANNContainer" and len(module._modules):
        last = list(module._modules)[-1]
        norm = module._modules[last]
        known = type(norm).__module__.startswith(("torch.nn.", "spikingjelly."))
        if known and type(norm).__name__ in _NORMS:
            return norm, f"{path}.{last}", module, True  # type: ignore[return-value]
    elif name in _NORMS and root == "torch" and folds:
        return module, path, module, True
    elif name in _NORMS and root == "torch":
        return f"{path} in front of it normalises what is not folded"
    elif name in _NORMS and root == "spikingjelly":
        if module.step_mode != "m":
            return f"{path} in front of it has step_mode 's'"
        return module, path, module, False
    return f"{path} ({name}) is in front of it, no batch norm"


def _has_hooks(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


def join(net: nn.Module, copied: nn.Module, fused: dict[str, str]) -> None:
    """Joins in a network what ``fuse`` joined in a copy of it."""
    for norm_name in fused.values():
        _join(net, norm_name, copied.get_submodule(norm_name).folded)  # type: ignore[arg-type]


def _join(net: nn.Module, norm_name: str, folded: bool) -> None:
    hand_on(net.get_submodule(norm_name), folded)


def line(error: Exception) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 120 else text[:117] + "..."
