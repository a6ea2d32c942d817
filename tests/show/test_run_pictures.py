"""Pictures of a run: drawn from its rows, with gaps where there is no number."""

import numpy as np
import pytest

from spiketriton.runs.folder import RunFolder
from spiketriton.show.figures import BLUE, GREY, ORANGE
from spiketriton.show.run_pictures import curves, draw_run, firing, gradients
from tests.small_runs import QUICK, small_trainer


def test_nothing_measured_nothing_drawn(tmp_path):
    small_trainer(tmp_path / "twin", *QUICK, "neuron.kind=relu", "train.max_steps=4").fit()
    paths = draw_run(RunFolder(tmp_path / "twin"), "a title")
    assert [path.name for path in paths] == ["curves.png"]
    small_trainer(tmp_path / "none", *QUICK).fit(until=0)
    assert draw_run(RunFolder(tmp_path / "none"), "a title") == []


def rows_of(steps: list[int], grads: list[list[float]], **fields: float) -> list[dict]:
    """Rows of gradients.jsonl; the gradients of step n are n times `grads` [layers][T]."""
    values = {"firing_rate": 0.05, "outside_share": 0.0} | fields
    return [
        {"step": n, "layer": f"l{i}", "index": i, "time_step": t, "grad_input_rms": n * g, **values}
        for n in steps
        for i, line in enumerate(grads)
        for t, g in enumerate(line)
    ]


@pytest.mark.parametrize(
    ("steps", "chosen", "colours"),
    [
        ([10], [10], [BLUE]),
        ([1, 10], [1, 10], [ORANGE, BLUE]),
        ([1, 2, 4, 8, 10], [1, 4, 10], [GREY, ORANGE, BLUE]),
    ],
)
def test_depth_profiles_of_the_first_middle_and_last_step(steps, chosen, colours):
    heat, depth, _ = gradients(rows_of(steps, [[3.0, 4.0], [0.0, 0.0]]), "title").axes
    assert heat.get_images()[0].get_array()[0].tolist() == pytest.approx(np.log10([30, 40]))
    assert heat.get_title() == "Size of the gradient at step 10"
    assert [line.get_label() for line in depth.get_lines()] == [f"step {n}" for n in chosen]
    assert [line.get_color() for line in depth.get_lines()] == colours
    for line, step in zip(depth.get_lines(), chosen, strict=True):
        assert line.get_xdata() == pytest.approx([step * np.sqrt(12.5), np.nan], nan_ok=True)
        assert list(line.get_ydata()) == [0, 1]
        assert line.get_marker() == "o"
    assert depth.get_xscale() == "log"
    assert depth.get_ylim() == heat.get_ylim()
    assert heat.get_subplotspec().get_gridspec().get_width_ratios() == [1.15, 1]


@pytest.mark.parametrize(
    ("rate", "outside", "limits"),
    [(0.05, 0.0, [(0, 0.1), (0, 1)]), (0.75, 0.5, [(0, 0.75), (0, 50)])],
)
def test_firing_rates_and_neurons_out_of_reach(rate, outside, limits):
    figure = firing(rows_of([1, 5], [[1.0, 1.0]], firing_rate=rate, outside_share=outside), "title")
    left, right = figure.axes[:2]
    images = [axes.get_images()[0] for axes in (left, right)]
    assert images[0].get_array().tolist() == [[rate, rate]]
    assert images[1].get_array().tolist() == [[100 * outside] * 2]
    assert [image.get_clim() for image in images] == limits
    assert left.get_title() == "Firing rate at step 5"
    assert firing([], "title") is None


def test_curves_against_epochs():
    train = [
        {"kind": "train", "epoch": 0.5 * n, "loss": 2.0 / n, "lr": 0.1 * n, "grad_norm": 3.0 * n}
        for n in (1, 2)
    ]
    train.append({"kind": "train", "epoch": 2.0, "loss": None, "lr": 0.0, "grad_norm": None})
    tests = [
        {"kind": "eval", "epoch": e, "test_loss": e / 4, "test_accuracy": a, **more}
        for e, a, more in ((1.0, 0.75, {}), (2.0, 0.5, {"validation_accuracy": 0.25}))
    ]
    figure = curves([*train, *tests], "title")
    loss, accuracy, rate, norm = figure.axes
    first, second = loss.get_lines()
    assert first.get_xydata().tolist() == [[0.5, 2], [1, 1]]
    assert second.get_xydata().tolist() == [[1, 0.25], [2, 0.5]]
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (loss, accuracy)]
    assert legends == [["training", "test"], ["test", "validation"]]
    tested, validated = accuracy.get_lines()
    assert tested.get_xydata().tolist() == [[1, 75], [2, 50]]
    assert validated.get_xydata().tolist() == [[2, 25]]
    assert accuracy.get_title() == "Test accuracy, last 50.00 %"
    assert rate.get_lines()[0].get_ydata().tolist() == [0.1, 0.2, 0]
    assert norm.get_lines()[0].get_xydata().tolist() == [[0.5, 3], [1, 6]]
    assert (norm.get_yscale(), rate.get_yscale()) == ("log", "linear")
    assert curves(train, "title").axes[1].get_title() == "Test accuracy"
    assert curves(tests, "title") is None
