"""Credit through time: what of the loss's gradient reaches a time step by way of time alone.

    credit[t] = RMS(dL/dx[t] - dL/dx[t] with time cut) / RMS(dL/dx[last])

of each spiking layer, over its neurons and images: time is cut where no gradient goes from a step to the next, and the
spikes stay as they are; `last` is the last step that any gradient reaches, as it is read. A gradient is a sum over the
ways from the loss to a current, so the difference is the sum over those that lead through time at least once. What
is left where time is cut is `direct`, as the same share: all of it where the mean over time is read, nothing where the
last step is.

    remembered[t] = RMS(dL/dx[t]) / RMS(dL/dx[last]), both where no gradient goes through a reset, nor through spikes
    that come back by a matrix (`Recurrent`)

Both send a surrogate's slope from step to step, which may grow however little a membrane keeps: it says where spikes
would move, and not what is remembered (studies/through_time).

Batch norms take the statistics of the batch here, as in training, but as constants: through the mean that it subtracts
a norm hands a little of each step's gradient to every other step, whether or not anything was remembered there.
The loss is multiplied by 2^80, because the gradient of 200 steps with tau 2 is below what float32 can hold, and squares
are added up in float64. A layer that no gradient reaches has credit 0.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spiketriton.models import Network, trial
from spiketriton.neurons import SpikingNeuron, constant_statistics, one_by_one
from spiketriton.neurons.base import normalised
from spiketriton.neurons.norm import Norm, as_constants
from spiketriton.system.errors import UserError
from spiketriton_kernels import use_backend
from spiketriton_kernels.backends.choice import backend_for
from spiketriton_kernels.nn import Recurrent

SCALE = 2.0**80
MANY = 8  # steps, from which on calls side by side take less time
Layers = Sequence[tuple[str, SpikingNeuron]]
OURS = ("spiketriton.", "spiketriton_kernels.", "torch.nn.modules.")
_BATCH_NORM = inspect.signature(F.batch_norm)


@dataclass(frozen=True)
class Shares:
    """[layers, T]; infinite where a gradient is not finite."""

    credit: np.ndarray
    direct: np.ndarray
    remembered: np.ndarray


def through_time(
    model: nn.Module, layers: Layers, steps: int, loss: Callable[[], Tensor]
) -> Shares:
    """Two forward and backward passes, one with time cut, and a third where resets or returning spikes have gradients.

    The model is left as it was.

    layers: that are called, each for `steps` time steps. loss: runs the model, float32; the same each time.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def measured(cut: str = "") -> list[tuple[int, slice, Tensor]]:
        currents = [_Currents(steps) for _ in layers]
        watched = _watched(model, layers, cut=cut, currents=currents)
        alike = (
            trial(model), drawn_alike(device), torch.enable_grad(), constant_statistics(model)
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            for one in (*alike, watched):
                stack.enter_context(one)
            if _of_others(model):
                stack.enter_context(_ConstantStatistics())  # which looks at every call
            sample = next(model.parameters(), torch.empty(0))
            if backend_for(sample) == "triton":  # for these calls alone kernels would be compiled
                stack.enter_context(use_backend("torch"))
            return [*_gradients(loss(), currents)]

    whole, alone = measured(), measured(cut="time")
    returned = any(isinstance(module, Recurrent) for module in model.modules())
    with _resets_detached(layers) as attached:
        held = measured(cut="returned") if returned else measured() if attached else whole
    squares = np.zeros((4, len(layers), steps))
    for passes in zip(whole, alone, held, strict=True):
        layer, rows = passes[0][:2]
        all_of_it, cut, kept = (gradient for _, _, gradient in passes)
        for into, of in zip(squares, (all_of_it, kept, cut, all_of_it - cut), strict=True):
            into[layer, rows] += of.square().flatten(1).sum(1).cpu().numpy()
    credit, direct, remembered = share = np.zeros((3, len(layers), steps))
    for layer, of_steps in enumerate(squares[0]):
        if len(reached := np.flatnonzero(of_steps)):
            last = reached[-1]
            with np.errstate(divide="ignore", invalid="ignore"):
                direct[layer], credit[layer] = np.sqrt(squares[2:, layer] / of_steps[last])
                remembered[layer] = np.sqrt(squares[1, layer] / squares[1, layer, last])
    share[np.isnan(share)] = np.inf
    return Shares(credit, direct, remembered)


@contextlib.contextmanager
def _resets_detached(layers: Layers) -> Iterator[bool]:
    """Within the block no gradient goes through a reset; whether one does otherwise."""
    attached = [n for _, n in layers if not n.detach_reset and n.reset_mode != "none"]
    try:
        for neuron in attached:
            neuron.detach_reset = True
        yield bool(attached)
    finally:
        for neuron in attached:
            neuron.detach_reset = False


@contextlib.contextmanager
def cut_time(model: nn.Module) -> Iterator[None]:
    """Within the block no gradient goes from step to step; spikes stay as they are.

    The states of spiking neurons are detached between steps. Any other module that mixes time, as a parallel neuron
    does, has an attribute `cut_time`, which is true here.
    """
    with _watched(model, neurons_of(model), cut="time"):
        yield


@contextlib.contextmanager
def drawn_alike(device: torch.device) -> Iterator[None]:
    """Dropout draws the same in the block whenever it is measured; the random state is afterwards as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def neurons_of(model: nn.Module) -> list[tuple[str, SpikingNeuron]]:
    """Dotted name and neuron of each spiking layer."""
    if isinstance(model, Network):
        return model.spiking_layers()
    return [(name, m) for name, m in model.named_modules() if isinstance(m, SpikingNeuron)]


@dataclass
class _Currents:
    """Those of a layer, [n, B, ...] of each call, and the time steps that they are for."""

    steps: int
    kept: list[tuple[slice, Tensor]] = field(default_factory=list)
    seen: int = 0

    def keep(self, x: Tensor, window: int) -> None:
        row = 0
        if len(x) != self.steps:  # a part of a window of so many steps, over all calls
            row = self.seen * self.steps // (window or self.steps)
            self.seen += len(x)
        self.kept.append((slice(row, row + len(x)), x))


def _gradients(loss: Tensor, currents: Sequence[_Currents]) -> Iterator[tuple[int, slice, Tensor]]:
    """Of each layer's calls: its index, the steps, and dL/dx times an unknown number, float64."""
    places = [(i, rows, x) for i, layer in enumerate(currents) for rows, x in layer.kept]
    given = [x for _, _, x in places]
    if not (loss.requires_grad and given):
        raise UserError("the loss has no gradient; accepted: one that depends on the neurons")
    for scale in (SCALE, 1.0):  # what is not finite may have been so by the scale alone
        grads = torch.autograd.grad(
            loss * scale, given, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        if all(bool(grad.isfinite().all()) for grad in grads):
            break
    for (layer, rows, _), grad in zip(places, grads, strict=True):
        yield layer, rows, grad.double() * (SCALE / scale)


@contextlib.contextmanager
def _watched(
    model: nn.Module, layers: Layers, *, cut: str, currents: Sequence[_Currents] = ()
) -> Iterator[None]:
    """Within the block each call's currents are kept, and gradients are cut.

    cut: "time", all from step to step; "returned", those of spikes that come back by a matrix; "", none.
    """
    mixing = [m for m in model.modules() if hasattr(m, "cut_time")] if cut == "time" else []
    recomputed = [m for m in model.modules() if getattr(m, "checkpoint_blocks", False)]
    with one_by_one(model):  # so that each neuron is called by itself
        for module in recomputed:  # whose calls in the backward pass would be others
            setattr(module, "checkpoint_blocks", False)  # noqa: B010
        for index, (_, layer) in enumerate(layers):
            call: Any = layer.forward
            if cut and not hasattr(layer, "cut_time"):
                call = _stepwise(layer, spikes_alone=cut == "returned")
            if currents:
                call = partial(_kept, layer, call, currents[index])
            layer.forward = call  # type: ignore[method-assign]
            layer.begin()
        for module in mixing:
            setattr(module, "cut_time", True)  # noqa: B010
        try:
            yield
        finally:
            for module in mixing:
                setattr(module, "cut_time", False)  # noqa: B010
            for module in recomputed:
                setattr(module, "checkpoint_blocks", True)  # noqa: B010
            for _, layer in layers:
                del layer.forward  # the class's own is back


def _kept(
    neuron: SpikingNeuron,
    call: Callable[..., Tensor],
    currents: _Currents,
    given: Any,
    *matrix: Tensor,
) -> Tensor:
    """A call of a neuron whose current is kept, as a tensor of its own, which nothing else reads.

    matrix: by which its own spikes come back; that is not part of what is kept, and has the same gradient.
    """
    x = normalised(given)
    if torch._C._current_graph_task_id() != -1:  # a checkpoint repeats the call within backward
        return call(x, *matrix)
    x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    single = neuron.step_mode == "s"
    whole = x.unsqueeze(0) if single else x
    currents.keep(whole, neuron.window)
    return call(whole[0] if single else whole, *matrix)


def _stepwise(neuron: SpikingNeuron, *, spikes_alone: bool) -> Callable[..., Tensor]:
    """The forward of a neuron that calls it for one step after another, and detaches the states in between.

    The spikes that come back by a matrix are the last of these states. spikes_alone: no others are detached.
    """
    call = neuron.forward

    def detach() -> None:
        if spikes_alone:
            assert neuron.held is not None
            neuron.held = torch.cat([neuron.held[:-1], neuron.held[-1:].detach()])
        else:
            neuron.detach()

    def forward(x: Tensor, *matrix: Tensor) -> Tensor:
        if spikes_alone and not matrix:
            return call(x)
        if neuron.step_mode == "s":
            spikes = call(x, *matrix)
            detach()
            return spikes
        whole, continues, steps = neuron.probe, neuron.stateful, []
        x = normalised(x)  # by its batch norm, of which a step alone has other statistics
        neuron.stateful = True
        try:
            if whole is None and len(x) >= MANY and not spikes_alone:
                return _side_by_side(neuron, call, x, *matrix)
            for t in range(len(x)):
                if whole is not None and len(whole) == len(x):
                    neuron.probe = whole[t : t + 1]
                steps.append(call(x[t : t + 1], *matrix))
                detach()
        finally:
            neuron.stateful, neuron.probe = continues, whole
            if not continues:
                neuron.forget()
        return torch.cat(steps)

    return forward


def _side_by_side(
    neuron: SpikingNeuron, call: Callable[..., Tensor], x: Tensor, *matrix: Tensor
) -> Tensor:
    """The same of a stateful neuron: a call of each step without gradients, and one with them of all but the first.

    Steps that do not know of each other are images to that one, each with the states that the step before it left.
    """
    first, states = call(x[:1], *matrix), list[Tensor]()
    neuron.detach()
    with torch.no_grad():
        for t in range(1, len(x)):
            assert neuron.held is not None
            states.append(neuron.held)
            call(x[t : t + 1], *matrix)
    last, neuron.held = neuron.held, torch.cat(states, 1)
    rest = call(x[1:].flatten(0, 1).unsqueeze(0), *matrix)
    neuron.held = last
    return torch.cat([first, rest.view_as(x[1:])])


class _ConstantStatistics(TorchFunctionMode):
    """PyTorch's batch norms of a batch's own statistics take them as constants, through which no gradient goes."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        bound = _BATCH_NORM.bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = bound.arguments
        if given["training"]:
            return as_constants(*(given[name] for name in ("input", "weight", "bias", "eps")))
        return func(*bound.args, **bound.kwargs)


def _of_others(model: nn.Module) -> bool:
    """Whether a module may call PyTorch's batch norm: one of PyTorch's own, or not of this library."""
    return any(
        not isinstance(module, Norm)
        and (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            or not type(module).__module__.startswith(OURS)
        )
        for module in model.modules()
    )
