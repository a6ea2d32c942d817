"""Pictures of recordings: frames with the predictions after them, an animation, accuracy by milliseconds."""

from __future__ import annotations

import io
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from spiketriton.evaluate.results import Evaluation, Sample
from spiketriton.show.figures import BLUE, GREY, ORANGE, explain, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FRAMES = 10  # side by side
SIDE = 256  # pixels of the animation, about
SHOWN_MS = 250  # of each frame in the animation


def colours(frame: np.ndarray, most: int) -> np.ndarray:
    """Counts uint8 [2, S, S] -> uint8 [S, S, 3]: blue where it got brighter, orange where darker.

    most: the count of the full colour.
    """
    from matplotlib.colors import to_rgb

    share = np.sqrt(np.minimum(frame / max(most, 1), 1.0))[..., None]  # [2, S, S, 1]
    missing = 1 - np.array([to_rgb(ORANGE), to_rgb(BLUE)])[:, None, None]
    return (255 * (1 - share * missing).prod(0)).round().astype(np.uint8)


def most_of(sample: Sample) -> int:
    """The count that gets the full colour: exceeded by one in a hundred of those that are not 0."""
    counts = sample.frames[sample.frames > 0]
    return int(np.percentile(counts, 99)) if len(counts) else 1


def frames(one: Evaluation, title: str) -> Figure | None:
    """Test recordings, a row each: their frames, and below each the prediction so far."""
    if not one.samples:
        return None
    steps = len(one.samples[0].answers)
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, MOST_FRAMES)).round().astype(int))
    rows, columns = len(one.samples), len(chosen)
    figure = new_figure(1 + 1.15 * columns, 1.1 + 1.45 * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, sample in zip(grid, one.samples, strict=True):
        most = most_of(sample)
        for axes, step in zip(row, chosen, strict=True):
            axes.imshow(colours(sample.frames[step], most), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for side in axes.spines.values():  # most pixels are white, as the page is
                side.set(visible=True, color=GREY, linewidth=0.5)
            answer = sample.answers[step]
            right = answer == sample.label
            axes.set_xlabel(_short(answer), fontsize=8, color=BLUE if right else ORANGE)
        row[0].set_ylabel(_short(sample.label), fontsize=9)
    for axes, step in zip(grid[0], chosen, strict=True):
        ms = one.ms_per_step
        moment = f"frame {step + 1}" if ms is None else f"{(step + 1) * ms:.0f} ms"
        axes.set_title(moment, fontsize=8, fontweight="normal", loc="center")
    explain(
        figure,
        "pixels: blue where it got brighter, orange where darker; below a frame: the prediction after it, "
        "blue if it is correct",
    )
    return figure


def _short(text: str) -> str:
    return text if len(text) <= 14 else text[:13] + "…"


def animation(sample: Sample) -> bytes:
    """A recording as a GIF that repeats, a quarter of a second for each frame."""
    from PIL import Image

    most, scale = most_of(sample), max(1, SIDE // sample.shape[-1])
    shown = (colours(frame, most).repeat(scale, 0).repeat(scale, 1) for frame in sample.frames)
    first, *rest = map(Image.fromarray, shown)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=SHOWN_MS, loop=0)
    return buffer.getvalue()


def caption(one: Evaluation, sample: Sample) -> str:
    wrong = [t for t, answer in enumerate(sample.answers, 1) if answer != sample.label]
    last = wrong[-1] if wrong else 0
    if last == len(sample.answers):
        said = f"predicted {sample.answers[-1]} after all {last} frames"
    else:
        said = f"predicted correctly from frame {last + 1} of {len(sample.answers)} on"
    return f"{sample.label}, {said}; blue: brighter, orange: darker"


def latency(evaluations: list[Evaluation], title: str) -> Figure | None:
    timed = [one for one in evaluations if one.ms_per_step is not None]
    if not timed:
        return None
    figure = new_figure(8, 5, title)
    axes = figure.subplots()
    for one, colour in zip(timed, cycle((BLUE, ORANGE, GREY)), strict=False):
        assert one.ms_per_step is not None
        ms = np.arange(1, one.steps + 1) * one.ms_per_step
        low, high = 100 * np.array(one.interval).T
        axes.plot(ms, 100 * np.array(one.values), marker="o", color=colour, label=one.label)
        axes.fill_between(ms, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xlim(left=0)
    axes.set(title="Accuracy by the time that was seen", ylabel="test accuracy (%)")
    axes.set_xlabel("milliseconds of the recording (mean over recordings)")
    axes.legend(frameon=True)
    return figure
