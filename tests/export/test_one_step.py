"""A time step as ONNX: windows that onnxruntime is shown step by step are answered as by the network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spiketriton.api import load_run
from spiketriton.export import one_step
from spiketriton.export.__main__ import main
from spiketriton.export.one_step import export_step
from spiketriton.export.plain import as_onnx
from spiketriton.system.errors import EXIT_DONE, UserError
from spiketriton_kernels import nn as kernels
from tests.evaluate.test_stream import (
    FRAMES,
    IMAGES,
    ROWS,
    SIGNALS,
    Delayed,
    Mean,
    Step,
    T,
    Window,
    made,
)
from tests.small_runs import FASTEST, refused, small_trainer

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
SEQUENCE = ("model.name=sequence", "model.width=12", "model.depth=2")

RUNS = {
    "images": (IMAGES, (), None),
    "images, ilif": (IMAGES, ("neuron.kind=ilif",), None),
    "frames, plif": (FRAMES, ("neuron.kind=plif",), None),
    "frames, resets elsewhere": (FRAMES, ("neuron.v_reset=-0.5", "neuron.reset=hard"), None),
    "frames, one's own": (FRAMES, ("neuron.kind=adapting", "model.norm=none"), None),
    "a twin without time": (FRAMES, ("neuron.kind=relu",), None),
    "signals, clif": (SIGNALS, (*SEQUENCE, "neuron.kind=clif"), None),
    "signals, last": (SIGNALS, (*SEQUENCE, "neuron.kind=alif", "loss.read=last"), None),
    "signals, recurrent": (SIGNALS, (*SEQUENCE, "model.recurrent=true"), None),
    "signals, delays": (SIGNALS, (*SEQUENCE, "model.delays=3"), None),
    "rows": (ROWS, SEQUENCE, None),
    "handed": (FRAMES, (), lambda: Window(kernels.LIF(v_threshold=0.3))),
    "handed, delays": (FRAMES, (), lambda: Delayed(kernels.CuBaLIF())),
    "handed, mean": (FRAMES, (), lambda: Mean(kernels.LIF(v_threshold=0.3))),
    "handed, steps": (FRAMES, (), lambda: Step(kernels.LIF(step_mode="s"))),
}


def by_steps(path: Path, window: np.ndarray) -> np.ndarray:
    """What a device does with a file alone: currents [T, B, K] of frames [T, B, ...]."""
    session = onnxruntime.InferenceSession(str(path))
    _frame, *states = session.get_inputs()
    start = json.loads(session.get_modelmeta().custom_metadata_map["start"])
    held = {}
    for state in states:
        sizes = [size if isinstance(size, int) else window.shape[1] for size in state.shape]
        held[state.name] = np.zeros(sizes, np.float32)
        for row, value in zip(held[state.name], start.get(state.name, []), strict=False):
            row[:] = value
    found = []
    for step in window:
        currents, *after = session.run(None, {"frame": step, **held})
        held = dict(zip(held, after, strict=True))
        found.append(currents)
    assert [o.name for o in session.get_outputs()] == ["currents", *(f"{n}.next" for n in held)]
    return np.stack(found)


@pytest.mark.parametrize("name", RUNS)
def test_steps_answer_as_the_window(name, tmp_path):
    facts, overrides, net = RUNS[name]
    run = made(facts, *overrides, net=None if net is None else net())._run
    path = tmp_path / "step.onnx"
    assert export_step(run, path).difference < 1e-5
    for size in (1, 4):
        generator = torch.Generator().manual_seed(1)
        window = 6 * torch.rand(T, size, *facts.image_shape, generator=generator)
        if not facts.frames:
            window = window[:1].expand_as(window).contiguous()
        with torch.no_grad():
            expected = run.model.float()(window if facts.frames else window[0])
        found = torch.from_numpy(by_steps(path, window.numpy()))
        if "mean" in name:
            found = found.mean(0, keepdim=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    silent = torch.from_numpy(by_steps(path, np.zeros_like(window.numpy())))
    assert not torch.allclose(silent, torch.from_numpy(by_steps(path, window.numpy())))
    domains = {node.domain for node in onnx.load(path).graph.node}
    assert domains <= {""}  # plain operators


def test_the_states_are_what_the_answer_depends_on(tmp_path):
    """A file whose states are forgotten differs, and is not written."""
    run, path = made(FRAMES)._run, tmp_path / "step.onnx"
    forward = one_step.OneStep.forward

    def forgets(self, frame, *states):
        return forward(self, frame, *[0 * state for state in states])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step.OneStep, "forward", forgets)
        assert not export_step(run, path).agrees
    assert not path.exists()


def test_what_no_step_can_be_written_of_is_refused_by_name(tmp_path):
    path = tmp_path / "step.onnx"
    with pytest.raises(
        UserError,
        match=r"has a gain for each time step \(tebn\), and one step is written; accepted",
    ):
        export_step(made(FRAMES, "model.norm=tebn")._run, path)
    with pytest.raises(UserError, match="is a parallel neuron, which reads the inputs"):
        export_step(made(FRAMES, "neuron.kind=psn")._run, path)
    pytest.importorskip("snntorch")
    import snntorch

    net = Step(snntorch.Leaky(0.5, init_hidden=True))
    with pytest.raises(
        UserError, match=r"neuron is not the kernels'.* keeps a state of its own; accepted: neurons"
    ):
        export_step(made(FRAMES, net=net)._run, path)
    assert not path.exists()


def test_the_command_writes_a_step_and_other_formats_have_none(tmp_path, capsys):
    small_trainer(tmp_path / "run", *FASTEST).fit()
    arguments = [str(tmp_path / "run"), "--stream", "--to"]
    assert main([*arguments, "onnx"]) == EXIT_DONE
    said = capsys.readouterr().out
    assert (
        "one time step, any number of streams per call\nrun by onnxruntime, step by step: currents differ by"
        in said
    )
    assert len(list((tmp_path / "run").glob("*_step.onnx"))) == 1
    assert "--stream has no effect with --to torch" in refused(main, [*arguments, "torch"])
    path = load_run(tmp_path / "run").export(
        "onnx", stream=True, out=tmp_path / "two.onnx", batch_size=2
    )
    assert onnxruntime.InferenceSession(str(path)).get_inputs()[0].shape[0] == 2


# ---- what the tracer of ONNX cannot write by itself


class Normed(nn.Module):
    """Two layers of neurons behind batch norms, over folded time."""

    def __init__(self, images: bool, **options: bool) -> None:
        super().__init__()
        layer = (lambda n: nn.Conv2d(n, 4, 3, padding=1)) if images else (lambda n: nn.Linear(n, 4))
        norm = nn.BatchNorm2d if images else nn.BatchNorm1d
        self.layers = nn.ModuleList([layer(3), layer(4)])
        self.norms = nn.ModuleList(norm(4, momentum=None, **options) for _ in range(2))
        self.neurons = nn.ModuleList(kernels.PLIF(v_threshold=0.3) for _ in range(2))

    def forward(self, x):
        for layer, norm, fire in zip(self.layers, self.norms, self.neurons, strict=True):
            x = fire(norm(layer(x.flatten(0, 1))).unflatten(0, x.shape[:2]))
        return x


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("images", [False, True], ids=["1d", "2d"])
@pytest.mark.parametrize(
    "options",
    [dict(affine=False), dict(track_running_stats=False), dict(affine=False, track_running_stats=False)],
    ids=str,
)  # fmt: skip
def test_batch_norms_without_weights_and_of_their_batch_are_written(options, images, steps):
    torch.manual_seed(0)
    net, image = Normed(images, **options), (3, 5, 5) if images else (3,)
    net(3 * torch.randn(steps, 6, *image) + 1)  # moves running statistics
    net.eval()
    axes = {"x": {1: "n"}, "spikes": {1: "n"}}
    x = torch.randn(steps, 2, *image)
    session = onnxruntime.InferenceSession(
        as_onnx(net, {"x": x}, ["spikes"], axes).SerializeToString()
    )
    for size in (1, 2, 5) if images else (2, 5):
        x = 2 * torch.randn(steps, size, *image)
        expected = net(x).detach().numpy()
        found = session.run(None, {"x": x.numpy()})[0]
        assert found.shape == expected.shape
        assert (found != expected).mean() < 0.002  # sums in another order
        assert 0.05 < expected.mean() < 0.95


def test_what_has_no_translation_is_said_without_its_graph(capfd):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(Exception, match="bessel_j0"):
        as_onnx(Odd(), {"x": torch.ones(2)}, ["y"], {})
    shown = capfd.readouterr()
    assert "graph(" not in shown.out
    print("still heard")
    assert capfd.readouterr().out == "still heard\n"
