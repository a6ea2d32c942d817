"""The picture of a sweep: norms of the untrained nets."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from spiketriton.runs.folder import RunFolder
from spiketriton.sweep import pictures as sweep_pictures
from spiketriton.sweep.grid import Cell, Group
from spiketriton.sweep.pictures import norms
from tests.small_runs import small_recipe

WIDTH = "neuron.surrogate.width"
NORMS = np.array([[1.0, 3.0], [4.0, 4.0]])


def a_group(folder: Path, values: dict[str, str], *accuracies: float | None, width=0.5) -> Group:
    cells, results = [], []
    for seed, reached in enumerate(accuracies):
        path = folder / ",".join([*values.values(), str(seed)])
        run = RunFolder.create(path, "x")
        for step, factor in ((1, 10.0**seed), (2, 7.0)):
            run.gradients.append(
                {
                    "step": step, "layer": f"layer{i}", "index": i, "time_step": t,
                    "grad_input_rms": factor * NORMS[i, t], "grad_membrane_rms": 1.0,
                    "firing_rate": 0.5, "outside_share": 0.0, "transmission": 1.0,
                }
                for i in range(2)
                for t in range(2)
            )  # fmt: skip
        cells.append(Cell(values, small_recipe(), path))
        results.append({"test_accuracy": reached, "seconds": 1.0, "width": width})
    return Group(values, results, cells)


def test_norms_are_those_of_the_first_step_geometric_over_seeds(tmp_path):
    swept = {"10": (0.5,), "2": (0.5, 0.5), "auto": (0.5,), "0.5": (0.5,)}
    groups = [a_group(tmp_path, {WIDTH: width}, *found) for width, found in swept.items()]
    axes = norms(groups, WIDTH, "").axes[0]
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["0.5", "2", "10", "auto"]
    profile = np.array([math.sqrt(5), 4])  # RMS over time
    assert lines[0].get_ydata() == pytest.approx(profile)
    assert lines[1].get_ydata() == pytest.approx(profile * math.sqrt(10))  # of 1 and 10
    assert lines[0].get_xdata().tolist() == [0, 1]


def test_a_panel_for_each_other_value_and_none_for_too_many(tmp_path, monkeypatch):
    groups = [
        a_group(tmp_path, {WIDTH: "1", "a.depth": d, "tau": t}, 0.5) for d in "234" for t in "56"
    ]
    figure = norms(groups, WIDTH, "")
    assert figure.axes[0].get_title() == "depth 2, tau 5"
    monkeypatch.setattr(sweep_pictures, "MOST_PANELS", 6)
    assert norms(groups, WIDTH, "") is not None
    monkeypatch.setattr(sweep_pictures, "MOST_PANELS", 5)
    assert norms(groups, WIDTH, "") is None


def test_every_panel_has_a_point_and_layers_without_a_gradient_are_drawn_when_they_have_one(
    tmp_path,
):
    groups = [a_group(tmp_path, {"tau": t, "kind": k}, 0.5) for t in "12" for k in ("lif", "relu")]
    for group in groups:
        (cell,) = group.cells
        run = RunFolder(cell.path)
        rows = run.gradients.read()
        for row in rows:  # as where residual branches start at zero
            row["grad_input_rms"] *= row["step"] == 2 or row["index"] == 1
        ann = group.values["kind"] == "relu"
        run.gradients.path.write_text("" if ann else "".join(f"{json.dumps(r)}\n" for r in rows))
    figure = norms(groups, "tau", "")
    assert figure.get_suptitle() == "Gradient against spiking layer, at step 2"
    seen, unseen = figure.axes
    assert (seen.get_visible(), unseen.get_visible()) == (True, False)
    for line in seen.get_lines():
        assert line.get_marker() == "o"
        assert line.get_ydata() == pytest.approx(7 * np.array([math.sqrt(5), 4]))


def test_one_point_is_seen(tmp_path):
    group = a_group(tmp_path, {"tau": "1"}, 0.5)
    run = RunFolder(group.cells[0].path)
    rows = [row | {"grad_input_rms": float(row["index"])} for row in run.gradients.read()]
    run.gradients.path.write_text("".join(f"{json.dumps(r)}\n" for r in rows if r["step"] == 1))
    figure = norms([group], "tau", "")
    assert "before training" in figure.get_suptitle()
    (line,) = figure.axes[0].get_lines()
    assert np.isfinite(line.get_ydata()).tolist() == [False, True]
    assert figure.axes[0].get_xlabel() == "spiking layer; without a point: gradient 0"
    assert figure.axes[0].get_xlim() == (-0.5, 1.5)
    assert line.get_marker() == "o"


def test_the_norms_of_an_ann_are_not_drawn(tmp_path):
    group = a_group(tmp_path, {"tau": "2"}, 0.5)
    group.cells[0] = Cell({}, small_recipe(), tmp_path / "nothing")
    assert norms([group], "tau", "") is None
