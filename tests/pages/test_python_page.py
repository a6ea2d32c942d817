"""docs/python.md and docs/any_network.md, line by line."""

import contextlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import spiketriton
from spiketriton.config import reading
from spiketriton.config.shipped import find_recipe

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
ANY_NETWORK = PAGE.with_name("any_network.md")


def run_page(page: Path) -> dict:
    """The names that the page's blocks leave behind."""
    text, names = page.read_text("utf-8"), {}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(page), "exec"), names)
    return names


@pytest.mark.usefixtures("no_pictures")
def test_any_network_of_the_page_is_trained(tmp_path, monkeypatch):
    pytest.importorskip("spikingjelly")
    monkeypatch.chdir(tmp_path)
    names = run_page(ANY_NETWORK)
    assert names["run"].step == 2
    assert "swapped: 25 neurons" in (tmp_path / "runs/qkformer/network.txt").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quickstart = find_recipe("quickstart").read_text()
    Path("quickstart.toml").write_text(quickstart.replace("image_size = 16", "image_size = 8"))
    monkeypatch.setattr(reading, "find_recipe", lambda name: Path("quickstart.toml"))
    logged = []
    mlflow = SimpleNamespace(
        start_run=contextlib.nullcontext,
        log_metrics=lambda numbers, step: logged.append((step, numbers)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    names = run_page(PAGE)
    assert logged[-1][0] == 20
    assert logged[-1][1]["eval/test_accuracy"] > 0
    shown = capsys.readouterr().out
    assert "runs/first resnet8 ('0', '1'," in shown
    assert "torch.Size([4, 2, 10])" in shown
    assert names["probabilities"].shape == (2, 10)
    assert names["run"].step == 88  # 44 an epoch
    tuned, first = (spiketriton.load_run(f"runs/{name}") for name in ("tuned", "first"))
    assert tuned.step == 20
    assert torch.equal(tuned.model.conv1.weight, first.model.conv1.weight)
    assert not torch.equal(tuned.model.fc.weight, first.model.fc.weight)
    assert 0.2 < names["found"].accuracy[-1] <= 1
