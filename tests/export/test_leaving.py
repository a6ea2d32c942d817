"""Every neuron leaves: trained here, exported by another process, loaded by a third that has nothing of spiketriton."""

import json
import subprocess
import sys

import pytest
import torch

import spiketriton
from spiketriton.config import to_toml
from spiketriton.config.kinds import kinds
from spiketriton.export.nir_graph import to_nir
from spiketriton.system.errors import UserError
from spiketriton_kernels import use_backend
from tests.export.every import Every
from tests.export.test_nir_graph import SIZE, build
from tests.processes import done
from tests.small_runs import small_recipe

pytest.importorskip("onnxruntime")

LONG = 20
WINDOWS = {3: False, LONG: True}  # time steps: whether of few neurons
BATCH = 32

EXPORT = """
import json, sys
import numpy, torch, spiketriton
from tests.export.every import Every
torch.manual_seed(1)
for steps, few in json.loads(sys.argv[1]).items():
    run = spiketriton.load_run(f"run{steps}", net=Every(int(steps), few=few))
    run.export("torch", f"files/{steps}.pt2", batch_size=32)
    run.export("onnx", f"files/{steps}.onnx")
    x = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        numpy.savez(f"files/{steps}.npz", x=x, y=run.model(x))
"""
LOAD = """
import json, sys
import numpy, onnxruntime, torch
found = {}
for steps in sys.argv[1:]:
    given = numpy.load(f"{steps}.npz")
    x, y = given["x"], given["y"]
    session = onnxruntime.InferenceSession(f"{steps}.onnx")
    answers = {
        "pt2": torch.export.load(f"{steps}.pt2").module()(torch.from_numpy(x)).detach().numpy(),
        "onnx": session.run(None, {"images": x})[0],
        "onnx, one image": session.run(None, {"images": x[:1]})[0],
    }
    for name, found_ in answers.items():
        found[f"{steps}: {name}"] = float(abs(found_ - y[:, :found_.shape[1]]).max() / abs(y).max())
print(json.dumps([found, [name for name in sys.modules if name.startswith("spiketriton")]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of each window, and the folder `files` that another process wrote of them."""
    path = tmp_path_factory.mktemp("leaving")
    (path / "files").mkdir()
    for steps, few in WINDOWS.items():
        torch.manual_seed(0)
        recipe = path / f"{steps}.toml"
        short = ("train.max_steps=2", "train.epochs=1", "monitor.enabled=false")
        recipe.write_text(to_toml(small_recipe(*short, f"time_steps={steps}")))
        with use_backend("torch"):  # which compiles nothing
            where = str(path / f"run{steps}")
            spiketriton.train(Every(steps, few=few), str(recipe), run_dir=where, quiet=True)
    called = ("-c", EXPORT, json.dumps(WINDOWS))
    ended = done(*called, folder=path, SPIKETRITON_BACKEND="torch")
    assert ended.returncode == 0, ended.stderr
    return path


def test_files_answer_alike_where_nothing_of_spiketriton_is(folder):
    words = [sys.executable, "-c", LOAD, *map(str, WINDOWS)]
    files = folder / "files"
    ended = subprocess.run(words, capture_output=True, text=True, cwd=files, check=False)
    assert ended.returncode == 0, ended.stderr
    found, imported = json.loads(ended.stdout)
    assert imported == []
    assert len(found) == 3 * len(WINDOWS)
    assert max(found.values()) < 1e-5, found


def test_all_of_them_fire_in_what_is_compared():
    """Or any file would do."""
    torch.manual_seed(0)
    net = Every(3).eval()
    currents = 3 * net.enter(torch.rand(3, BATCH, 1, 8, 8).flatten(2))
    with use_backend("torch"), torch.no_grad():
        for name, neuron in zip(net.names, net.neurons, strict=True):
            rate = float((neuron(currents) != 0).float().mean())
            assert 0.02 < rate < 0.98, name


def test_a_long_window_leaves_as_a_loop(folder):
    onnx = pytest.importorskip("onnx")
    files = folder / "files"
    loops = {}
    for steps in WINDOWS:
        graph = onnx.load(files / f"{steps}.onnx").graph
        program = torch.export.load(files / f"{steps}.pt2")
        code = program.graph_module.code
        loops[steps] = [
            sum(node.op_type == "Scan" for node in graph.node),
            code.count("torch.ops.higher_order.scan("),
        ]
        assert {node.domain for node in graph.node} == {""}
        assert "spiketriton" not in code
    assert loops == {3: [0, 0], LONG: [5, 5]}  # a PSN's is a product


def test_a_long_window_leaves_step_by_step_where_torch_has_no_loop(monkeypatch):
    torch.manual_seed(0)
    net, x = Every(LONG, few=True).eval(), torch.rand(LONG, 2, 1, 8, 8)
    with use_backend("torch"), torch.no_grad():
        expected = net(x)
        monkeypatch.setitem(sys.modules, "torch._higher_order_ops.scan", None)
        program = torch.export.export(net, (x,))
    assert "higher_order.scan" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize("name", kinds())
def test_a_neurons_file_says_what_it_is_in_nir(name):
    pytest.importorskip("nir")
    kind, said = kinds()[name], []
    for reset in kind.resets or ("hard", "soft", "none"):
        net = ["model.name=mlp", "model.depth=1", f"neuron.kind={name}"]
        net += [f"neuron.reset={reset}"] if len(kind.resets) != 1 else []
        try:
            with use_backend("torch"):
                graph = to_nir(build(*net), (2, SIZE, SIZE))
        except UserError as error:
            said.append(f"no: its step {str(error).partition('whose step ')[2]}")
            continue
        nodes = [
            type(n).__name__ for k, n in graph.nodes.items() if k.startswith("layers.0.neuron")
        ]
        said.append(f"{reset}: {', '.join(dict.fromkeys(nodes))}")
    assert kind.nir == "; ".join(dict.fromkeys(said))
