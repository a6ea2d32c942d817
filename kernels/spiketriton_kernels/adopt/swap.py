"""``swap``: our neurons in place of another library's, in any network, with a report of every one."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..neurons.base import SpikingNeuron
from .draws import seeded
from .fuse import fuse as fuse_norms
from .fuse import join
from .peers import is_neuron, translate
from .places import Places, in_place_of_relus


@dataclass
class SwapReport:
    """What ``swap`` did, by the modules' names in the network. ``print(report)`` lists it.

    Attributes:
        swapped: name -> what it was and what it is.
        left: name of a neuron that stays as it was -> why.
        fused: name of a swapped neuron -> name of the batch norm that now runs in its kernel.
        unfused: with ``fuse=True``, name of another swapped neuron -> why not.
        check: None, or the largest relative differences that ``check=batch`` found in either mode: "outputs",
            "gradients", "buffers", the "dtype" that it ran in, and the "modes": "training" and "eval", without the one
            in which the network itself fails, if it is not in it.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    unfused: dict[str, str] = field(default_factory=dict)
    check: dict[str, Any] | None = None

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} neurons, left {len(self.left)}"]
        lines += [
            f"  {name}: {what}" + (f", with {self.fused[name]}" if name in self.fused else "")
            for name, what in self.swapped.items()
        ]
        lines += [f"  {name}: left, {why}" for name, why in self.left.items()]
        lines += [f"  {name}: not fused, {why}" for name, why in self.unfused.items()]
        if self.check is not None:
            found = ", ".join(
                f"{k} differ by {v:.1e}" for k, v in self.check.items() if isinstance(v, float)
            )
            modes = " and ".join(self.check["modes"])
            lines.append(f"checked in {self.check['dtype']}, {modes} mode: {found}")
        return "\n".join(lines)


def swap(
    net: nn.Module, *, fuse: bool = False, check: Any = None, relu: SpikingNeuron | None = None
) -> SwapReport:
    """Puts our neurons in place of SpikingJelly's in a network, and perhaps of its ReLUs, in place; reports each.

    Swapped are SpikingJelly's IFNode, LIFNode, ParametricLIFNode (their Simple and MultiStep forms), ILIFNode and
    ComplementaryLIFNode (step_mode "m" and "s", every backend), PSN, MaskedPSN and SlidingPSN ("m"), with the same
    constants, the same Parameter objects and state_dict keys, their hooks, mode and membrane. They keep their membrane
    between calls until ``reset()`` (SpikingJelly's ``reset_net`` calls it), as the originals do. A module that is used
    in several places stays one module.

    Every other neuron of SpikingJelly, and all of snnTorch and norse, are left and named, with the reason. These
    libraries call theirs one step at a time; ``Leaky.from_snntorch`` and ``Leaky.from_norse`` make modules for a whole
    window, which is where the speed is.

    Args:
        net: any module that contains neurons. It must not be compiled or scripted yet.
        fuse: also join the batch norm in front of a neuron with it, where torch.fx shows in training and in eval mode
            that nothing else reads between, and with it the tensor that a residual block adds between the two. The norm
            stays the object that it is, and hands a ``Handed`` to the neuron: whatever else reads that raises.
        check: a batch (or a tuple of arguments) on which outputs, gradients and buffers are compared on copies before
            anything is changed, in the mode that net is in and in the other: in float64 where the network runs in it,
            so that rounding decides no spike.
        relu: a neuron whose copies take the place of every ``torch.nn.ReLU``, in training mode and with the membrane
            that it has: one for each place at which a forward calls it, as torch.fx shows, so that no two places share
            a membrane. A network of images takes one with ``step_mode="s"``, and is called once for each time step. A
            relu that is called as a function is named in ``left``.

    Returns:
        The report; ``print`` it.

    Raises:
        TypeError: net is no module, or is itself a neuron, which nothing can put another in place of; relu is no
            neuron.
        ValueError: a compiled or scripted part; ``check`` found a difference, and nothing was swapped; or it is given
            with ``relu``, whose spikes give other answers.
    """
    _refuse(net)
    if relu is not None and not isinstance(relu, SpikingNeuron):
        raise TypeError(
            f"relu is a {type(relu).__name__}; accepted: a SpikingNeuron, such as LIF()"
        )
    if relu is not None and check is not None:
        raise ValueError(
            "check compares answers, and with relu they are others; accepted: one of the two"
        )
    report = SwapReport()
    if check is not None:
        report.check = _compare(net, fuse, check)
    neurons = _put_in_place(net, report)
    if relu is not None:
        neurons |= _in_place_of_relus(net, relu, report)
    if fuse:
        report.fused, report.unfused = fuse_norms(net, neurons)
    _forget_lists_of_neurons()
    return report


def _refuse(net: object) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"net is a {type(net).__name__}; accepted: a torch.nn.Module that contains neurons"
        )
    if is_neuron(net):
        raise TypeError(
            f"net is a neuron itself ({type(net).__name__}); accepted: a module that contains neurons"
        )
    for name, module in net.named_modules():
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if compiled or isinstance(module, torch.jit.ScriptModule):
            what = "compiled by torch.compile" if compiled else "scripted by torch.jit"
            raise ValueError(f"{name or 'net'} is {what}; accepted: swap first, then compile")


def _put_in_place(net: nn.Module, report: SwapReport) -> dict[str, SpikingNeuron]:
    """Replaces what can be replaced; the new neurons by name, a shared one by its first."""
    # by id: ours, or why it stays; what it was
    made: dict[int, tuple[SpikingNeuron | str | None, str]] = {}
    kept: list[nn.Module] = []  # so that no id is given away twice
    neurons: dict[str, SpikingNeuron] = {}
    for parent_name, parent in list(net.named_modules()):
        for child_name, child in parent._modules.items():
            if child is None:
                continue
            name = f"{parent_name}.{child_name}" if parent_name else child_name
            if id(child) not in made:
                kept.append(child)
                kind = type(child).__name__
                try:
                    ours: SpikingNeuron | str | None = translate(child)
                except ValueError as reason:
                    ours = str(reason)
                made[id(child)] = ours, kind
                if isinstance(ours, SpikingNeuron):
                    _take_over(child, ours)
                    neurons[name] = ours
            ours, kind = made[id(child)]
            if isinstance(ours, str):
                report.left[name] = ours
            elif ours is not None:
                parent._modules[child_name] = ours
                report.swapped[name] = f"{kind} -> {type(ours).__name__}"
    return neurons


def _in_place_of_relus(
    net: nn.Module, relu: SpikingNeuron, report: SwapReport
) -> dict[str, SpikingNeuron]:
    """As ``_put_in_place``; of a ReLU that is called in several places each one's."""
    originals = dict(net.named_modules(remove_duplicate=False))
    swapped, left = in_place_of_relus(net, relu)
    report.left |= left
    neurons: dict[str, SpikingNeuron] = {}
    for name, module in swapped.items():
        _take_over(originals[name], module)
        several = isinstance(module, Places)
        inside = dict(module.named_children()) if several else {"": module}
        for place, neuron in inside.items():
            where = f", its call {int(place) + 1} of {len(inside)}" if several else ""
            path = f"{name}.{place}".rstrip(".")
            report.swapped[path] = f"ReLU{where} -> {type(neuron).__name__}"
            if neuron not in neurons.values():
                neurons[path] = neuron  # type: ignore[assignment]
    return neurons


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Mode and hooks. The dictionaries themselves, so that the handles of hooks still remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    new.train(old.training)


def _forget_lists_of_neurons() -> None:
    """SpikingJelly's reset_net remembers the modules of a network; the next call has to look again."""
    config = sys.modules.get("spikingjelly.activation_based.functional.net_config")
    remembered = getattr(config, "_RESET_MODULE_CACHE", None)
    if remembered is not None:
        remembered.clear()


# ---- check=batch

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


Call = Callable[..., Any]
"""Of a network and its inputs: its outputs."""


def _call(net: nn.Module, *inputs: Any) -> Any:
    return net(*inputs)


def _compare(net: nn.Module, fuse: bool, batch: Any) -> dict[str, Any]:
    """Runs copies of the network before and after on the batch; ValueError where they differ."""
    after = _copied(net)
    neurons = _put_in_place(after, SwapReport())
    if fuse:
        fuse_norms(after, neurons)
    try:
        return compare(net, after, batch if isinstance(batch, tuple) else (batch,))
    except Difference as error:
        raise ValueError(f"check: after swapping, {error}. Nothing was swapped") from None


def fuse_compared(net: nn.Module, report: SwapReport, inputs: tuple, call: Call) -> str:
    """``fuse`` of a network that is swapped already, if a copy then answers as before in both modes; in the report.

    Returns "", or why nothing was fused: what a copy answered.
    """
    names = [n for n in report.swapped if isinstance(net.get_submodule(n), SpikingNeuron)]
    try:
        after = _copied(net)
        fused, report.unfused = fuse_norms(after, {n: after.get_submodule(n) for n in names})  # type: ignore[misc]
        if fused:
            report.check = compare(net, after, inputs, call)
    except Exception as error:  # somebody else's code, which met a norm that hands its input on
        why = f"a copy with norms in the neurons' kernels answers otherwise: {' '.join(str(error).split())}"
        report.unfused = dict.fromkeys(names, why)
        return why
    join(net, after, fused)
    report.fused = fused
    return ""


class Difference(ValueError):
    """Two networks that should answer alike do not."""


def compare(
    before: nn.Module, after: nn.Module, inputs: tuple, call: Call = _call, *, backward: bool = True
) -> dict[str, Any]:
    """The largest relative differences of two networks, on copies, in training and in eval mode; ``Difference``.

    A mode in which the first is not, and fails, is left out. ``backward``: whether gradients are compared, too.
    """
    worst: dict[str, float] = {}
    dtypes, modes = set(), []
    for other in (False, True):
        try:
            mode, dtype, expected = _answers(before, other, inputs, call, backward)
        except Exception:  # of the network's own
            if not other:
                raise
            continue
        copied = _in_mode(_copied(after), other).to(dtype)
        found = _run(copied, _cast(inputs, dtype), call, backward)
        compared = {
            what: values for what, values in expected.items() if backward or what != "gradients"
        }
        apart = {what: _difference(found[what], values) for what, values in compared.items()}
        word = str(dtype).removeprefix("torch.")
        if not max(apart.values()) <= _TOLERANCE[dtype]:
            text = ", ".join(f"{kind} differ by {value:.1e}" for kind, value in apart.items())
            raise Difference(
                f"{text} of their size in {mode} mode ({word}); accepted: {_TOLERANCE[dtype]:.0e}"
            )
        worst = {kind: max(value, worst.get(kind, 0.0)) for kind, value in apart.items()}
        dtypes.add(word)
        modes.append(mode)
    return {**worst, "dtype": min(dtypes), "modes": modes}


def _answers(
    net: nn.Module, other: bool, inputs: tuple, call: Call, backward: bool
) -> tuple[str, torch.dtype, dict[str, dict[str, Tensor]]]:
    """(mode, dtype, what ``_run`` found) of a copy, in its own mode or the other."""
    for dtype in (torch.float64, torch.float32):
        copied = _in_mode(_copied(net), other).to(dtype)
        try:
            found = _run(copied, _cast(inputs, dtype), call, backward)
            return "training" if copied.training else "eval", dtype, found
        except RuntimeError:  # not every library computes in float64
            if dtype == torch.float32:
                raise
    raise AssertionError("the last dtype returns or raises")


def _in_mode(net: nn.Module, other: bool) -> nn.Module:
    return net.train(not net.training) if other else net


def _copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except RuntimeError as error:  # torch copies no tensor that has a graph
        raise ValueError(
            "check: the network cannot be copied, because it is in the middle of a window; "
            f"accepted: after reset_net(net), or without check ({error})".splitlines()[0]
        ) from error


def _cast(inputs: tuple, dtype: torch.dtype) -> tuple:
    def one(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(dtype, copy=True).requires_grad_()
        return value

    return pytree.tree_map(one, inputs)


def _run(net: nn.Module, inputs: tuple, call: Call, backward: bool) -> dict[str, dict[str, Tensor]]:
    """Outputs, gradients of a fixed random sum of them by parameters and inputs, and buffers, by name."""
    with seeded(), torch.enable_grad():
        outputs = [o for o in pytree.tree_leaves(call(net, *inputs)) if isinstance(o, Tensor)]
        for parameter in net.parameters():
            parameter.grad = None
        learning = [o for o in outputs if o.requires_grad and backward]
        if learning:
            torch.autograd.backward(learning, [torch.randn_like(o) for o in learning])
    leaves = enumerate(pytree.tree_leaves(inputs))
    learnt = {f"input {i}": v for i, v in leaves if isinstance(v, Tensor)}
    learnt |= dict(net.named_parameters())
    return {
        "outputs": {str(i): o.detach() for i, o in enumerate(outputs)},
        "gradients": {n: p.grad for n, p in learnt.items() if p.grad is not None},
        "buffers": {n: b.detach() for n, b in net.named_buffers() if b.is_floating_point()},
    }


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of the tensors' root mean square differences, each by its own size.

    A tensor of almost nothing beside the others is rounding (the gradient of a bias in front of a batch norm), and is
    measured by a millionth of theirs.
    """
    if found.keys() != expected.keys():
        return math.inf
    sizes = {name: _rms(value) for name, value in expected.items()}
    floor = 1e-6 * max(sizes.values(), default=0.0) or 1.0
    apart = {name: _rms(found[name].double() - expected[name].double()) for name in sizes}
    return max((apart[name] / max(size, floor) for name, size in sizes.items()), default=0.0)


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt()) if value.numel() else 0.0
