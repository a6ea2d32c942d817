"""The large recipes take real steps: real networks and windows, small folders in the data sets' own layouts."""

import math

import pytest

import spiketriton
from spiketriton.models import count_parameters
from spiketriton.runs.folder import RunFolder
from spiketriton.train import main
from tests.small_data import accept_checksums, make_cifar100, make_class_tree, make_imagenette


def make_photographs(root):
    make_class_tree(root, ("train", "val"), ("n01", "n02"), 3)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("imagenette_r50", make_imagenette),  # JPEGs of odd sizes, greyscale and CMYK among them
        ("imagenet_ms34", make_photographs),
        ("cifar100_preact18", make_cifar100),
    ],
)
def test_large_recipes_take_real_steps(name, make, tmp_path, monkeypatch):
    """Fewer pixels, channels, images and steps than shipped, for the time that CI has; all else is as shipped."""
    made = make(tmp_path)
    if name.startswith("cifar"):
        accept_checksums(made, monkeypatch.setattr)
    changes = [
        f"data.root={tmp_path}",
        "data.image_size=32",
        "data.test_images=4",
        "data.workers=0",
    ]
    changes += ["model.width=8", "train.batch_size=4", "train.micro_batch=0", "train.max_steps=1"]
    changes += ["train.log_every=1"]
    run = tmp_path / "run"
    assert main([name, *changes, "--run-dir", str(run)]) == 0
    step, test = RunFolder(run).metrics.read()
    assert math.isfinite(step["loss"])
    assert math.isfinite(test["test_loss"])


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
    assert main([name, *changes, "--run-dir", str(run)]) == 0
    rows = RunFolder(run).metrics.read()
    assert [row["kind"] for row in rows] == ["train", "eval"]
    assert 0 < rows[1]["test_loss"] < 20
    model = spiketriton.load_run(run, plugins=True).model
    assert count_parameters(model) == pytest.approx(parameters, rel=5e-3)
