"""What a format cannot hold is refused by name, before a writer begins; what it can hold is not."""

import re

import pytest
import torch
from torch import Tensor, nn

from spiketriton.export.__main__ import exported
from spiketriton.export.plain import as_onnx, export_torch
from spiketriton.export.refused import refuse
from spiketriton.system.errors import UserError
from spiketriton_kernels import nn as kernels
from spiketriton_kernels import use_backend
from spiketriton_kernels.steps.printed import OPERATIONS
from tests.evaluate.test_stream import FRAMES, IMAGES, SIGNALS, Window, made

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
SEQUENCE = ("model.name=sequence", "model.width=12", "model.depth=2")


class AsItIs(kernels.SpikingNeuron):
    """A neuron whose step runs in eager PyTorch."""

    states = ("v",)

    def __init__(self) -> None:
        super().__init__(backend="eager")

    def step(self, x: Tensor, v: Tensor):
        h = 0.5 * v + self.shaped(x)
        s = self.fire(h - 0.3)
        return s, h - s

    def shaped(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)  # which no kernel does, and every format


class Decides(AsItIs):
    def shaped(self, x):
        return x if x.max() > 0 else 2 * x


class Draws(AsItIs):
    def shaped(self, x):
        return x + torch.rand_like(x)


class Fractions(AsItIs):
    def shaped(self, x):
        return torch.frac(x)


class Measured(AsItIs):
    """Reads numbers of its own, which are the same for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def shaped(self, x):
        return (2.0 if self.gain > 0 else 1.0) * float(self.gain) * x


class Chooses(Window):
    def forward(self, x):
        return super().forward(x if float(x.abs().max()) < 100 else x / 100)


def handed(neuron: nn.Module, kind: type[Window] = Window):
    return made(FRAMES, net=kind(neuron))._run


RUNS = {  # run, format, whether as a stream -> what is said
    "decides, onnx": (
        lambda: handed(Decides()), "onnx", False,
        r"run: net\.first decides by a value of its input .*, line \d+ of .*test_refused\.py: return x if x\.max\(\) "
        r"> 0 else 2 \* x; accepted with --to onnx: the same operations",
    ),
    "decides, torch": (lambda: handed(Decides()), "torch", False, r"net\.first decides by .* --to torch"),
    "decides, step": (lambda: handed(Decides()), "onnx", True, r"net\.first decides by a value of its input"),
    "draws": (lambda: handed(Draws()), "torch", False, r"net\.first draws random numbers \(.*torch\.rand_like\(x\)"),
    "operator": (
        lambda: handed(Fractions()), "onnx", False,
        r"run: net\.first is a Fractions, whose step cannot be written with --to onnx: .*'aten::frac'.*; accepted:",
    ),
    "network decides": (
        lambda: handed(kernels.LIF(), Chooses), "onnx", False,
        r"net decides by a value of its input .*float\(x\.abs\(\)\.max\(\)\) < 100",
    ),
    "handed, nir": (lambda: handed(kernels.LIF()), "nir", False, r"has no graph by which .* exported; accepted:"),
    "recurrent, nir": (
        lambda: made(SIGNALS, *SEQUENCE, "model.recurrent=true")._run, "nir", False, r"that spikes come back"
    ),
    "clif, nir": (lambda: made(FRAMES, "neuron.kind=clif")._run, "nir", False, r"the neuron CLIF, whose step is"),
    "psn, step": (lambda: made(FRAMES, "neuron.kind=psn")._run, "onnx", True, r"is a parallel neuron"),
    "tebn, step": (lambda: made(FRAMES, "model.norm=tebn")._run, "onnx", True, r"a gain for each time step"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_it_is_refused_before_a_writer_begins(name, tmp_path, monkeypatch):
    make, to, stream, said = RUNS[name]
    for writer in (
        "nir_file.export_nir",
        "plain.export_torch",
        "plain.export_onnx",
        "one_step.export_step",
    ):
        monkeypatch.setattr(
            f"spiketriton.export.{writer}", lambda *_: pytest.fail("a writer began")
        )
    with pytest.raises(UserError) as refused:
        exported(make(), to, tmp_path / "net", "mark", stream=stream)
    assert re.search(said, str(refused.value)), refused.value
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "run",
    [
        lambda: handed(AsItIs()),
        lambda: made(IMAGES, "neuron.kind=clif")._run,
        lambda: made(SIGNALS, *SEQUENCE, "model.recurrent=true", "neuron.kind=alif")._run,
        lambda: made(FRAMES, "neuron.kind=psn")._run,
    ],
)
def test_what_leaves_is_not(run):
    for to in ("torch", "onnx"):
        refuse(run(), to)
    refuse(handed(Fractions()), "torch")
    refuse(handed(Measured()), "onnx")
    with pytest.raises(
        UserError, match="first is a Measured, whose step cannot be written with --to torch"
    ):
        refuse(handed(Measured()), "torch")


def unary() -> list[str]:
    """Functions that a step may call, by PyTorch's names."""
    return [name for name in OPERATIONS if "{0}" in OPERATIONS[name].cpp and "{1}" not in OPERATIONS[name].cpp
            and hasattr(torch, name)]  # fmt: skip


@pytest.mark.parametrize("name", unary())
def test_every_function_that_a_step_may_call_leaves(name):
    function = getattr(torch, name)
    x = 4 * torch.rand(3, 2, 400, generator=torch.Generator().manual_seed(0)) + 0.01

    class Calls(kernels.SpikingNeuron):
        states = ("v",)

        def step(self, x, v):
            h = 0.1 * v + function(x)
            s = self.fire(h - self.level)
            return s, torch.where(s > 0, 0.0, h)

        level = float(function(x).median()) - 0.01

    with use_backend("torch"):
        expected = Calls()(x)
        written = as_onnx(Calls(), {"x": x}, ["spikes"], {}).SerializeToString()
    found = onnxruntime.InferenceSession(written).run(None, {"x": x.numpy()})[0]
    assert (torch.from_numpy(found) != expected).float().mean() < 0.002
    assert name == "sign" or 0.2 < expected.mean() < 0.98


@torch.library.custom_op("tests_of_export::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Doubles(Window):
    def forward(self, x):
        return super().forward(torch.ops.tests_of_export.doubled(x))


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_an_operator_of_another_library_is_refused(to):
    """Or a `.pt2` would be written that no other program can load."""
    said = r"net calls tests_of_export::doubled, an operator of another library, .*line \d+ of .*export\.doubled"
    with pytest.raises(UserError, match=said):
        refuse(handed(kernels.LIF(), Doubles), to)


def test_an_operator_that_is_called_only_where_it_is_written_down_is_refused(tmp_path):
    class Hides(Window):
        def forward(self, x):
            written = torch.compiler.is_exporting()
            return super().forward(torch.ops.tests_of_export.doubled(x) if written else 2 * x)

    run = handed(kernels.LIF(), Hides)
    refuse(run, "torch")
    with pytest.raises(
        UserError, match="python:Net calls tests_of_export::doubled, an operator of another library"
    ):
        export_torch(run, tmp_path / "net.pt2", 2)
    assert not [*tmp_path.iterdir()]
