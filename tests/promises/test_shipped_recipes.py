"""The large recipes take real steps: real networks and windows, small folders in the data sets' own layouts."""

import json
from pathlib import Path

import pytest
import torch

from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.models import build_model
from spiketriton.train import main
from spiketriton.training.losses import build_loss
from tests.small_data import accept_checksums, make_cifar100, make_imagenette

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def root(request, tmp_path, monkeypatch):
    """A folder with the data that the named recipe asks for."""
    if request.param.startswith("cifar"):
        accept_checksums(make_cifar100(tmp_path), monkeypatch.setattr)
    else:
        make_imagenette(tmp_path)  # JPEGs of odd sizes, greyscale and CMYK among them
    return request.param, tmp_path


# Fewer pixels than shipped, for the time that CI has; everything else is as shipped.
@pytest.mark.parametrize("root", ["imagenette_r50", "cifar100_r50"], indirect=True)
def test_large_recipes_take_real_steps(root, tmp_path):
    name, folder = root
    pixels = ["data.image_size=64"] if name.startswith("imagenette") else []
    changes = [f"data.root={folder}", "train.batch_size=2", "data.workers=0", *pixels]
    recipe = load_recipe(RECIPES / f"{name}.toml", changes)
    assert recipe.time_steps == 10
    data = build_data(recipe)
    torch.manual_seed(0)
    model = build_model(
        recipe, classes=len(data.classes), channels=data.channels, image_size=data.image_size
    )
    images, labels = next(iter(data.train.from_step(0)))
    with torch.autocast("cpu", torch.bfloat16):
        currents = model(images)
    assert currents.shape == (10, 2, len(data.classes))
    loss = build_loss(recipe.loss)(currents, labels)
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("root", ["imagenette_r18"], indirect=True)
def test_the_command_trains_a_large_recipe(root, tmp_path):
    name, folder = root
    run = tmp_path / "run"
    arguments = [str(RECIPES / f"{name}.toml"), f"data.root={folder}", "train.batch_size=2"]
    arguments += ["train.max_steps=2", "train.log_every=1", "data.image_size=64", "data.workers=0"]
    assert main([*arguments, "--run-dir", str(run)]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 2
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert [row["test_images"] for row in rows if row["kind"] == "eval"] == [30]
