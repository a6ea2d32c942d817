"""The example works from outside of the package: it learns, resumes with the same bits, and is evaluated."""

import shutil
from pathlib import Path

import pytest

import spiketriton
from spiketriton.errors import UserError

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("stripes.py", "stripes.toml"):
        shutil.copy(HERE / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spiketriton.session.draw_run", lambda *_: [])
    return tmp_path


def test_it_learns_and_is_loaded_and_evaluated(folder):
    run = spiketriton.train("stripes.toml", run_dir="run", quiet=True)
    found = run.evaluate()
    assert found.accuracy[-1] > 0.9
    assert found.classes == ["level", "upright", "rising", "falling"]
    assert found.layers[0].name == "layers.0.neuron"
    assert run.recipe.model.options.hidden == 16


def test_its_keys_are_checked(folder):
    with pytest.raises(UserError, match=r"model\.two_layers\.hiden; did you mean .*hidden\?"):
        spiketriton.train("stripes.toml", **{"model.two_layers.hiden": 4})
    with pytest.raises(UserError, match=r"hidden = 0: accepted: an integer from 1 to 4096"):
        spiketriton.train("stripes.toml", **{"model.two_layers.hidden": 0})
