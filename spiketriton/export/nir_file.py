"""Files of a trained network for other programs: read back, compared with the network, written where they agree."""

import copy
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiketriton.data import Data
from spiketriton.export.nir_graph import to_nir
from spiketriton.export.nir_replay import Stacked, replay
from spiketriton.export.plain import about
from spiketriton.models import Network
from spiketriton.neurons import one_by_one, told_of_spikes
from spiketriton.plugins.tasks import Reading, has_time, image_dim
from spiketriton.runs.rows import replace_file
from spiketriton.system.errors import need
from spiketriton.training.trained import TrainedRun
from spiketriton_kernels import use_backend

TIE = 1e-5  # of the threshold: nearer to it, rounding to float32 may decide whether a neuron fires


@dataclass(frozen=True)
class Place:
    """A spike that may be there or not."""

    node: str
    step: int
    image: int
    neuron: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Spikes of a NIR file against those of the network that it was written from."""

    spikes: int  # of the network
    compared: int  # neurons x time steps x images
    different: int
    first: Place | None  # of the first difference
    margin: float  # how far that membrane is from its threshold, as a share of it

    @property
    def agrees(self) -> bool:
        """Whether no spike differs, but for ties."""
        return self.different == 0 or self.margin < TIE


def export_nir(
    run: TrainedRun, path: Path, dt: float, images: int, mark: str = "spiketriton"
) -> Comparison:
    """Writes the network as NIR and compares the file with the network; `mark`: who wrote it (`runs.outputs`).

    UserError: NIR cannot express the network, nir is not installed, or the file cannot be written.
    """
    nir, h5py = need("nir", "nir"), need("h5py", "nir")

    reading = Reading(run.recipe.loss.read)
    graph = to_nir(
        run.model, run.facts.image_shape, dt, frames=bool(run.facts.frames), reading=reading
    )
    graph.metadata |= about(run)
    content = io.BytesIO()
    nir.write(content, graph)
    with h5py.File(content, "a") as file:
        file.attrs["written_by"] = np.bytes_(mark)
    found = compare(run.model, nir.read(content), sample_images(run.data, images))
    if found.agrees:
        replace_file(path, content.getvalue())
    return found


def sample_images(data: Data, count: int) -> Tensor:
    """The first `count` test images, recordings or sequences, and as many of noise: [..., 2 * count, C, H, W]."""
    found: list[Tensor] = []
    for images, *_ in data.test:
        found.append(images)
        dim = image_dim(images)
        if sum(one.shape[dim] for one in found) >= count:
            break
    real = torch.cat(found, dim)
    real = real.narrow(dim, 0, min(count, real.shape[dim]))
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([real, noise], dim)


@torch.no_grad()
def compare(
    model: Network, graph: Any, images: Tensor, nodes: Mapping[str, str] = MappingProxyType({})
) -> Comparison:
    """Replays a graph on images [B, C, H, W], frames [T, B, C, H, W] or sequences, and counts the spikes that differ.

    nodes: the graph's name of a layer, where it is another one. Both compute in float64, ours by the definition.
    """
    with use_backend("torch"):
        ours = spikes_of(copy.deepcopy(model).cpu().double(), images.cpu().double())
    steps = len(images) if has_time(images) else model.time_steps
    theirs, membranes = replay(graph, images.cpu().numpy(), steps)
    spikes = compared = different = 0
    found: list[tuple[int, int, Place, float]] = []  # step, layer, ...
    for index, (layer, expected) in enumerate(ours.items()):
        name = nodes.get(layer, layer)
        sent, membrane, thresholds = _decided(graph, name, theirs, membranes)
        wrong = np.argwhere(sent != expected)
        spikes, compared = spikes + int(expected.sum()), compared + expected.size
        different += len(wrong)
        if len(wrong):
            at = tuple(map(int, wrong[0]))
            margin = min(float(abs(membrane[at] / one[at[2:]] - 1)) for one in thresholds)
            found.append((at[0], index, Place(name, at[0], at[1], at[2:]), margin))
    _, _, first, margin = min(found, default=(0, 0, None, 0.0))
    return Comparison(spikes, compared, different, first, margin)


def _decided(
    graph: Any, name: str, given: Stacked, membranes: Stacked
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Of a neuron all of its spikes, the membrane that decided on them, and the thresholds of that."""
    node = graph.nodes.get(name)
    if hasattr(node, "v_threshold"):
        return given[name], membranes[name], [node.v_threshold]
    names = (
        [name] if node else [n for n in graph.nodes if re.fullmatch(rf"{re.escape(name)}\.\d+", n)]
    )
    spikes = np.sum([given[n] for n in names], axis=0)
    return spikes, membranes[f"{name}.membrane"], [graph.nodes[n].threshold for n in names]


def spikes_of(model: Network, images: Tensor) -> dict[str, np.ndarray]:
    """The spikes of each layer by name, [T, B, ...], norms and neurons one by one."""
    spikes: dict[str, np.ndarray] = {}

    def keep(name: str, out: Tensor) -> None:
        spikes[name] = out.numpy()

    with one_by_one(model), told_of_spikes(model.spiking_layers(), keep):
        model.eval()(images)
    return spikes
