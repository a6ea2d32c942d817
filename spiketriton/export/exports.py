"""Files of a trained network for other programs: read back, compared with the network, written where they agree."""

import copy
import inspect
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spiketriton.data import Data
from spiketriton.export.nir_graph import to_nir
from spiketriton.export.nir_replay import replay
from spiketriton.models import Network
from spiketriton.neurons import one_by_one, told_of_spikes
from spiketriton.neurons.base import normalised
from spiketriton.plugins.tasks import Reading, has_time, image_dim
from spiketriton.runs.rows import replace_file
from spiketriton.system.errors import UserError, need, one_line
from spiketriton.training.trained import TrainedRun
from spiketriton_kernels import nn as kernels
from spiketriton_kernels import use_backend

CLOSE = 1e-3  # of the largest current: rounding differs between two programs, a spike that differs is more
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
        wrong = np.argwhere(theirs[name] != expected)
        spikes, compared = spikes + int(expected.sum()), compared + expected.size
        different += len(wrong)
        if len(wrong):
            at = tuple(map(int, wrong[0]))
            threshold = graph.nodes[name].v_threshold[at[2:]]
            margin = float(abs(membranes[name][at] / threshold - 1))
            found.append((at[0], index, Place(name, at[0], at[1], at[2:]), margin))
    _, _, first, margin = min(found, default=(0, 0, None, 0.0))
    return Comparison(spikes, compared, different, first, margin)


def spikes_of(model: Network, images: Tensor) -> dict[str, np.ndarray]:
    """The spikes of each layer by name, [T, B, ...], norms and neurons one by one."""
    spikes: dict[str, np.ndarray] = {}

    def keep(name: str, out: Tensor) -> None:
        spikes[name] = out.numpy()

    with one_by_one(model), told_of_spikes(model.spiking_layers(), keep):
        model.eval()(images)
    return spikes


@torch.no_grad()
def export_torch(run: TrainedRun, path: Path, batch_size: int, mark: str = "spiketriton") -> float:
    """Writes `torch.export` of the network and reads it back: the largest difference of currents. UserError."""
    images = run.to_device(_example(run, batch_size))
    program = torch.export.export(run.model, (images,))
    with warnings.catch_warnings():
        # torch warns so about each buffer that is not part of a larger one
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        marks = {"written_by": mark, "read": run.recipe.loss.read}
        content = io.BytesIO()  # torch aborts the process where it cannot write a file itself
        torch.export.save(program, content, extra_files=marks)
        content.seek(0)
        again = torch.export.load(content).module()
    difference = float((again(images) - run.model(images)).abs().max())
    if difference == 0:
        replace_file(path, content.getvalue())
    return difference


@torch.no_grad()
def export_onnx(
    run: TrainedRun, path: Path, batch_size: int = 0, mark: str = "spiketriton"
) -> float:
    """Writes the network as ONNX of plain operators, its neurons the kernels' definition, and runs it in onnxruntime.

    Returns the largest difference of currents, as a share of the largest current. batch_size: images of a call; 0:
    any number, for which calls with several numbers are compared. UserError: onnx or onnxruntime is not installed, a
    neuron is not LIF's kind, the code of a network fixes the number of images, the file cannot be written.
    """
    onnx, onnxruntime = need("onnx", "onnx"), need("onnxruntime", "onnx")
    model = copy.deepcopy(run.model).cpu().float()
    plain = copy.deepcopy(model)
    images = _example(run, batch_size or _TRACED)
    content = io.BytesIO()
    axes = {"images": {images.ndim + image_dim(images): "images"}, "currents": {1: "images"}}
    with (
        one_by_one(plain),
        warnings.catch_warnings(),
        _AnyNumberOfImages(),
    ):
        for name, module in plain.named_modules():
            if isinstance(module, kernels.Recurrent):
                what = f"{name} has its spikes back (model.recurrent), which is not written as ONNX"
                raise UserError(f"{what}; accepted: model.recurrent = false, and --to torch")
            if isinstance(module, kernels.SpikingNeuron):
                if module.kind != "lif":
                    what = f"{name} is a {type(module).__name__}, which is not written as ONNX"
                    raise UserError(f"{what}; accepted: IF, LIF and PLIF")
                module.forward = partial(_by_definition, module)  # type: ignore[method-assign]
        warnings.simplefilter("ignore")  # the tracer's, of checks that hold for this size
        torch.onnx.export(
            plain,
            (images,),
            content,  # type: ignore[arg-type]
            dynamo=False,
            input_names=["images"],
            output_names=["currents"],
            dynamic_axes=None if batch_size else axes,
        )
    written = onnx.load_model_from_string(content.getvalue())
    written.metadata_props.add(key="written_by", value=mark)
    written.metadata_props.add(key="read", value=run.recipe.loss.read)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # an error is raised, too
    session = onnxruntime.InferenceSession(
        written.SerializeToString(), quiet, providers=["CPUExecutionProvider"]
    )
    worst = 0.0
    for size in [batch_size] if batch_size else _COMPARED:
        images = _example(run, size)
        expected = model(images)
        try:
            found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
            if found.shape != expected.shape:
                raise ValueError(f"{size} images gave {list(found.shape)}")
        except Exception as error:  # onnxruntime's own, of no common class
            raise UserError(
                f"the code of {run.recipe.model.name} fixes the number of images ({one_line(error)[-120:]}); "
                "accepted: --batch-size N, for a file that takes N at a time"
            ) from error
        far = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
        worst = max(float(far), worst)  # NaN, if it is one
    if worst < CLOSE:
        replace_file(path, written.SerializeToString())
    return worst


_TRACED, _COMPARED = 2, (1, 2, 5)  # images of a call: that is traced, that are compared


class _AnyNumberOfImages(TorchFunctionMode):
    """`unflatten` as torch's, which the tracer writes down with the very number of images that it was shown."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.unflatten:
            return func(*args, **(kwargs or {}))
        x, dim, sizes = inspect.signature(Tensor.unflatten).bind(*args, **(kwargs or {})).args
        known = (int(sizes[0]), -1) if len(sizes) == 2 else tuple(sizes)
        return x.reshape(*x.shape[:dim], *known, *x.shape[dim + 1 :])


def _by_definition(neuron: kernels.SpikingNeuron, x: Tensor) -> Tensor:
    """A neuron's forward pass in plain operators."""
    x = normalised(x)
    single = neuron.step_mode == "s"
    x = x.unsqueeze(0) if single else x
    spikes, states = neuron.define_from(x, neuron.held)
    if neuron.keeps_state:
        neuron.held = states
    return spikes[0] if single else spikes


def _example(run: TrainedRun, batch_size: int) -> Tensor:
    """Noise of the shape that the network is shown, on the CPU."""
    shape: tuple[int, ...] = (batch_size, *run.facts.image_shape)
    if run.facts.frames:
        shape = (run.time_steps, *shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
