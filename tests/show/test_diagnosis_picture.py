"""The picture of a diagnosis holds what was measured."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.variants import Change
from spiketriton.gradients.verdict import judge
from spiketriton.show import diagnosis_picture
from spiketriton.show.diagnosis_picture import draw
from spiketriton.show.figures import BLUE, GREY, ORANGE
from tests.show.support import measurement


def found(measured: Measurement, synthetic: bool = False):
    """A diagnosis, as far as it is drawn."""
    variants = [
        SimpleNamespace(change=name, measured=measurement(factor * measured.grad_input))
        for name, factor in ((Change.HALF_WIDTH, 0.5), (Change.TWICE_WIDTH, 2.0), (Change.LEAK, 9.0))
    ]  # fmt: skip
    return SimpleNamespace(
        measured=measured,
        synthetic=synthetic,
        subject=SimpleNamespace(recipe=SimpleNamespace(name="small")),
        verdict=judge(measurement(np.ones((2, 2)), firing=np.ones((2, 2)))),
        predicted=None,
        variants=variants,
        overlap=np.array([0.75, 0.5]),
    )


def drawn(monkeypatch, path, *arguments):
    """The figure, and the size of the file in pixels."""
    made = []
    new = diagnosis_picture.new_figure
    monkeypatch.setattr(
        diagnosis_picture, "new_figure", lambda *size: made.append(new(*size)) or made[-1]
    )
    draw(found(*arguments), path)
    with Image.open(path) as image:
        return made[0], image.size


def test_every_panel_shows_its_numbers(tmp_path, monkeypatch):
    grads = np.array([[1.0, 100.0], [0.0, 0.0]])
    figure, pixels = drawn(monkeypatch, tmp_path / "x.png", measurement(grads))
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
    assert image.get_xlim() == (-0.05, 1.05)
    assert depth.get_ylim() == image.get_ylim() == heat.get_ylim() == (1.5, -0.5)
    assert (depth.get_xscale(), time.get_yscale()) == ("log", "log")
    assert (depth.get_title("left"), time.get_title("left")) == (
        "Through depth",
        f"Through time: {measurement(grads).time_ratio:.3g}x",
    )
    assert figure.get_suptitle() == "small: no obstacle found"
    height = 0.16 * 14 + 4.3
    assert figure.get_size_inches() == pytest.approx([11, height])
    assert pixels == (11 * 110, int(height * 110))
    boxes = [axes.get_position() for axes in (heat, depth, image)]
    assert [box.y0 for box in boxes] == pytest.approx(
        [boxes[0].y0] * 3
    )  # a layer is one row in all


def test_without_a_ratio_the_title_is_short_and_synthetic_images_are_named(tmp_path, monkeypatch):
    figure, _ = drawn(monkeypatch, tmp_path / "x.png", measurement(np.ones((20, 1))), True)
    assert [figure.axes[i].get_title("left") for i in (1, 3)] == [
        "Through depth: 1x per layer",
        "Through time",
    ]
    assert figure.get_suptitle() == "small (synthetic images): no obstacle found"
    assert figure.get_size_inches()[1] == pytest.approx(0.16 * 20 + 4.3)
