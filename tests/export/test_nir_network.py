"""Networks out of files of NIR compute what NIR's equations say, and become runs."""

import importlib
import shutil

import numpy as np
import pytest
import torch

import spiketriton
from spiketriton.config import to_toml
from spiketriton.export.nir_file import export_nir
from spiketriton.export.nir_network import NirNetwork
from spiketriton.export.nir_replay import replay
from spiketriton.export.weights import export_safetensors
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.small_runs import small_recipe, small_trainer

nir = pytest.importorskip("nir", reason="the extra nir is not installed")

RANDOM = np.random.default_rng(0)
NEURONS = {
    "if": lambda: nir.IF(r=full(2.0), v_threshold=full(0.7), v_reset=full(-0.1)),
    "lif": lambda: lif(tau=full(3.0)),
    "leaks elsewhere": lambda: lif(tau=full(3.0), v_leak=full(0.3)),
    "by channel": lambda: lif(tau=channels(2, 5), r=channels(0.5, 2), v_threshold=channels(0.3, 1)),
}


def full(value: float) -> np.ndarray:
    return np.full((3, 4, 4), value, np.float32)


def channels(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 3, dtype=np.float32)[:, None, None] * full(1)


def lif(**given: np.ndarray):
    plain = dict(tau=full(2.0), r=full(1.0), v_leak=full(0), v_threshold=full(0.5), v_reset=full(0))
    return nir.LIF(**plain | given)


def graph(neuron, **metadata):
    """Every kind of node: two paths through pools, added, one neuron with a flattened shape."""
    weight = RANDOM.normal(size=(3, 2, 3, 3)).astype(np.float32)
    sides = np.array([2, 2])
    pool = dict(kernel_size=sides, stride=sides, padding=np.array([0, 0]))
    shape = np.array([2, 8, 8])
    nodes = {
        "in": nir.Input(shape),
        "conv": nir.Conv2d((8, 8), weight, 2, 1, 1, 1, np.array([0.1, 0.2, 0.3], np.float32)),
        "net.neuron": neuron,
        "scale": nir.Scale(full(0.5) + 1),
        "sum": nir.SumPool2d(**pool),
        "mean": nir.AvgPool2d(**pool),
        "flat": nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1),
        "linear": nir.Linear(RANDOM.normal(size=(5, 12)).astype(np.float32)),
        "last": nir.IF(*(np.full(5, v, np.float32) for v in (1, 1, 0))),
        "affine": nir.Affine(RANDOM.normal(size=(4, 5)).astype(np.float32), np.ones(4, np.float32)),
        "out": nir.Output(np.array([4])),
    }
    edges = [("in", "conv"), ("conv", "net.neuron"), ("net.neuron", "scale"), ("scale", "sum")]
    edges += [("net.neuron", "mean"), ("sum", "flat"), ("mean", "flat"), ("flat", "linear")]
    edges += [("linear", "last"), ("last", "affine"), ("affine", "out")]
    return nir.NIRGraph(nodes, edges, metadata=metadata)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("kind", NEURONS)
def test_every_node_is_that_of_the_replay(kind, reset):
    net = NirNetwork(graph(NEURONS[kind](), dt=0.5), reset=reset).double()
    x = torch.randn(6, 2, 2, 8, 8, dtype=torch.float64)
    kept = {}
    for module, node in net.names.items():
        keep = lambda module, given, out, node=node: kept.update({node: out.numpy()})  # noqa: E731
        net.get_submodule(module).register_forward_hook(keep)
    with torch.no_grad():
        out = net(x)
    theirs, _ = replay(net.graph, x.numpy(), 6)
    for name in ("net.neuron", "last"):
        assert 0.02 < kept[name].mean() < 0.98
        np.testing.assert_array_equal(kept[name], theirs[name])
    # constants by channel are float32
    np.testing.assert_allclose(out.numpy(), theirs["out"], rtol=1e-6, atol=1e-6)


def test_a_file_becomes_a_run_that_answers_as_the_network_that_was_exported(tmp_path, capsys):
    small_trainer(tmp_path / "run", "train.max_steps=3").fit()
    run = load_run(tmp_path / "run")
    export_nir(run, tmp_path / "net.nir", dt=1.0, images=2)
    (tmp_path / "small.toml").write_text(to_toml(small_recipe("data.test_images=20")))
    command = importlib.import_module("spiketriton.import")
    words = [str(tmp_path / "net.nir"), str(tmp_path / "small.toml")]
    # what describes our own networks has no effect, and is left out
    assert command.main([*words, "--run-dir", str(tmp_path / "new")]) == 0
    assert "0 of" in capsys.readouterr().out
    images = torch.rand(4, 1, 8, 8)
    imported = spiketriton.load_run(tmp_path / "new")
    expected = spiketriton.load_run(tmp_path / "run").predict(images)
    torch.testing.assert_close(imported.predict(images), expected)
    assert imported.step == 0


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A run of a file that is no longer there, in a folder that was moved."""
    place = tmp_path_factory.mktemp("imported")
    small_trainer(place / "run", "train.max_steps=1", "model.name=mlp", "model.depth=2").fit()
    export_nir(load_run(place / "run"), place / "net.nir", dt=1.0, images=2)
    few = ["data.test_images=20", "data.train_images=32", "train.epochs=1", "time_steps=2"]
    (place / "small.toml").write_text(to_toml(small_recipe(*few)))
    words = [str(place / "net.nir"), str(place / "small.toml"), "--run-dir", str(place / "old")]
    assert importlib.import_module("spiketriton.import").main(words) == 0
    (place / "net.nir").unlink()
    shutil.rmtree(place / "run")
    return (place / "old").rename(place / "moved")


def test_an_imported_run_and_one_trained_from_it_may_be_moved(imported, tmp_path):
    run = spiketriton.load_run(imported)
    assert 0 <= run.evaluate().accuracy[-1] <= 1
    trained = spiketriton.train(str(imported / "recipe.toml"), run_dir=tmp_path / "a", quiet=True)
    moved = shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    kept = [path.name for path in moved.glob("*.nir")]
    assert kept == [path.name for path in imported.glob("*.nir")]
    again = spiketriton.train(resume=moved, extend=2, quiet=True)
    assert (trained.step, again.step) == (2, 4)
    assert f'path = "{kept[0]}"' in (moved / "recipe.toml").read_text()


def test_another_file_in_the_place_of_the_imported_one_is_refused(imported, tmp_path):
    copy = shutil.copytree(imported, tmp_path / "run")
    (file,) = copy.glob("*.nir")
    nir.write(file, graph(lif(), dt=1))
    with pytest.raises(UserError, match="not the file that this network was imported from"):
        load_run(copy)


def test_a_file_of_weights_alone_does_not_hold_an_imported_network(imported, tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(UserError, match="imported from a file of NIR"):
        export_safetensors(load_run(imported), tmp_path / "net.safetensors")


BAD = {
    "how long a time step is": lambda: NirNetwork(graph(lif())),
    "v_threshold differs within a channel": lambda: NirNetwork(
        graph(lif(v_threshold=np.arange(1, 49, dtype=np.float32).reshape(3, 4, 4)), dt=1)
    ),
    "v_reset differs between channels": lambda: NirNetwork(
        graph(lif(v_reset=channels(0, 0.2)), dt=1)
    ),
    "dt / tau = 1.5; accepted: 0 to 1": lambda: NirNetwork(graph(lif(), dt=3)),
    "dt -1.0: accepted": lambda: NirNetwork(graph(lif(), dt=-1)),
    "reset 'none': accepted: hard, soft": lambda: NirNetwork(graph(lif(), dt=1), reset="none"),
    "net.neuron is a Threshold; accepted: Affine,": lambda: NirNetwork(
        graph(nir.Threshold(full(1)), dt=1)
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_what_the_kernels_do_not_have_is_named(words):
    with pytest.raises(ValueError, match=words.replace("'", ".")):
        BAD[words]()
