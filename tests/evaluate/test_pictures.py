"""Pictures of evaluations hold what was counted."""

from pathlib import Path

import numpy as np
import pytest

from spiketriton.evaluate.pictures import (
    accuracy,
    confusion,
    energy,
    learning,
    rates,
)
from spiketriton.runs.rows import Rows
from tests.show.support import ann, evaluation


def test_accuracy_by_time_steps_with_the_ann_as_a_line():
    (axes,) = accuracy([evaluation(), ann()], "title").axes
    curve, diamond, line = axes.get_lines()
    assert curve.get_xydata().tolist() == [[1, 50], [2, 62.5], [3, 75], [4, 81.25]]
    assert curve.get_marker() == "o"
    assert diamond.get_xydata().tolist() == [[3, 75]]
    assert line.get_ydata() == [76, 76]
    band = axes.collections[0].get_paths()[0].vertices
    assert [band[:, 1].min(), band[:, 1].max()] == pytest.approx([40, 91.25])
    assert axes.get_xscale() == "linear"
    assert axes.get_title() == "net (lif) is within a point of its best after 4 time steps"
    twin = accuracy([ann(), evaluation()], "title").axes[0]
    assert twin.get_title() == "twin (ANN): 76.0 %"


def test_learning_of_several_runs(tmp_path: Path):
    runs = [evaluation(run=str(tmp_path / name)) for name in ("one", "two")]
    for one, share in zip(runs, (0.5, 0.25), strict=True):
        rows = Rows(Path(one.run) / "metrics.jsonl")
        rows.path.parent.mkdir()
        rows.append(
            {"kind": kind, "step": 4 * epoch, "epoch": epoch, "seconds": 1.0}
            | dict.fromkeys(("loss", "lr", "grad_norm", "test_loss"), 1.0)
            | {"test_accuracy": share * epoch}
            for epoch in (1, 2)
            for kind in ("train", "eval")
        )
    (axes,) = learning([*runs, ann()], "title").axes
    drawn = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert drawn == [[[1, 50], [2, 100]], [[1, 25], [2, 50]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [r.label for r in runs]
    assert axes.get_title() == f"{runs[0].label} ends highest, at 100.0 %"
    assert learning([runs[0], ann()], "title") is None


def test_energy_against_accuracy():
    left, right = energy([evaluation(), ann()], "title").axes
    points = np.array([50, 62.5, 75, 81.25])
    for axes, own, twin in ((left, [1.5, 2.5, 4.6, 5.5], 46), (right, [10, 20, 36.5, 40], 146)):
        net, diamond, star = axes.get_lines()
        assert diamond.get_xydata().tolist() == [[own[2], 75]]  # T = 3
        assert net.get_xydata().tolist() == np.stack([own, points], 1).tolist()
        assert star.get_xydata().tolist() == [[twin, 76]]
        assert (net.get_marker(), star.get_marker()) == ("o", "*")
        assert axes.get_xscale() == "log"
    titles = [axes.get_title() for axes in (left, right)]
    assert titles == [
        "Operations alone: net (lif) 4.6 µJ, 0.1x the ANN's",
        "With data movement: net (lif) 36.5 µJ, 0.25x the ANN's",
    ]


def test_rates_and_silent_neurons():
    heat, bars, _ = rates(evaluation(), "title").axes
    (image,) = heat.get_images()
    assert image.get_array().tolist() == [[0.125, 0.25, 0.375, 0.9], [0.5] * 4]
    assert image.get_clim() == (0, 0.9)
    boxes = [(bar.get_x(), bar.get_width()) for bar in bars.patches]
    assert boxes == [(0, 5), (0, 5), (5, 10), (5, 0)]
    assert bars.get_xlim() == (0, 100)


def test_confusion_in_percent_of_the_class():
    figure = confusion(evaluation(), "title")
    axes = figure.axes[0]
    assert axes.get_images()[0].get_array().tolist() == [[75, 25], [50, 50]]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "50", "50"]
    for classes, texts, named in ((20, 20, True), (21, 0, True), (120, 0, True), (121, 0, False)):
        many = [str(n) for n in range(classes)]
        one = evaluation(classes=many, confusion=np.eye(classes).tolist())
        axes = confusion(one, "title").axes[0]
        assert len(axes.texts) == texts
        assert ([label.get_text() for label in axes.get_yticklabels()] == many) == named
    empty = confusion(evaluation(confusion=[[0, 0], [199, 1]]), "title").axes[0]
    assert [text.get_text() for text in empty.texts] == ["100", "0"]  # from half a percent on
