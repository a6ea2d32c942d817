"""`export`: files that do what the network does, and the mistakes that it names."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load

from spiketriton.config import to_toml
from spiketriton.export.__main__ import main
from spiketriton.export.nir_graph import to_nir
from spiketriton.system import consent
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR
from spiketriton.train import main as train
from spiketriton.training.trained import load_run
from spiketriton_kernels.neurons.definition import Walk
from tests.models.test_foreign import recipe_of
from tests.small_runs import FASTEST, refused, small_trainer

nir = pytest.importorskip("nir", reason="the extra nir is not installed")


@pytest.fixture
def trained(runs):
    return runs / "lif"


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """The net whose export takes the least."""
    path = tmp_path_factory.mktemp("smallest") / "run"
    small_trainer(path, *FASTEST).fit()
    return path


def wrong(model, image, dt, **options):
    graph = to_nir(model, image, dt, **options)
    graph.nodes["layers.0.neuron"].v_threshold *= 0.5
    return graph


def spoilt(file, load=torch.export.load):
    right = load(file).module()

    def answer(x):
        out = right(x)
        return math.nan * out if isinstance(out, torch.Tensor) else (math.nan * out[0], *out[1:])

    return SimpleNamespace(module=lambda: answer)


WRONG = {  # what is broken for the file to differ, by what, and what the command says
    "nir": (
        "spiketriton.export.nir_file.to_nir",
        wrong,
        "first difference: layers.0.neuron, time step",
    ),
    "torch": (
        "torch.export.load",
        spoilt,
        "currents differ by nan",
    ),
    "onnx": (
        "spiketriton_kernels.nn.LIF.walk",
        lambda neuron, step, current, states, trace: Walk(0.5 * current, states, None),
        "currents differ by",
    ),
    "safetensors": (
        "safetensors.torch.load",
        lambda content, load=load: {name: t + 1 for name, t in load(content).items()},
        "they differ by 1",
    ),
}


SAID = {
    "nir": "2 spiking layers, dt = 1\nreplayed by NIR's equations: 0 of ",
    "torch": "1 image per call, 3 time steps\nread back: currents differ by 0.0e+00 of the largest\n",
    "onnx": "any number of images per call, 3 time steps\nrun by onnxruntime: currents differ by ",
    "safetensors": "weights of step 2\nread back: they differ by 0\n",
}


@pytest.mark.parametrize("to", WRONG)
def test_a_file_that_differs_is_not_written(to, smallest, tmp_path, capsys, monkeypatch):
    arguments = [str(smallest), "--to", to, "--out", str(tmp_path / "net")]
    what, broken, said = WRONG[to]
    assert main(arguments) == EXIT_DONE
    assert SAID[to] in capsys.readouterr().out
    before = (tmp_path / "net").stat().st_ino
    monkeypatch.setattr(what, broken)
    assert main(arguments) == EXIT_ERROR
    shown = capsys.readouterr()
    assert said in shown.out
    assert "net is not written: it would differ from the network" in shown.err
    assert (tmp_path / "net").stat().st_ino == before  # a new file of the same bytes is another one
    assert list(tmp_path.iterdir()) == [tmp_path / "net"]


def test_mistakes_are_named(trained, tmp_path, monkeypatch):
    run = str(trained)
    assert "--to" in refused(main, [run])
    assert "no effect" in refused(main, [run, "--to", "torch", "--dt", "1"])
    assert "no effect" in refused(main, [run, "--to", "nir", "--batch-size", "1"])
    assert "--dt: -1" in refused(main, [run, "--to", "nir", "--dt", "-1"])
    (tmp_path / "no").write_text("a file")
    nowhere = str(tmp_path / "no" / "folder")
    assert "cannot be written" in refused(main, [run, "--to", "nir", "--out", nowhere])
    assert "cannot be written" in refused(main, [run, "--to", "torch", "--out", nowhere])
    monkeypatch.setitem(sys.modules, "nir", None)
    assert "pip install 'spiketriton[nir]'" in refused(main, [run, "--to", "nir"])


@pytest.mark.parametrize(("given", "sizes"), [([], (1, 3, 7)), (["--batch-size", "2"], (2,))])
def test_an_onnx_file_answers_as_the_network(given, sizes, trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "net.onnx"
    assert main([str(trained), "--to", "onnx", "--out", str(out), *given]) == EXIT_DONE
    run, session = load_run(trained), onnxruntime.InferenceSession(str(out))
    for size in sizes:
        images = torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = run.model(images)
        assert size == 1 or expected.std(1).max() > 0  # or any file would do
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_a_network_that_fixes_the_number_of_images_is_refused_by_name(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("spikingjelly")
    monkeypatch.chdir(tmp_path)
    short = ["train.max_steps=1", "train.epochs=1", "monitor.enabled=false"]
    recipe = recipe_of("tests.models.foreign_nets:Recurrent", *short)
    Path("r.toml").write_text(to_toml(recipe))
    assert train(["r.toml", "--run-dir", "run", "--quiet"]) == EXIT_DONE
    arguments = ["run", "--to", "onnx"]
    with consent.decided(True):
        said = refused(main, arguments)
        assert "the code of tests.models.foreign_nets:Recurrent fixes the number of images" in said
        assert not list(Path("run").glob("*.onnx"))
        assert main([*arguments, "--batch-size", "3"]) == EXIT_DONE
