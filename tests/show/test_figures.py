"""Figures: places of ticks, gaps, sizes, and what is saved."""

import itertools

import numpy as np
import pytest
from PIL import Image

from spiketriton.show.figures import (
    heat_map,
    layer_figure,
    log10,
    log_scale,
    new_figure,
    positive,
    save,
    short,
    thinned,
)


@pytest.mark.parametrize(
    ("count", "most", "places"),
    [
        (5, 12, range(5)),
        (12, 12, range(12)),
        (25, 12, range(0, 25, 3)),
        (128, 12, range(0, 128, 20)),
    ],
)
def test_at_most_so_many_places(count, most, places):
    assert thinned(count, most) == [*places]
    assert len(places) <= most


def test_logarithms_have_gaps():
    assert np.array_equal(log10(np.array([100.0, 0, -1, np.nan])), [2, *[np.nan] * 3], True)


def test_figures_grow_with_their_layers():
    assert layer_figure(1, "title").get_size_inches() == pytest.approx([11, 2.6 + 0.13 * 18])
    assert layer_figure(50, "title").get_size_inches() == pytest.approx([11, 2.6 + 0.13 * 50])
    assert layer_figure(50, "title").get_suptitle() == "title"
    assert new_figure(2, 1).get_suptitle() == ""


def test_a_heat_map_names_its_layers_and_thins_them():
    axes = new_figure(5, 5).subplots()
    names = [f"layer {n}" for n in range(30)]
    values = np.arange(30 * 13.0).reshape(30, 13)
    heat_map(axes, values, names, "viridis", "title", "unit", (-1, 500))
    assert [label.get_text() for label in axes.get_yticklabels()] == names[::2]
    assert axes.get_xticks().tolist() == list(range(0, 13, 2))
    (image,) = axes.get_images()
    assert np.array_equal(image.get_array(), values)
    assert image.get_clim() == (-1, 500)
    assert axes.get_ylim() == (29.5, -0.5)  # the input at the top
    heat_map(axes, values, names, "viridis", "title", "unit")
    assert axes.get_images()[1].get_clim() == (0, 389)


def test_the_colours_of_logarithms_are_told_as_numbers():
    figure = new_figure(5, 5)
    axes = figure.subplots()
    heat_map(axes, np.array([[-4.5, 0.2], [-1.0, np.nan]]), ["a", "b"], "viridis", "t", "u", logs=True)  # fmt: skip
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == ["1e-4", "1e-3", "0.01", "0.1", "1"]


def test_numbers_on_axes_are_short():
    numbers = (2e-5, 1.5e-3, 0.02, 1, 500, 1500, 1e12)
    assert [*map(short, numbers)] == ["2e-5", "1.5e-3", "0.02", "1", "500", "1500", "1e12"]


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


def test_the_style_of_all_pictures(tmp_path):
    def draw():
        figure = new_figure(2, 1, "title")
        axes = figure.subplots()
        (line,) = axes.plot([0, 1], marker="o", label="x")
        legend = axes.legend()
        axes.set_title("t")
        spines = {name for name, spine in axes.spines.items() if spine.get_visible()}
        assert spines == {"left", "bottom"}
        assert axes.xaxis.get_gridlines()[0].get_visible()
        assert not legend.get_frame_on()
        assert (line.get_linewidth(), line.get_markersize()) == (1.3, 4)
        title = axes.title if axes.title.get_text() else axes._left_title
        assert (title.get_fontsize(), title.get_weight()) == (11, "bold")
        assert axes.get_title("left") == "t"
        assert figure._suptitle.get_position()[0] == 0.01
        return figure

    (path,) = save(tmp_path, {"a.png": draw})
    with Image.open(path) as image:
        assert image.size == (220, 110)  # 110 dots an inch


@pytest.mark.filterwarnings("error")
def test_letters_without_a_font_are_told_in_one_line(tmp_path, capsys):
    twice = {name: lambda: new_figure(2, 1, "a\U0010fffd\U0010fffd") for name in ("a.png", "b.png")}
    assert len(save(tmp_path, twice)) == 2
    assert capsys.readouterr().err.count("boxes in place of \U0010fffd, which") == 1


def test_only_finite_values_above_0_are_positive():
    given = np.array([1e-9, 0, -1, np.inf, np.nan, 2])
    assert np.array_equal(positive(given), [1e-9, *[np.nan] * 4, 2], equal_nan=True)


def test_a_heat_map_thins_its_ticks_only_when_it_must():
    axes = new_figure(5, 5).subplots()
    heat_map(axes, np.zeros((26, 12)), [*"abcdefghijklmnopqrstuvwxyz"], "viridis", "title", "unit")
    assert len(axes.get_yticks()) == 26
    assert axes.get_xticks().tolist() == list(range(12))
    assert not axes.xaxis.get_gridlines()[0].get_visible()
    assert {label.get_fontsize() for label in axes.get_yticklabels()} == {8}
    assert axes.get_xlabel() == "time step; colour: unit"
