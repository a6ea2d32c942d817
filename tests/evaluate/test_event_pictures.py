"""Pictures of recordings show the frames that were counted and the answers that were given."""

import io

import numpy as np
import torch
from matplotlib.colors import to_hex
from PIL import Image

from spiketriton.evaluate.event_pictures import (
    animation,
    colours,
    frames,
    latency,
    most_of,
)
from spiketriton.evaluate.results import Sample
from spiketriton.show.figures import BLUE, ORANGE
from tests.show.support import ann, evaluation


def sample(*answers: str, side: int = 4) -> Sample:
    """One event in each frame: brighter at row 0, then darker; column t."""
    found = np.zeros((len(answers), 2, side, side), np.uint8)
    for t in range(len(answers)):
        found[t, (t + 1) % 2, 0, t % side] = 2
    return Sample.of("cat", torch.from_numpy(found), list(answers))


def test_brighter_is_blue_darker_orange_and_nothing_white():
    frame = np.zeros((2, 1, 4), np.uint8)
    frame[1, 0, 1], frame[0, 0, 2] = 4, 9  # beyond the most, nothing grows
    pixels = [to_hex(pixel / 255) for pixel in colours(frame, 4)[0]]
    assert pixels == ["#ffffff", BLUE, ORANGE, "#ffffff"]
    both, one = np.full((2, 1, 1), 4, np.uint8), np.array([[[0]], [[4]]], np.uint8)
    assert (colours(both, 4) <= colours(one, 4)).all()  # of both: darker than either


def test_frames_have_edges_and_the_answers_below_them():
    samples = [sample("dog", "cat", "cat", "a-long-name-of-a-class")]
    one = evaluation(events=True, ms_per_step=50.0, samples=samples)
    figure = frames(one, "title")
    assert figure is not None
    axes = figure.axes
    assert [a.get_title() for a in axes] == ["50 ms", "100 ms", "150 ms", "200 ms"]
    labels = [a.xaxis.label for a in axes]
    assert [label.get_text() for label in labels] == ["dog", "cat", "cat", "a-long-name-o…"]
    assert [label.get_color() for label in labels] == [ORANGE, BLUE, BLUE, ORANGE]
    assert axes[0].get_ylabel() == "cat"
    for t, panel in enumerate(axes):
        assert all(edge.get_visible() for edge in panel.spines.values())
        shown = panel.get_images()[0].get_array()
        assert np.array_equal(shown, colours(one.samples[0].frames[t], most_of(one.samples[0])))
    assert "blue where it got brighter" in figure.get_supxlabel()


def test_bins_by_number_are_frames_and_of_many_some_are_shown():
    one = evaluation(events=True, samples=[sample(*["cat"] * 16)])
    figure = frames(one, "title")
    assert figure is not None
    shown = (1, 3, 4, 6, 8, 9, 11, 13, 14, 16)
    assert [a.get_title() for a in figure.axes] == [f"frame {t}" for t in shown]
    assert frames(evaluation(), "title") is None
    assert latency([one, ann()], "title") is None
    (axes,) = latency([evaluation(events=True, ms_per_step=12.5), one], "title").axes
    (curve,) = axes.get_lines()
    assert curve.get_xydata().tolist() == [[12.5, 50], [25, 62.5], [37.5, 75], [50, 81.25]]


def test_the_animation_has_every_frame():
    one = sample("cat", "cat", "dog")
    with Image.open(io.BytesIO(animation(one))) as moving:
        assert (moving.n_frames, moving.size, moving.info["duration"]) == (3, (256, 256), 250)
        assert moving.info["loop"] == 0
        for t in range(3):
            moving.seek(t)
            image = np.asarray(moving.convert("RGB")).astype(int)
            expected = colours(one.frames[t], 2).repeat(64, 0).repeat(64, 1)
            assert abs(image - expected).max() <= 8  # a GIF has a palette
