"""Pictures of a run: drawn from its rows, with gaps where there is no number."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from spiketriton.runs.folder import RunFolder
from spiketriton.show.run_pictures import draw_run, gradients
from tests.small_runs import small_recipe, small_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    path = tmp_path_factory.mktemp("pictures") / "run"
    small_trainer(path).fit()
    return RunFolder.open(path)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def test_pictures_are_drawn_from_the_rows(run):
    paths = draw_run(run, small_recipe(), synthetic=False)
    assert [path.name for path in paths] == ["curves.png", "gradients.png", "firing.png"]
    for path in paths:
        image = pixels(path)
        assert min(image.shape[:2]) >= 300
        assert image.std() > 10
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50  # lines, text, colours


def test_a_picture_shows_its_data(run):
    """The same rows, the same bits; other gradients, another heat map."""

    def drawn(rows: list[dict]) -> np.ndarray:
        canvas = FigureCanvasAgg(gradients(rows, "title"))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba(), dtype=float)

    rows = run.gradients.read()
    grown = [
        row | {"grad_input_rms": row["grad_input_rms"] * 10 ** row["time_step"]} for row in rows
    ]
    before = drawn(rows)
    assert np.array_equal(before, drawn(rows))
    assert np.abs(before - drawn(grown)).mean() > 1


def test_nothing_measured_nothing_drawn(tmp_path):
    small_trainer(tmp_path / "twin", "neuron.kind=relu", "train.max_steps=4").fit()
    paths = draw_run(RunFolder(tmp_path / "twin"), small_recipe(), synthetic=True)
    assert [path.name for path in paths] == ["curves.png"]
    small_trainer(tmp_path / "none").fit(until=0)
    assert draw_run(RunFolder(tmp_path / "none"), small_recipe(), synthetic=False) == []


def test_gradients_that_are_zero_or_not_finite_are_drawn_as_gaps(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "x")
    values = [0.0, float("inf"), 1e-3, float("nan")]
    folder.gradients.append(
        {
            "step": 1,
            "layer": f"layer{index}",
            "index": index,
            "time_step": t,
            "grad_input_rms": value,
            "firing_rate": 0.0,
            "outside_share": 1.0,
        }
        for index, value in enumerate(values)
        for t in range(2)
    )
    paths = draw_run(folder, small_recipe(), synthetic=False)
    assert [path.name for path in paths] == ["gradients.png", "firing.png"]
