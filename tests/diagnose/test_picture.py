"""The picture of a diagnosis holds what was measured."""

from types import SimpleNamespace

import numpy as np
import pytest

from spiketriton.diagnose import picture as diagnosis_picture
from spiketriton.diagnose.ablations import Change
from spiketriton.diagnose.picture import draw
from spiketriton.gradients.measurement import Measurement, Signal
from spiketriton.gradients.verdict import judge
from spiketriton.show.figures import BLUE, GREY, ORANGE
from tests.show.support import measurement


def found(measured: Measurement, synthetic: bool = False):
    """A diagnosis, as far as it is drawn."""
    ablations = [
        SimpleNamespace(change=name, measured=measurement(factor * measured.grad_input_rms))
        for name, factor in ((Change.HALF_WIDTH, 0.5), (Change.TWICE_WIDTH, 2.0), (Change.LEAK, 9.0))
    ]  # fmt: skip
    return SimpleNamespace(
        measured=measured,
        synthetic=synthetic,
        subject=SimpleNamespace(recipe=SimpleNamespace(name="small")),
        verdict=judge(measurement(np.ones((2, 2)), firing_rate=np.ones((2, 2)))),
        ablations=ablations,
        signal=Signal(np.array([0.75, 0.5]), True),
        opened=False,
    )


def drawn(monkeypatch, path, *arguments):
    made = []
    new = diagnosis_picture.new_figure
    monkeypatch.setattr(
        diagnosis_picture, "new_figure", lambda *size: made.append(new(*size)) or made[-1]
    )
    draw(found(*arguments), path)
    return made[0]


def test_every_panel_shows_its_numbers(tmp_path, monkeypatch):
    grads = np.array([[1.0, 100.0], [0.0, 0.0]])
    figure = drawn(monkeypatch, tmp_path / "x.png", measurement(grads))
    heat, depth, image, time, _, key = figure.axes
    assert np.array_equal(heat.get_images()[0].get_array().filled(-9), [[0, 2], [-9, -9]])
    profile = np.array([np.sqrt(5000.5), np.nan])  # a gap where nothing arrives
    for axes, curve, vertical in ((depth, profile, True), (time, np.array([1.0, 100]), False)):
        for line, factor, colour in zip(
            axes.get_lines(), (1, 0.5, 2), (BLUE, GREY, ORANGE), strict=True
        ):
            x, y = line.get_data()
            places, values = (y, x) if vertical else (x, y)
            assert list(places) == [0, 1]
            assert values == pytest.approx(factor * curve, nan_ok=True)
            assert (line.get_color(), line.get_marker()) == (colour, "o")
    labels = [text.get_text() for text in key.get_legend().get_texts()]
    assert labels == ["as it is", "half as wide", "twice as wide"]
    assert image.get_lines()[0].get_xydata().tolist() == [[0.75, 0], [0.5, 1]]
    assert depth.get_ylim() == image.get_ylim() == heat.get_ylim() == (1.5, -0.5)
    assert (depth.get_xscale(), time.get_yscale()) == ("log", "log")
    assert (depth.get_title("left"), time.get_title("left")) == (
        "Through depth",
        f"Through time: {measurement(grads).time_ratio:.3g}x",
    )
    assert figure.get_suptitle() == "small: not judged"


def test_how_far_back_the_gradient_reaches_is_drawn_where_it_was_told_apart(tmp_path, monkeypatch):
    ones = np.ones((2, 4))
    credit = np.array([[1e-9, 0.02, 0.5, 0], [0, 0, 0, 0]])
    direct = np.array([[0, 0, 0, 1.0], [0, 0, 0, 0]])
    figure = drawn(monkeypatch, tmp_path / "x.png", measurement(ones, credit=credit, direct=direct))
    axes = next(axes for axes in figure.axes if "How far back" in axes.get_title("left"))
    shown = axes.get_images()[0].get_array().filled(-9)
    assert shown == pytest.approx(np.log10(np.clip(credit + direct, 1e-4, 10)))
    (line,) = axes.get_lines()
    assert line.get_xdata() == pytest.approx([0.5, np.nan], nan_ok=True)  # from step 1 on; nowhere
    assert list(line.get_ydata()) == [0, 1]
