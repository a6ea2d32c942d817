"""Figures: places of ticks, gaps, sizes, and what is saved."""

import itertools

import numpy as np
import pytest

from spiketriton.show.figures import (
    heat_map,
    log_scale,
    new_figure,
    save,
    thinned,
)


def test_a_heat_map_names_its_layers_and_thins_them():
    axes = new_figure(5, 5).subplots()
    names = [f"layer {n}" for n in range(30)]
    values = np.arange(30 * 13.0).reshape(30, 13)
    heat_map(axes, values, names, "title", "unit", most=500)
    assert [label.get_text() for label in axes.get_yticklabels()] == names[::2]
    assert axes.get_xticks().tolist() == list(range(0, 13, 2))
    assert thinned(128, 12) == [*range(0, 128, 20)]  # round ones
    (image,) = axes.get_images()
    assert np.array_equal(image.get_array(), values)
    assert image.get_clim() == (0, 500)
    assert axes.get_ylim() == (29.5, -0.5)  # the input at the top
    heat_map(axes, values, names, "title", "unit")
    assert axes.get_images()[1].get_clim() == (0, 389)


def test_the_colours_of_logarithms_are_told_as_numbers():
    figure = new_figure(5, 5)
    axes = figure.subplots()
    values = 10 ** np.array([[-4.5, 0.2], [-1.0, np.nan]])
    heat_map(axes, values, ["a", "b"], "t", "u", logs=True)
    figure.draw_without_rendering()
    labels = figure.axes[1].get_yticklabels()
    shown = [label.get_text() for label in labels if -4.5 <= label.get_position()[1] <= 0.2]
    assert shown == ["1e-4", "1e-3", "0.01", "0.1", "1"]


@pytest.mark.parametrize("values", [(2.1, 2.4), (2, 9), (1e-5, 3e-4), (1e-5, 1e-2), (1e-30, 1e9)])
def test_the_numbers_of_a_log_scale_do_not_overlap(values):
    """From a part of one decade to forty: two numbers at least, and none over another."""
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot(values, [0, 1])
    log_scale(axes, "x")
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    shown = [
        label.get_window_extent()
        for label in (*axes.get_xticklabels(), *axes.get_xticklabels(minor=True))
        if label.get_text() and low <= label.get_position()[0] <= high
    ]
    assert len(shown) >= 2
    assert all(a.x1 + 2 < b.x0 for a, b in itertools.pairwise(shown))


@pytest.mark.parametrize("values", [(), (np.nan, np.nan), (3.0, 3.0)])
def test_a_log_scale_of_nothing_can_be_drawn(values):
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot(values, values)
    log_scale(axes, "y")
    figure.draw_without_rendering()


def test_pictures_without_data_are_not_saved(tmp_path):
    pictures = {"a.png": lambda: new_figure(2, 1), "b.png": lambda: None}
    assert save(tmp_path, pictures) == [tmp_path / "a.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.filterwarnings("error")
def test_letters_without_a_font_are_told_in_one_line(tmp_path, capsys):
    twice = {name: lambda: new_figure(2, 1, "a\U0010fffd\U0010fffd") for name in ("a.png", "b.png")}
    assert len(save(tmp_path, twice)) == 2
    assert capsys.readouterr().err.count("boxes in place of \U0010fffd, which") == 1
