"""What is asked of a module from elsewhere, and found in it: its answer, its calls, its states."""

import inspect
import traceback
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.system.errors import UserError, one_line
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.adopt import peers


@contextmanager
def failing(what: str, make: Callable[..., Any]) -> Iterator[None]:
    """The mistakes of somebody else's code in one line, with where in the file of `make` it is. UserError."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        file = getattr(getattr(make, "__code__", None), "co_filename", "")
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f" ({file}:{lines[-1]})" if lines else ""
        raise UserError(
            f"{what} failed: {type(error).__name__}: {one_line(error)}{where}"
        ) from error


_TASK = (
    ". The shape is that of the recipe's task, classification if loss.kind names no other; a task of your own has "
    "targets of any shape (docs/own_code.md)"
)


def wrong_answer(
    kind: str,
    found: Any,
    batch: int,
    steps: int,
    answer: tuple[int, ...],
    calls: Mapping[str, list[int]],
) -> str:
    """What is wrong with an answer, and what to change; "" for a good one.

    answer: the shape of the answer to an image. calls: see `watched`.
    """
    sizes, one = ("K", answer[0]) if len(answer) == 1 else ("...", None)
    whole, mean = [steps, batch, *answer], [batch, *answer]
    accepted = f"accepted: one tensor, [T, B, {sizes}] = {whole} or [B, {sizes}] = {mean}"
    if not isinstance(found, Tensor):
        size = f" of {len(found)}" if isinstance(found, tuple | list | dict) else ""
        return (
            f"returned a {type(found).__name__}{size}; {accepted}. Name a function that makes a module around it, "
            f"whose forward returns the one to train{_TASK}"
        )
    shape = list(found.shape)
    if shape == [batch, steps, *answer]:
        return f"returned [B, T, {sizes}] = {shape}; {accepted}, as transpose(0, 1) makes of it"
    if shape not in (whole, mean):
        if shape and one is not None and shape[-1] != one:
            return (
                f"gives {shape[-1]} numbers for {one} classes, a tensor of {shape}; {accepted}. Its argument "
                f"for the number of classes goes into [model.arguments]{_TASK}"
            )
        return f"returned a tensor of {shape} for {batch} images and {steps} time steps; {accepted}{_TASK}"
    if not found.is_floating_point() or not found.requires_grad:
        return (
            "gives an answer without a gradient, so that nothing can be learnt; accepted: one that is computed "
            "from its parameters, outside torch.no_grad() and without detach()"
        )
    windows = {name: sum(counts) for name, counts in calls.items()}
    if not windows or steps in windows.values():
        return ""
    name, window = next(iter(windows.items()))
    if kind == "time_first" and batch in windows.values():
        return (
            f"shows {name} as many time steps as there are images: it takes [B, T, ...]; accepted: [T, B, "
            "...]. Name a function that makes a module around it, whose forward swaps the two"
        )
    if shape == mean:  # an answer of each step says how many there are
        images = '. If they are the images of the batch: neurons with step_mode = "s"' * (
            window == batch
        )
        return (
            f"shows {name} {window} time steps, and time_steps = {steps}; accepted: time_steps = {window}, or the "
            "argument of the network that sets its steps, in [model.arguments]" + images
        )
    return ""


def shared_membrane(kind: str, calls: Mapping[str, list[int]], ours: Container[str]) -> str:
    """What is wrong where a neuron is called in several places of a network that is shown a step; "" for nothing.

    calls: see `watched`. ours: the neurons that were handed over as they are; another library's share their membrane
    there, too.
    """
    several = [
        n for n, counts in calls.items() if len(counts) > 1 and {*counts} == {1} and n in ours
    ]
    if kind == "time_first" or not several or [1] not in calls.values():
        return ""
    times = len(calls[several[0]])
    return (
        f"calls {several[0]} {times} times where it calls others once, so that several places share one membrane; "
        "accepted: a neuron for each place, as spiketriton_kernels.nn.swap(net, relu=...) puts there"
    )


def refuse_wrapped(name: str, net: nn.Module) -> None:
    """UserError: a part is compiled, or spread over devices, which `swap` or the trainer has to do later."""
    for part, module in net.named_modules():
        where = f"{name}: {part}" if part else name
        if hasattr(module, "_orig_mod"):
            raise UserError(
                f"{where} is compiled by torch.compile; accepted: the module itself, and train.compile = true"
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise UserError(
                f"{where} is a {type(module).__name__}; accepted: the module in it, and torchrun for several devices"
            )


def saved_buffers(net: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
    """Those that a checkpoint holds, by module and name."""
    return {
        (module, key): buffer
        for module in net.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None and key not in module._non_persistent_buffers_set
    }


def leaves_of(found: Tensor) -> list[Tensor]:
    """What learns of what a tensor was computed from."""
    nodes, seen, leaves = [found.grad_fn], set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        nodes += [following for following, _ in node.next_functions]
    return leaves


def constants_of(net: nn.Module) -> set[int]:
    """By id: the constants of norse's cells, which its IAF marks as learning to begin at one. A Parameter learns."""
    held = [getattr(m, "p", ()) for m in net.modules() if peers.is_neuron(m)]
    tensors = [t for p in held if isinstance(p, tuple) for t in p]
    return {id(t) for t in tensors if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)}


def hidden_modules(net: nn.Module) -> str:
    """Words about modules in plain lists, which the network does not know of."""
    known = set(net.modules())
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            held = value.values() if isinstance(value, dict) else value
            if key.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            if any(isinstance(one, nn.Module) and one not in known for one in held):
                kind = type(value).__name__
                return f": {f'{name}.{key}'.lstrip('.')} is a {kind} of modules, of which a Module does not know"
    return ""


def noise(batch: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def take_windows(net: nn.Module) -> None:
    """SpikingJelly's modules are called once a step unless they are told otherwise, as [T, B, ...] asks for."""
    single = [m for m in net.modules() if getattr(m, "step_mode", None) == "s"]
    if single and any(type(m).__module__.startswith("spikingjelly.") for m in single):
        from spikingjelly.activation_based import functional

        functional.set_step_mode(net, "m")


def needs_nothing(method: Callable[..., Any]) -> bool:
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


@contextmanager
def watched(net: nn.Module) -> Iterator[dict[str, list[int]]]:
    """By name, in the order of the first calls: how many steps each call of a neuron shows it."""
    calls: dict[str, list[int]] = {}

    def note(name: str, module: nn.Module, given: tuple) -> None:
        windows = getattr(module, "step_mode", "s") == "m" or hasattr(module, "record_states")
        x = getattr(given[0], "y", given[0]) if given else None
        calls.setdefault(name, []).append(len(x) if windows and isinstance(x, Tensor) else 1)

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in net.named_modules()
        if isinstance(module, kernels.SpikingNeuron) or peers.is_neuron(module)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def states_of(net: nn.Module) -> dict[str, Any]:
    """Tensors that modules hold beside their parameters, by name."""
    return {
        f"{name}.{key}" if name else key: value
        for name, module in net.named_modules()
        for key, value in (*vars(module).items(), *module._buffers.items())
        if isinstance(value, Tensor)
    }


def parameters_of(make: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # written in C
        return {}
