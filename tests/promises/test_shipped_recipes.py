"""The large recipes take real steps: real networks and windows, small folders in the data sets' own layouts."""

from pathlib import Path

import pytest
import torch

import spiketriton
from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.models import build_model, count_parameters
from spiketriton.runs.folder import RunFolder
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


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("root", ["imagenette_r18"], indirect=True)
def test_the_command_trains_a_large_recipe(root, tmp_path):
    name, folder = root
    run = tmp_path / "run"
    arguments = [str(RECIPES / f"{name}.toml"), f"data.root={folder}", "train.batch_size=2"]
    arguments += ["train.max_steps=2", "train.log_every=1", "data.image_size=64", "data.workers=0"]
    assert main([*arguments, "--run-dir", str(run)]) == 0
    rows = RunFolder(run).metrics.read()
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 2
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert [row["test_images"] for row in rows if row["kind"] == "eval"] == [30]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar10_r19_tdbn", 12.70e6),
        ("cifar100_r19_tet", 12.72e6),
        ("cifar10_r19_tebn", 12.70e6),
        ("cifar10_vgg16", 14.72e6),
        ("cifar10_csnn_psn", 70.11e6),
        ("cifar10_spikformer", 9.31e6),
        ("cifar10_qkformer", 6.79e6),
        ("cifar10_sdt", 10.23e6),
    ],
)
def test_the_networks_of_the_cifar_tables_take_a_step_as_shipped(name, parameters, tmp_path):
    changes = ["data.name=synthetic", "data.classes=" + ("100" if "cifar100" in name else "10")]
    changes += ["train.max_steps=1", "train.batch_size=4", "data.workers=0", "data.image_size=32"]
    changes += ["data.train_images=8", "data.test_images=4", "train.precision=fp32"]
    run = tmp_path / "run"
    assert main([str(RECIPES / f"{name}.toml"), *changes, "--run-dir", str(run)]) == 0
    rows = RunFolder(run).metrics.read()
    assert [row["kind"] for row in rows] == ["train", "eval"]
    assert 0 < rows[1]["test_loss"] < 20
    model = spiketriton.load_run(run, plugins=True).model
    assert count_parameters(model) == pytest.approx(parameters, rel=5e-3)
