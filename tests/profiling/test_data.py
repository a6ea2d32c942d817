"""The loader alone, and the step that it feeds."""

import pytest

from profiling.harness.contenders import Status
from profiling.render import tables
from profiling.sections import data
from profiling.sections.data import STEP, TORCHVISION, Loader, Loading, OnOneCore, Preparing
from profiling.sections.recipes import find_recipe
from tests.small_events import make_events


def test_a_loader_is_compared_with_the_step_that_it_feeds(measured, quick):
    case = Loading(find_recipe("quickstart"), quick)
    of = measured(case, "no worker", STEP, section="data")
    loader, step = of["no worker"], of[STEP]
    assert (loader["workers"], loader["augment"]) == (0, "standard")
    assert loader["of_step"] == pytest.approx(loader["images_per_s"] / step["images_per_s"])
    assert step["images_per_s"] == pytest.approx(2 / step["median_ms"] * 1e3)
    assert "of_step" not in step


def test_recordings_are_counted_in_frames_too(measured, quick, tmp_path):
    """What a core loads in a second: the training process alone, without workers."""
    make_events(tmp_path, "n_mnist", per_class=2, count=50)
    changes = ["data.name=n_mnist", f"data.root={tmp_path}", "data.augmentation.delete=1"]
    case = Loading(find_recipe("digits_dvs", changes), quick)
    row = measured(case, "no worker", section="data")["no worker"]
    assert row["frames_per_s"] == pytest.approx(row["images_per_s"] * 1)  # one of two is deleted
    (grid,) = tables.tables([row], "data")
    (line,) = grid.lines
    shown = dict(zip(grid.header, line, strict=True))
    assert shown["frames/s"] == shown["images/s"] != tables.BLANK


def test_other_batches_with_workers_are_wrong():
    loader = Loader(find_recipe("quickstart", ["seed=1"]))
    loader.recipe = find_recipe("quickstart", ["seed=2"])
    assert loader.check()["status"] == Status.WRONG


@pytest.mark.parametrize(
    ("kind", "augment"), [("CIFAR", "strong"), ("photographs of 500x375", "standard")]
)
def test_what_one_core_prepares_is_torchvisions(measured, quick, kind, augment):
    rows = measured(OnOneCore(kind, augment, quick), section="data")
    assert list(rows) == ["spiketriton", "spiketriton, finished on the CPU", TORCHVISION]
    for name, row in rows.items():
        assert (row["status"], row["images_of"], row["augment"]) == (Status.OK, kind, augment)
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["median_ms"] * 1e3)
        assert (row["mean_error"] == 0) == (kind == "CIFAR" or name == TORCHVISION)


def test_another_augmentation_is_wrong():
    theirs = data.Torchvision("CIFAR", "strong")

    def other(images, keys):
        return 0.1 + theirs(images, keys)

    verdict = Preparing(data.Images("CIFAR", 4), other, other, theirs).check()
    assert verdict["status"] == Status.WRONG
    assert "off by 0.1 on average (allowed 0.0)" in verdict["why"]
