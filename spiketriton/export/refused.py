"""What a format cannot hold of a network, said before anything is traced, written or compared."""

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from spiketriton.export.nir_graph import refuse_nir
from spiketriton.export.one_step import refuse_step
from spiketriton.export.plain import KNOWN, as_onnx, example, on_cpu
from spiketriton.export.weights import refuse_weights
from spiketriton.system.errors import UserError, one_line
from spiketriton.training.trained import TrainedRun
from spiketriton_kernels import use_backend
from spiketriton_kernels.nn import SpikingNeuron


def refuse(run: TrainedRun, to: str, *, stream: bool = False) -> None:
    """UserError: the format cannot hold what the network is made of, as far as that can be known, and what in it."""
    if to == "nir":
        refuse_nir(run.model)
    elif to == "safetensors":
        refuse_weights(run)
    else:
        if stream:
            refuse_step(run)
        _refuse_code(run, to)


def _refuse_code(run: TrainedRun, to: str) -> None:
    """UserError: code that plain operators cannot say.

    The network is called once, on noise: what it decides by a value would be decided for ever by that of the call in
    which it is written down, and what it draws is drawn otherwise elsewhere. A step that runs as it is
    (`backend="eager"`) is then written down alone, with the currents of that call.
    """
    model, currents = on_cpu(run), dict[str, Tensor]()
    with _told_of_currents(model, currents), use_backend("torch"), torch.no_grad():
        images = example(run, 1)
        with _Watch(run, model, images, to):
            model(images)
    for name, current in currents.items():
        neuron = model.get_submodule(name)
        assert isinstance(neuron, SpikingNeuron)
        neuron.reset()
        window = current.unsqueeze(0) if neuron.step_mode == "m" else current
        try:
            with torch.no_grad():
                _ALONE[to](neuron, window)
        except Exception as error:  # of torch, of no common class
            raise UserError(
                f"{run.folder.path}: {name} is a {type(neuron).__name__}, whose step cannot be written with --to {to}: "
                f"{one_line(error)[:200]}; accepted: operations of which kernels can be made, or another format"
            ) from error


_ALONE: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch": lambda neuron, window: torch.export.export(neuron, (window,)),
    "onnx": lambda neuron, window: as_onnx(neuron, {"currents": window}, ["spikes"], {}),
}


@contextmanager
def _told_of_currents(model: nn.Module, currents: dict[str, Tensor]) -> Iterator[None]:
    """Within the block `currents` gets, by name, those of a step of each neuron whose step runs as it is."""

    def keep(name: str, neuron: nn.Module, given: Any) -> None:
        x = given[0]
        if isinstance(x, Tensor):  # or what a norm hands on
            currents.setdefault(name, x if getattr(neuron, "step_mode", "m") == "s" else x[0])

    handles = [
        neuron.register_forward_pre_hook(partial(keep, name))
        for name, neuron in model.named_modules()
        if isinstance(neuron, SpikingNeuron) and neuron.backend == "eager"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchDispatchMode):
    """Raises UserError where a value of the input is looked at, one is drawn, or an operator is somebody else's."""

    def __init__(self, run: TrainedRun, model: nn.Module, images: Tensor, to: str) -> None:
        super().__init__()
        self.path, self.to = run.folder.path, to
        self.names = {id(module): name for name, module in model.named_modules()}
        self.moves = WeakIdKeyDictionary()
        self.moves[images] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = str(func).removeprefix("aten.").partition(".")[0]
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._refuse(f"draws random numbers ({op}), and a file would draw others")
        if func.namespace not in KNOWN:
            self._refuse(
                f"calls {func.namespace}::{func.__name__.partition('.')[0]}, an operator of another library, without "
                "which no program could load the file"
            )
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        moves = any(one in self.moves for one in given)
        if moves and op in ("_local_scalar_dense", "is_nonzero", "equal"):
            self._refuse("decides by a value of its input (if, while, float(), .item())")
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out) if moves else ():
            if isinstance(one, Tensor):
                self.moves[one] = True
        return out

    def _refuse(self, what: str) -> None:
        name, place = "the network", ""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            module = frame.f_globals.get("__name__", "").partition(".")[0]
            if not place and module not in (
                "torch",
                "spiketriton",
                "spiketriton_kernels",
                "contextlib",
            ):
                file, line = frame.f_code.co_filename, frame.f_lineno
                place = f", line {line} of {file}: {linecache.getline(file, line).strip()}"
            if found := self.names.get(id(frame.f_locals.get("self"))):
                name = found
                break
            frame = frame.f_back
        raise UserError(
            f"{self.path}: {name} {what}{place}; accepted with --to {self.to}: the same operations for every input, as "
            "torch.where chooses"
        )
