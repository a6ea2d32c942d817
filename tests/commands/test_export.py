"""`export`: files that do what the network does, and the mistakes that it names."""

import subprocess
import sys

import pytest

from spiketriton.errors import EXIT_DONE, EXIT_ERROR, UserError
from spiketriton.export import main
from spiketriton.trained.nir_graph import to_nir
from tests.small_runs import small_trainer

nir = pytest.importorskip("nir", reason="the extra nir is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "run"
    small_trainer(path, "train.max_steps=7").fit()
    return path


def test_the_command_writes_and_compares(trained, tmp_path, capsys):
    out = tmp_path / "net.nir"
    assert main([str(trained), "--to", "nir", "--out", str(out), "--images", "2"]) == EXIT_DONE
    assert ": 0 of " in capsys.readouterr().out
    assert "neuron1" in nir.read(out).nodes


def test_the_command_fails_when_the_file_is_wrong(trained, tmp_path, capsys, monkeypatch):
    def wrong(model, image, dt):
        graph = to_nir(model, image, dt)
        graph.nodes["neuron1"].v_threshold *= 0.5
        return graph

    monkeypatch.setattr("spiketriton.trained.exports.to_nir", wrong)
    arguments = [str(trained), "--to", "nir", "--out", str(tmp_path / "net.nir")]
    assert main(arguments) == EXIT_ERROR
    assert "first difference: neuron1, time step" in capsys.readouterr().out


def test_torch_export_gives_the_same_currents_elsewhere(trained, tmp_path, capsys):
    out = tmp_path / "net.pt2"
    arguments = [str(trained), "--to", "torch", "--out", str(out), "--batch-size", "2"]
    assert main(arguments) == EXIT_DONE
    assert "differ by 0" in capsys.readouterr().out
    code = (
        "import sys, torch, spiketriton_kernels\n"
        "net = torch.export.load(sys.argv[1]).module()\n"
        "print(tuple(net(torch.zeros(2, 1, 8, 8)).shape))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "(3, 2, 10)"


def mistake(arguments: list[str]) -> str:
    with pytest.raises(UserError) as error:
        main(arguments)
    return str(error.value)


def test_mistakes_are_named(trained, tmp_path, monkeypatch):
    run = str(trained)
    assert "--to" in mistake([run])
    assert "no effect" in mistake([run, "--to", "torch", "--dt", "1"])
    assert "no effect" in mistake([run, "--to", "nir", "--batch-size", "1"])
    assert "--dt -1.0" in mistake([run, "--to", "nir", "--dt", "-1"])
    nowhere = str(tmp_path / "no" / "folder")
    assert "cannot be written" in mistake([run, "--to", "nir", "--out", nowhere])
    assert "cannot be written" in mistake([run, "--to", "torch", "--out", nowhere])
    monkeypatch.setitem(sys.modules, "nir", None)
    assert "pip install 'spiketriton[nir]'" in mistake([run, "--to", "nir"])
