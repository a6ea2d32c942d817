"""Whether the graph of a network gives the network's answers."""

import copy
import functools

import torch
from torch import Tensor

from spiketriton.models.graph import Graph, graph_of
from spiketriton.models.layers import folded
from spiketriton.models.network import Network
from spiketriton.neurons import one_by_one
from spiketriton.plugins.tasks import has_time
from spiketriton.system.errors import UserError, one_line
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
