"""Joins a batch norm and the spiking neuron behind it, where a graph shows that nothing else reads between.

torch.fx traces the network, or where it cannot the largest parts of it that it can. The norm stays in its place with
its parameters, buffers and keys, but hands its input on; the neuron normalises it in its own kernel, and adds what a
residual block adds in between.
"""

from __future__ import annotations

import copy
import functools
import logging
import operator
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .neurons import SpikingNeuron

log = logging.getLogger("spiketriton_kernels")

_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
_FOLDS = ("reshape", "view", "unflatten", "contiguous")
"""What may lie between a norm of [T*B, C, ...] and a neuron of [T, B, C, ...]; checked in every call."""

_ADDS = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}
"""What may lie between, once, and becomes the residual of the fused operation."""
_METHODS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_PLUS = (*_ADDS["call_function"], *(getattr(Tensor, name) for name in _METHODS))


@dataclass(eq=False)
class Handed:
    """What a norm hands on where something is added before the neuron: y, and what was added.

    It has only the operations that may lie between the two, so that no other can read a y that is not normalised.
    """

    y: Tensor
    residual: Tensor | None = None

    def plus(self, other: Tensor) -> Handed:
        if other.dtype != self.y.dtype:
            raise TypeError(
                f"{other.dtype} is added to a batch norm's {self.y.dtype} in front of a fused neuron; accepted: the "
                "same dtype, or swap without fuse"
            )
        return Handed(self.y, other.expand_as(self.y))

    __add__ = __radd__ = __iadd__ = add = add_ = plus

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Handed:
        if function not in _PLUS or kwargs:
            raise TypeError(
                f"{function} of a batch norm whose neuron normalises for it; accepted: one addition"
            )
        ours, other = args if isinstance(args[0], Handed) else args[::-1]
        return ours.plus(other)

    def _folded(self, method: str, *args: Any, **options: Any) -> Handed:
        y = getattr(self.y, method)(*args, **options)
        return Handed(y, None if self.residual is None else self.residual.reshape(y.shape))

    reshape = functools.partialmethod(_folded, "reshape")
    view = functools.partialmethod(_folded, "view")
    unflatten = functools.partialmethod(_folded, "unflatten")
    contiguous = functools.partialmethod(_folded, "contiguous")


class NormHandedOn(nn.Module):
    """A batch norm whose neuron normalises for it: the same tensors under the same names, and y is handed on as it is.

    Not a subclass of torch's batch norm, because tools that replace those (``convert_sync_batchnorm``) would make it
    normalise a second time.
    """

    def __init__(self, norm: nn.Module, folded: bool, adds: bool = False) -> None:
        super().__init__()
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
            setattr(self, name, getattr(norm, name))
        self._parameters = norm._parameters
        self._buffers = norm._buffers
        if hasattr(norm, "step_mode"):
            self.step_mode = norm.step_mode
        self.folded = folded
        self.adds = adds
        self.seen: tuple[int, ...] = ()
        self.train(norm.training)

    def forward(self, y: Tensor) -> Tensor | Handed:
        if self.folded:
            self.seen = tuple(y.shape[1:])
        return Handed(y) if self.adds else y

    def check(self, x: Tensor) -> None:
        """Refuses currents [T, B, C, ...] that are no unfolding of the y [T*B, C, ...] handed on."""
        if self.folded and tuple(x.shape[2:]) != self.seen:
            raise ValueError(
                f"a fused neuron got {tuple(x.shape)} of a batch norm that was called with "
                f"[T*B, {', '.join(map(str, self.seen))}]; accepted: the same, unfolded"
            )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


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
        held = _held(part)
        try:
            graph = _Tracer().trace(part)
        except Exception as error:  # of any kind: the user's code runs on proxies
            log.debug("no graph of %s: %s", prefix or "the network", error)
            for name in inside:
                what = f"{type(part).__name__}.forward"
                reasons[name] = f"torch.fx cannot trace {what}: {_line(error)}"
            graph = None
        for container, content in held:  # forward has run on proxies, and may have kept one
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(content)
        if graph is None:
            for child_name, child in part.named_children():
                visit(f"{prefix}{child_name}.", child)
            return
        for name in inside:
            found = _norm_in_front(part, prefix, graph, name, places)
            if isinstance(found, str):
                reasons[name] = found
            else:
                fused[name] = found[0]
                del reasons[name]
                _join(net, neurons[name], *found)

    visit("", net)
    return fused, reasons


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
        return isinstance(m, SpikingNeuron) or not any(
            isinstance(c, SpikingNeuron) for c in m.modules()
        )


def _norm_in_front(
    part: nn.Module, prefix: str, graph: fx.Graph, name: str, places: Counter[int]
) -> tuple[str, bool, bool] | str:
    """(name of the norm in front of the neuron, whether it sees folded steps, whether something is added behind it).

    Or why there is none.
    """
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
    return _norm_behind(part, prefix, graph, calls[0].args[0] if calls[0].args else None, places)


def _norm_behind(
    part: nn.Module,
    prefix: str,
    graph: fx.Graph,
    node: Any,
    places: Counter[int],
    folds: bool = False,
    added: bool = False,
) -> tuple[str, bool, bool] | str:
    """``_norm_in_front`` from a node on: through folds, and through one addition of two tensors."""
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
                return found
            reasons.append(f"of {node.name} in front of it: {found}")
        return reasons[0]
    if not isinstance(node, fx.Node) or node.op != "call_module":
        what = node.name if isinstance(node, fx.Node) else "nothing"
        return f"{what} is in front of it, no batch norm"
    ending = _ending_norm(part.get_submodule(str(node.target)), str(node.target), folds)
    if isinstance(ending, str):
        return ending
    norm, path, container = ending
    if len(node.users) > 1:
        return f"{node.target} in front of it is read elsewhere"
    calls = [n for n in graph.nodes if n.op == "call_module"]
    if sum(_is(part, n, norm) or n.target == node.target for n in calls) > 1:
        return f"{node.target} in front of it is called several times"
    if any(places[id(m)] > 1 for m in (norm, container)):
        return f"{path} in front of it is shared between several places"
    if _has_hooks(norm) or _has_hooks(container):
        return f"hooks on {path} read what it gives"
    return prefix + path, folds, added


def _is(part: nn.Module, node: fx.Node, module: nn.Module) -> bool:
    return part.get_submodule(str(node.target)) is module


def _ending_norm(
    module: nn.Module, path: str, folds: bool
) -> tuple[nn.Module, str, nn.Module] | str:
    """(norm, its path, what holds it) of a norm, or of a container over folded steps that ends with one."""
    kind = type(module).__name__
    root = type(module).__module__.split(".")[0]
    if root == "spikingjelly" and kind == "SeqToANNContainer" and len(module._modules):
        last = list(module._modules)[-1]
        norm = module._modules[last]
        known = type(norm).__module__.startswith(("torch.nn.", "spikingjelly."))
        if known and type(norm).__name__ in _NORMS:
            return norm, f"{path}.{last}", module  # type: ignore[return-value]
    elif kind in _NORMS and root == "torch" and folds:
        return module, path, module
    elif kind in _NORMS and root == "torch":
        return f"{path} in front of it normalises what is not folded"
    elif kind in _NORMS and root == "spikingjelly":
        if module.step_mode != "m":
            return f"{path} in front of it has step_mode 's'"
        return module, path, module
    return f"{path} ({kind}) is in front of it, no batch norm"


def _has_hooks(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


def _join(net: nn.Module, neuron: SpikingNeuron, norm_name: str, folded: bool, adds: bool) -> None:
    parent_name, _, child_name = norm_name.rpartition(".")
    holder = net.get_submodule(parent_name)._modules
    norm = NormHandedOn(holder[child_name], folded, adds)  # type: ignore[arg-type]
    holder[child_name] = norm
    neuron.handed_on = (norm,)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 120 else text[:117] + "..."
