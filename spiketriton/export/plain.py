"""A network in plain operators, for programs without spiketriton: `torch.export` and ONNX.

Where a call is written down, a neuron gives the operators of its `step` (`spiketriton_kernels.window.fire.leaves`), so
that every neuron leaves in the same way, one of somebody's own included: up to `UNROLLED` steps one by one, of a longer
window one step and a loop, which is torch's scan and ONNX's Scan.
"""

import copy
import inspect
import io
import json
import logging
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

from spiketriton.data.sequences import drawn_order
from spiketriton.export.followed import Compared, Spikes, Told, by_name, compared
from spiketriton.plugins.tasks import image_dim
from spiketriton.runs.rows import replace_file
from spiketriton.system.errors import UserError, need, one_line
from spiketriton.training.trained import TrainedRun
from spiketriton_kernels.neurons.definition import UNROLLED, OneStep, Walk
from spiketriton_kernels.nn import SpikingNeuron


@torch.no_grad()
def export_torch(
    run: TrainedRun, path: Path, batch_size: int, mark: str = "spiketriton"
) -> Compared:
    """Writes `torch.export` of the network on a CPU in float32, and compares what is read back.

    UserError: the file cannot be written, or torch cannot export the code of the network.
    """
    model = on_cpu(run)
    images = example(run, batch_size)
    marks = {"written_by": mark, **about(run)}

    def written(net: nn.Module) -> tuple[bytes, Any]:
        content = io.BytesIO()  # torch aborts the process where it cannot write a file itself
        with _quiet(), named(run, "torch.export"):
            program = torch.export.export(net, (images,))
            _refuse_operators(run, program)
            torch.export.save(program, content, extra_files=marks)
            content.seek(0)
            return content.getvalue(), torch.export.load(content).module()

    def told() -> tuple[Tensor, Tensor, Spikes]:
        teller = Told(model, [images])
        currents, *spikes = written(teller)[1](images)
        return answers, currents, by_name(teller.names, spikes)

    content, again = written(model)
    answers = again(images)
    found = compared(model, images, answers, told)
    if found.agrees:
        replace_file(path, content)
    return found


def about(run: TrainedRun) -> dict[str, str]:
    """What a program needs to know beside the network, in JSON: how to prepare its input and to read its output.

    read: what is read of the output, "mean" or "last". classes: their names. mean, std: of each channel, of pixels in
    0..1 or of the values of sequences; the network sees values less the mean, divided by std. counts: in their place
    of recordings, what the network sees of n events. sequence: how images became sequences (`data.sequence`). order:
    of "permuted" the pixel of each step, counted row by row.
    """
    facts = run.facts
    words = {"read": run.recipe.loss.read, "classes": json.dumps(facts.classes)}
    if facts.move == "events":
        return words | {"counts": COUNTS[facts.count]}
    words |= {name: json.dumps(getattr(facts, name)) for name in ("mean", "std")}
    if facts.sequence not in ("", "given"):
        words["sequence"] = facts.sequence
    if facts.sequence == "permuted":
        words["order"] = json.dumps(drawn_order(facts.frames, facts.sequence_seed).tolist())
    return words


COUNTS = {"log": "ln(1 + n)", "clip": "min(n, 1)", "raw": "n"}
"""By `data.count`."""


def _refuse_operators(run: TrainedRun, program: torch.export.ExportedProgram) -> None:
    """UserError: one of another library, which some modules call only where they are written down."""
    parts = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    targets = [node.target for part in parts for node in part.graph.nodes]
    called = [one for one in targets if isinstance(one, torch._ops.OpOverload)]
    for one in called:
        if one.namespace not in KNOWN:
            raise UserError(
                f"{run.folder.path}: {run.recipe.model.name} calls {one.name()}, an operator of another library, "
                "without which no program could load the file; accepted: PyTorch's own operators"
            )


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

    def answers(session: Any, size: int) -> tuple[Tensor, list[Tensor]]:
        images = example(run, size)
        return images, list(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

    traced = Traced(model, {"images": images}, ["currents"], {} if batch_size else axes, "images")
    return write_onnx(traced, run, path, batch_size, model, answers, {"written_by": mark})


@dataclass(frozen=True)
class Traced:
    """What `as_onnx` is given.

    Attributes:
        images: the name of the dimension that images are, where it may have any size.
        inside: the name of the network in `net`, with a dot; "": it is the network.
    """

    net: nn.Module
    given: Mapping[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]]
    images: str
    inside: str = ""

    def written(self) -> Any:
        """The `onnx.ModelProto`."""
        return as_onnx(self.net, self.given, self.outputs, self.dynamic)

    def told(self) -> tuple[Any, list[str]]:
        """The same with spikes as further outputs, and the names of their neurons."""
        net = Told(self.net, [*self.given.values()])
        names = [f"spikes {i} of {name}" for i, name in enumerate(net.names)]
        sizes = {name: {1: self.images} for name in names} if self.dynamic else {}
        written = as_onnx(net, self.given, [*self.outputs, *names], {**self.dynamic, **sizes})
        return written, [name.removeprefix(self.inside) for name in net.names]


def write_onnx(
    traced: Traced,
    run: TrainedRun,
    path: Path,
    batch_size: int,
    net: nn.Module,
    answers: Callable[[Any, int], tuple[Tensor, list[Tensor]]],
    words: Mapping[str, str],
) -> Compared:
    """Writes a run as ONNX if the file answers as its network; see `export_onnx`.

    answers: of a session of onnxruntime and a number of images, such images, the currents and what else the file
    tells. words: metadata.
    """
    onnxruntime = need("onnxruntime", "onnx")

    def session(content: bytes, *, plain: bool = False) -> Any:
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 4  # an error is raised, too
        if plain:
            quiet.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(content, quiet, providers=["CPUExecutionProvider"])

    with named(run, "ONNX"):
        written = traced.written()
    for key, value in {**words, **about(run)}.items():
        written.metadata_props.add(key=key, value=value)
    content = written.SerializeToString()
    sessions: list[Any] = []  # of both files, of which the other tells spikes
    names: list[str] = []

    def told(size: int) -> tuple[Tensor, Tensor, Spikes]:
        if not sessions:
            with named(run, "ONNX"):
                other, neurons = traced.told()
            names.extend(neurons)
            sessions.extend(session(c, plain=True) for c in (content, other.SerializeToString()))
        (_, (alone, *_)), (_, (currents, *more)) = (answers(one, size) for one in sessions)
        return alone, currents, by_name(names, more)

    usual, every = session(content), None
    for size in [batch_size] if batch_size else _COMPARED:
        fixed = ""
        try:
            images, (currents, *_) = answers(usual, size)
        except Exception as error:  # onnxruntime's own, of no common class
            fixed = one_line(error)[-120:]
        if fixed or currents.shape[1] != size:
            raise UserError(
                f"the code of {run.recipe.model.name} fixes the number of images ({fixed or 'it gives others'}); "
                "accepted: --batch-size N, for a file that takes N at a time"
            )
        found = compared(net, images, currents, partial(told, size))
        every = found if every is None else every.and_of(found)
    assert every is not None
    if every.agrees:
        replace_file(path, content)
    return every


KNOWN = ("aten", "prims", "prim", "spiketriton")
"""Whose operators leave: PyTorch's, and those of kernels, which are written down by their definitions."""

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
            # weights that nn.GRU and nn.LSTM make contiguous
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
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
