"""The example works from outside of the package: it learns, resumes with the same bits, and is evaluated.

It is copied to another folder, and no file of the package is changed; tests/promises/test_wheel.py holds the same of
a plugin beside an installed wheel.
"""

import shutil
from pathlib import Path

import pytest
import torch

import spiketriton
from spiketriton.config.parts import chosen
from spiketriton.system.errors import UserError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """One folder for all tests: a process knows a part by one file."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("stripes.py", "stripes.toml", "rates.py", "csnn.toml"):
        shutil.copy(HERE / name, folder)
    return folder


@pytest.fixture
def folder(copied, monkeypatch):
    monkeypatch.chdir(copied)
    monkeypatch.setattr("spiketriton.training.session.draw_run", lambda *_: [])
    return copied


def test_it_learns_and_is_loaded_and_evaluated(folder):
    run = spiketriton.train("stripes.toml", run_dir="run", quiet=True)
    found = run.evaluate()
    assert found.accuracy[-1] > 0.9
    assert found.classes == ["level", "upright", "rising", "falling"]
    assert found.layers[0].name == "layers.0.neuron"
    assert run.recipe.model.options.hidden == 16


def test_it_is_continued_with_the_same_bits(folder):
    keys = {"epochs": 2, "data.stripes.images": 64, "model.two_layers.hidden": 4, "threads": 1}
    whole = spiketriton.train("stripes.toml", run_dir="whole", quiet=True, **keys)
    shutil.copytree("whole", "killed")  # as it was after its first epoch
    Path("killed/checkpoints/last.1.pt").rename("killed/checkpoints/last.pt")
    assert spiketriton.load_run("killed").step == 2
    continued = spiketriton.train(resume="killed", quiet=True)
    assert continued.step == whole.step == 4
    expected = whole.model.state_dict()
    assert continued.model.state_dict().keys() == expected.keys()
    for name, value in continued.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_its_keys_are_checked(folder):
    with pytest.raises(UserError, match=r"model\.two_layers\.hiden; did you mean .*hidden\?"):
        spiketriton.train("stripes.toml", **{"model.two_layers.hiden": 4})
    with pytest.raises(UserError, match=r"hidden = 0: accepted: an integer from 1 to 4096"):
        spiketriton.train("stripes.toml", **{"model.two_layers.hidden": 0})


def test_a_loss_of_ones_own_trains_spikingjellys_network(folder):
    pytest.importorskip("spikingjelly")
    keys = {"data.name": "digits", "data.image_size": 28, "data.train_images": 64}
    keys |= {"data.test_images": 10, "model.arguments.channels": 2, "batch_size": 32, "epochs": 1}
    run = spiketriton.train("csnn.toml", run_dir="csnn", quiet=True, plugins=True, **keys)
    spikes = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])  # [T, B, K]
    loss = chosen("losses", "rates").make(None)(spikes, torch.tensor([1]))
    assert run.step == 2
    assert loss == 0.125
