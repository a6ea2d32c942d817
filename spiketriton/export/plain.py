"""A network in plain operators, for programs without spiketriton: `torch.export` and ONNX.

Where a call is written down, a neuron gives the operators of its `step` (`spiketriton_kernels.window.fire.leaves`), so
that every neuron leaves in the same way, one of somebody's own included: up to `UNROLLED` steps one by one, of a longer
window one step and a loop, which is torch's scan and ONNX's Scan.
"""

import copy
import inspect
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

from spiketriton.plugins.tasks import image_dim
from spiketriton.runs.rows import replace_file
from spiketriton.system.errors import UserError, need, one_line
from spiketriton.training.trained import TrainedRun
from spiketriton_kernels.neurons.definition import UNROLLED, OneStep, Walk
from spiketriton_kernels.nn import SpikingNeuron

CLOSE = 1e-3  # of the largest current: rounding differs between two programs, a spike that differs is more
ROUNDING = 1e-6  # of the largest pixel: what moves an answer by a spike may as well be another order of sums
_MOVED = 16  # times


@dataclass(frozen=True)
class Compared:
    """A file's currents against the network's.

    Attributes:
        difference: the largest, as a share of the largest current.
        hanging: images that are left out, because a spike in them hangs on rounding: their currents differ, and the
            network's own do so, too, when its pixels move by `ROUNDING`.
        images: all that were compared, with these.
    """

    difference: float
    hanging: int
    images: int

    @property
    def agrees(self) -> bool:
        """Whether at least half of the images is left, and is the same but for rounding."""
        return self.difference < CLOSE and 2 * self.hanging <= self.images

    def and_of(self, other: "Compared") -> "Compared":
        """Of both together; what has no image left says nothing."""
        known = [one.difference for one in (self, other) if one.hanging < one.images]
        worst = max(known, key=lambda far: math.inf if math.isnan(far) else far, default=math.inf)
        return Compared(worst, self.hanging + other.hanging, self.images + other.images)

    def __str__(self) -> str:
        said = f"currents differ by {self.difference:.1e} of the largest"
        if not self.hanging:
            return said
        return f"{said}, but for {self.hanging} of {self.images} images, in which a spike hangs on rounding"


@torch.no_grad()
def export_torch(
    run: TrainedRun, path: Path, batch_size: int, mark: str = "spiketriton"
) -> Compared:
    """Writes `torch.export` of the network on a CPU in float32, and compares what is read back.

    UserError: the file cannot be written, or torch cannot export the code of the network.
    """
    model = on_cpu(run)
    images = example(run, batch_size)
    content = io.BytesIO()  # torch aborts the process where it cannot write a file itself
    marks = {"written_by": mark, "read": run.recipe.loss.read}
    with _quiet(), named(run, "torch.export"):
        program = torch.export.export(model, (images,))
        torch.export.save(program, content, extra_files=marks)
        content.seek(0)
        again = torch.export.load(content).module()
    found = compared(model, images, again(images))
    if found.agrees:
        replace_file(path, content.getvalue())
    return found


@torch.no_grad()
def export_onnx(
    run: TrainedRun, path: Path, batch_size: int = 0, mark: str = "spiketriton"
) -> Compared:
    """Writes the network as ONNX in float32, and compares what onnxruntime makes of it.

    batch_size: images of a call; 0: any number, for which calls with several numbers are compared. UserError: onnx or
    onnxruntime is not installed, the code of a network fixes the number of images or cannot be written, the file
    cannot be written.
    """
    need("onnx", "onnx")
    need("onnxruntime", "onnx")
    model = on_cpu(run)
    images = example(run, batch_size or TRACED)
    axes = {"images": {images.ndim + image_dim(images): "images"}, "currents": {1: "images"}}
    with named(run, "ONNX"):
        written = as_onnx(model, {"images": images}, ["currents"], {} if batch_size else axes)

    def answers(session: Any, size: int) -> tuple[Tensor, Tensor]:
        images = example(run, size)
        return images, torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return write_onnx(written, run, path, batch_size, model, answers, {"written_by": mark})


def write_onnx(
    written: Any,
    run: TrainedRun,
    path: Path,
    batch_size: int,
    net: nn.Module,
    answers: Callable[[Any, int], tuple[Tensor, Tensor]],
    words: Mapping[str, str],
) -> Compared:
    """Writes an `onnx.ModelProto` of a run if it answers as its network; see `export_onnx`.

    answers: of a session of onnxruntime and a number of images, such images and its currents. words: metadata.
    """
    onnxruntime = need("onnxruntime", "onnx")
    for key, value in {**words, "read": run.recipe.loss.read}.items():
        written.metadata_props.add(key=key, value=value)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # an error is raised, too
    session = onnxruntime.InferenceSession(
        written.SerializeToString(), quiet, providers=["CPUExecutionProvider"]
    )
    every = Compared(math.inf, 0, 0)
    for size in [batch_size] if batch_size else _COMPARED:
        try:
            every = every.and_of(compared(net, *answers(session, size)))
        except Exception as error:  # onnxruntime's own, of no common class
            raise UserError(
                f"the code of {run.recipe.model.name} fixes the number of images ({one_line(error)[-120:]}); "
                "accepted: --batch-size N, for a file that takes N at a time"
            ) from error
    if every.agrees:
        replace_file(path, written.SerializeToString())
    return every


TRACED, _COMPARED = 2, (1, 2, 5)  # images of a call: that is traced, that are compared


def on_cpu(run: TrainedRun) -> nn.Module:
    """A copy of the network that every machine can run, in float32."""
    return copy.deepcopy(run.model).cpu().float()


def example(run: TrainedRun, batch_size: int) -> Tensor:
    """Noise of the shape that the network is shown, on the CPU."""
    shape: tuple[int, ...] = (batch_size, *run.facts.image_shape)
    if run.facts.frames:
        shape = (run.time_steps, *shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compared(net: nn.Module, images: Tensor, found: Tensor) -> Compared:
    """Currents [T, B, ...] of a file against those of the network, image by image. ValueError: another shape."""
    expected = net(images)
    if found.shape != expected.shape:
        raise ValueError(f"currents of shape {list(found.shape)} for {list(expected.shape)}")
    largest = expected.abs().max().clamp_min(1e-12)

    def apart(other: Tensor) -> Tensor:
        return (other - expected).abs().transpose(0, 1).flatten(1).amax(1) / largest

    far, hang = apart(found), torch.zeros(expected.shape[1], dtype=torch.bool)
    if bool((far >= CLOSE).any()):
        draw = torch.Generator().manual_seed(1)
        for _ in range(_MOVED):
            by = torch.randn(images.shape, generator=draw)
            hang |= apart(net(images + ROUNDING * images.abs().max() * by)) >= CLOSE
        hang &= far >= CLOSE
    kept = far[~hang]
    worst = float(kept.max()) if len(kept) else math.inf
    return Compared(worst, int(hang.sum()), len(far))


@contextmanager
def named(run: TrainedRun, what: str) -> Iterator[None]:
    """What goes wrong in there is about the code of the network."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of torch, of no common class, or of somebody's code
        raise UserError(
            f"{run.folder.path}: {run.recipe.model.name} cannot be written by {what}: {one_line(error)[:300]}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings: of each buffer that is no part of a larger one, of a list without tensors."""
    log = logging.getLogger("torch._export.serde.serialize")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No complete tensor found in the group")
            yield
    finally:
        log.setLevel(level)


# ---- ONNX


@torch.no_grad()
def as_onnx(
    net: nn.Module,
    given: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> Any:
    """The `onnx.ModelProto` of a module, its neurons in plain operators.

    Args:
        net: any module; that of a step with its states as arguments and results, too.
        given: an example of each argument, by the name that it gets.
        outputs: the names of its results.
        dynamic: of an argument or result the dimensions that may have any size, each with a name.

    Raises what torch raises where an operator has no translation.
    """
    onnx = need("onnx", "onnx")
    windows: list[_Step] = []
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, SpikingNeuron) and type(module).walk is SpikingNeuron.walk:
            module.walk = partial(_walk, module, windows)  # type: ignore[method-assign]
    written = onnx.load_model_from_string(_traced(net, given, outputs, dynamic))
    bodies = [
        onnx.load_model_from_string(_traced(window, *window.signature)).graph for window in windows
    ]
    for node in written.graph.node:
        if node.domain == _DOMAIN:
            _make_scan(node, bodies[node.attribute[0].i])
    kept = [one for one in written.opset_import if one.domain != _DOMAIN]
    del written.opset_import[:]
    written.opset_import.extend(kept)
    return written


def _traced(
    net: nn.Module,
    given: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), _no_graphs(), _Translatable():
        warnings.simplefilter("ignore")  # the tracer's, of checks that hold for this size
        torch.onnx.export(
            net,
            tuple(given.values()),
            content,  # type: ignore[arg-type]
            dynamo=False,
            input_names=list(given),
            output_names=list(outputs),
            dynamic_axes={name: dict(sizes) for name, sizes in dynamic.items()},
        )
    return content.getvalue()


@contextmanager
def _no_graphs() -> Iterator[None]:
    """Without the whole graph, which torch prints where an operator has no translation; the error names that.

    It comes from C++, and torch turns the switch of it on by itself.
    """
    sys.stdout.flush()
    shown = os.dup(1)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(shown, 1)
        os.close(shown)


class _Translatable(TorchFunctionMode):
    """What the tracer writes down only for the very sizes that it was shown, or not at all, in other words.

    `unflatten`, for which it fixes the number of images; `batch_norm` without weights, or by the statistics of its
    batch, which it translates only where it knows the number of channels, or that of images. And `_SAID`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.unflatten:
            x, dim, sizes = inspect.signature(func).bind(*args, **(kwargs or {})).args
            known = (int(sizes[0]), -1) if len(sizes) == 2 else tuple(sizes)
            return x.reshape(*x.shape[:dim], *known, *x.shape[dim + 1 :])
        if func is batch_norm:
            given = inspect.signature(func).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments["weight"] is None or given.arguments["training"]:
                return _normalised(*given.args)
        if say := _SAID.get(getattr(func, "__name__", "").removeprefix("special_")):
            return say(*args)
        return func(*args, **(kwargs or {}))


_SAID: dict[str, Callable[[Tensor], Tensor]] = {
    "expm1": lambda x: torch.tanh(x / 2) * (torch.exp(x) + 1),
    "trunc": lambda x: torch.sign(x) * torch.floor(x.abs()),
}
"""What a step may call and ONNX does not know, by what it knows."""


def _normalised(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`torch.nn.functional.batch_norm` in plain operators, but that running statistics stay as they are."""
    if training:
        dims = [0, *range(2, x.ndim)]
        centre = x.mean(dims, keepdim=True)
        away = x - centre
        y = away * (away.square().mean(dims, keepdim=True) + eps).rsqrt()
    else:
        assert mean is not None
        assert var is not None
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = (x - mean.view(shape)) * (var + eps).rsqrt().view(shape)
    for constant, join in ((weight, torch.mul), (bias, torch.add)):
        if constant is not None:
            y = join(y, constant.view(1, -1, *[1] * (x.ndim - 2)))
    return y


# ---- long windows in ONNX: an operator of ours while torch traces the network, then a Scan of one traced step

_DOMAIN = "spiketriton"


def _walk(
    neuron: SpikingNeuron,
    windows: list["_Step"],
    step: OneStep,
    current: Tensor,
    states: Sequence[Tensor],
    trace: bool,
) -> Walk:
    """`SpikingNeuron.walk`, which leaves long windows for later."""
    if trace or len(current) <= UNROLLED or neuron.backend == "eager":
        return SpikingNeuron.walk(neuron, step, current, states, trace)
    spikes, *after = _Window.apply(len(windows), current, *states)
    windows.append(_Step(step, current, states))
    return Walk(spikes, after, None)


class _Window(torch.autograd.Function):
    """Stands for a window; what it gives has the shapes alone."""

    @staticmethod
    def forward(ctx: Any, place: int, current: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return torch.zeros_like(current), *[state.clone() for state in states]

    @staticmethod
    def symbolic(g: Any, place: int, current: Any, *states: Any) -> Any:
        made = g.op(f"{_DOMAIN}::Window", current, *states, place_i=place, outputs=1 + len(states))
        for one, like in zip(made, (current, *states), strict=True):
            one.setType(like.type())
        return made


class _Step(nn.Module):
    """A step of a neuron with its constants, for which its states are arguments and results."""

    def __init__(self, step: OneStep, current: Tensor, states: Sequence[Tensor]) -> None:
        super().__init__()
        self.step = OneStep({}, step.run)
        self.numbers = {k: v for k, v in step.constants.items() if not isinstance(v, Tensor)}
        self.tensors = {
            k: v.detach().clone() for k, v in step.constants.items() if isinstance(v, Tensor)
        }
        names = [f"state{i}" for i in range(len(states))]
        given = {n: v.detach().clone() for n, v in zip(names, states, strict=True)}
        given["current"] = current[0].detach().clone()
        after = [f"{name}_after" for name in names] + ["spikes"]
        self.signature = given, after, {name: {0: "images"} for name in (*given, *after)}

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        spikes, after = self.step.run(given[-1], given[:-1], self.numbers | self.tensors)
        return *after, spikes


def _make_scan(node: Any, body: Any) -> None:
    """Makes ONNX's Scan of a node `_Window`, by the graph of its step."""
    onnx = need("onnx", "onnx")
    prefix = f"{node.output[0]}/"
    for one in body.node:  # a name in a loop may be no name outside
        one.name = prefix + one.name
        one.input[:] = [prefix + name if name else "" for name in one.input]
        one.output[:] = [prefix + name for name in one.output]
    for one in (*body.input, *body.output, *body.initializer):
        one.name = prefix + one.name
    del body.value_info[:]
    body.name = prefix + "step"
    current, *states = node.input
    spikes, *after = node.output
    scan = onnx.helper.make_node(
        "Scan", [*states, current], [*after, spikes], name=node.name, body=body, num_scan_inputs=1
    )
    node.CopyFrom(scan)
