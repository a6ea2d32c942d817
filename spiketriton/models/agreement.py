"""Whether the graph of a network, or the network in one step after another, gives the network's answers."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.models.graph import Graph, graph_of
from spiketriton.models.layers import folded
from spiketriton.models.network import Network, undisturbed
from spiketriton.neurons import SpikingNeuron, one_by_one
from spiketriton.plugins.tasks import has_time
from spiketriton.system.errors import UserError, one_line
from spiketriton_kernels import nn as kernels
from spiketriton_kernels import use_backend

AGREEMENT = 1e-3  # of the mean current: rounding may flip a spike that meets its threshold


def noise(model: Network, image: tuple[int, ...], frames: bool) -> Tensor:
    """Two images [2, C, H, W], recordings [T, 2, C, H, W] or sequences to compare a graph with its network by."""
    generator = torch.Generator().manual_seed(0)
    steps = (model.time_steps,) if frames else ()
    return torch.rand(*steps, 2, *image, generator=generator)


def counted_graph(model: Network, images: Tensor) -> Graph:
    """The graph of a network, if it gives the network's answers to images [B, C, H, W], [T, B, C, H, W] or [T, B, C].

    A subclass may compute something else than its class. In float64, by the neurons' definition. UserError: none does.
    """
    graph_of(model)
    twin = copy.deepcopy(model).cpu().double().eval()
    images = images.cpu().double()
    steps = len(images) if has_time(images) else twin.time_steps
    twin.reset()
    with torch.inference_mode(), one_by_one(twin), use_backend("torch"):
        ours = twin(images)
        try:
            theirs = _answers(graph_of(twin), images, steps).float()
            far = (ours - theirs).abs().mean() / ours.abs().mean().clamp_min(1e-30)
        except (RuntimeError, KeyError, TypeError) as error:  # shapes or names that do not fit
            raise UserError(f"its graph cannot be computed: {one_line(error)}") from None
    if not far <= AGREEMENT:
        raise UserError(
            f"the graph of {type(model).__name__} does not give its answers (currents differ by {far:.2g} of their "
            "mean): its features() computes something else than its layers in a row; accepted: a method graph()"
        )
    return graph_of(model)


def _answers(nodes: Graph, images: Tensor, steps: int) -> Tensor:
    """The currents [T, B, K] that a graph computes."""
    values: dict[str, Tensor] = {}
    for node in nodes.values():
        if node.kind == "input":
            shown = images if has_time(images) else images.expand(steps, *images.shape)
            values[node.name] = shown
            continue
        x = functools.reduce(torch.add, (values[name] for name in node.inputs))
        if node.kind == "mean":
            x = x.mean((3, 4))
        elif node.kind == "flatten":
            x = x.flatten(2)
        else:
            assert node.module is not None
            timed = node.kind in ("neuron", "norm")
            x = node.module(x) if timed else folded(node.module, x)
            x = x if node.norm is None else node.norm(x)
        values[node.name] = x
    return values["fc"]


@torch.no_grad()
def refuse_other_parts(
    model: Network, image: tuple[int, ...], set_stateful: Callable[[bool], None]
) -> None:
    """UserError: windows of noise [T, B, *image] have other answers one step at a time than as a whole.

    Once with the spikes that noise causes, and once with drawn ones in their place, as behind a silent layer everything
    would agree. set_stateful: the model's own, or what that is made of. The model is stateful afterwards, at the start
    of a window.
    """
    drawn = torch.randn(model.time_steps, 2, *image, generator=torch.Generator().manual_seed(0))
    window = torch.cat([drawn, drawn.abs(), 4 * drawn, 4 * drawn.abs()], 1)
    window = window.to(next(model.parameters(), drawn).device)
    for spikes in (nullcontext, partial(_drawn_spikes, model)):
        with undisturbed(model):
            set_stateful(False)
            with spikes():
                whole = model(window)
            set_stateful(True)
            with spikes():
                parts = torch.cat([model(frame.unsqueeze(0)) for frame in window])
        model.reset()
        if not model.answers_each_step:
            whole, parts = whole.mean(0), parts.mean(0)
        far = (parts - whole).abs().mean() / whole.abs().mean().clamp_min(1e-30)
        if not far <= AGREEMENT:
            raise UserError(
                f"{getattr(model, 'name', type(model).__name__)} answers otherwise to a window one step at a time than "
                f"to the whole (by {far:.2g} of the mean current): something in it reads other time steps, or begins "
                "anew in each call; accepted: predict, which shows whole windows"
            )


@contextmanager
def _drawn_spikes(model: Network) -> Iterator[None]:
    """Within the block every neuron answers its steps, counted from 0 on, with spikes drawn by neuron and step."""

    def answer(
        number: int, steps: Iterator[int], neuron: nn.Module, given: Any, out: Tensor
    ) -> Tensor:
        shown = out.unsqueeze(0) if getattr(neuron, "step_mode", "m") == "s" else out
        drawn = []
        for one in shown:
            generator = torch.Generator().manual_seed(1000 * next(steps) + number)
            drawn.append(torch.rand(one.shape, generator=generator).round())
        return torch.stack(drawn).view(out.shape).to(out)

    kinds = (SpikingNeuron, kernels.BatchNormLIF)
    neurons = [m for m in model.modules() if isinstance(m, kinds)]
    handles = [
        neuron.register_forward_hook(partial(answer, number, itertools.count()))
        for number, neuron in enumerate(neurons)
    ]
    try:
        with one_by_one(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
