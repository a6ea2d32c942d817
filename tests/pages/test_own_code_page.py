"""docs/own_code.md, line by line."""

import re
from pathlib import Path

import pytest
import torch

import spiketriton
from spiketriton.config import reading
from spiketriton.config.shipped import find_recipe

PAGE = Path(__file__).parents[2] / "docs" / "own_code.md"


def blocks(section: str, language: str) -> list[tuple[int, str]]:
    """Line and text of each block of code in a section, by its heading."""
    text = PAGE.read_text("utf-8")
    begin = text.index(f"## {section}\n")
    end = text.find("\n## ", begin)
    found = re.compile(rf"```{language}\n(.*?)```", re.DOTALL).finditer(
        text, begin, len(text) if end < 0 else end
    )
    return [(text[: block.start()].count("\n") + 1, block[1]) for block in found]


def run_section(section: str, **names: object) -> dict:
    """The names that its blocks leave behind, and those that they were given."""
    for line, block in blocks(section, "python"):
        exec(compile("\n" * line + block, str(PAGE), "exec"), names)
    return names


@pytest.mark.usefixtures("no_pictures")
def test_any_network_is_trained(tmp_path, monkeypatch):
    pytest.importorskip("spikingjelly")
    monkeypatch.chdir(tmp_path)
    names = run_section("Any network", spiketriton=spiketriton)
    assert names["run"].step == 2
    assert "swapped: 25 neurons" in (tmp_path / "runs/qkformer/network.txt").read_text()


@pytest.mark.usefixtures("no_pictures", "blank_pictures")
def test_its_python_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quickstart = find_recipe("quickstart").read_text()
    small = "image_size = 8\ntrain_images = 640\ntest_images = 100"
    quickstart = quickstart.replace("image_size = 16", small)
    Path("quickstart.toml").write_text(quickstart.replace("[model]", "[model]\nwidth = 8"))
    monkeypatch.setattr(reading, "find_recipe", lambda name: Path("quickstart.toml"))
    names = run_section("Python")
    shown = capsys.readouterr().out
    assert "runs/first resnet8 ('0', '1'," in shown
    assert "torch.Size([4, 2, 10])" in shown
    assert names["probabilities"].shape == (2, 10)
    assert names["run"].step == 40  # 20 an epoch
    tuned, first = (spiketriton.load_run(f"runs/{name}") for name in ("tuned", "first"))
    assert tuned.step == 20
    assert torch.equal(tuned.model.conv1.weight, first.model.conv1.weight)
    assert not torch.equal(tuned.model.fc.weight, first.model.fc.weight)
    assert 0.2 < names["found"].accuracy[-1] <= 1


@pytest.mark.usefixtures("no_pictures")
def test_its_plugin_is_trained(tmp_path):
    ((_, plugin),), ((_, recipe),) = blocks("Plugins", "python"), blocks("Plugins", "toml")
    (tmp_path / "my_net.py").write_text(plugin)
    (tmp_path / "my_net.toml").write_text(recipe)
    run = spiketriton.train(
        tmp_path / "my_net.toml", max_steps=2, run_dir=tmp_path / "run", quiet=True
    )
    assert run.model.fc.in_features == run.recipe.model.options.hidden == 32
    assert len(run.model.layers) == 2
