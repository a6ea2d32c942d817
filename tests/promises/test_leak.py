"""Training does not leak: the resident memory of a long run, and the measure of its growth."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.runs.folder import RunFolder
from spiketriton.show.display import Quiet
from spiketriton.trainer import Trainer

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart.toml"
TOLERANCE = 8.0
"""MiB between the second and the last quarter of a run: 8 KiB a step over 2,000 steps is found."""


def growth(mib: Sequence[float]) -> float:
    """The median of the last quarter's samples beyond that of the second quarter's.

    The first quarter is warm-up: libraries, caches and the allocator's pools fill.
    """
    quarter = len(mib) // 4
    return statistics.median(mib[-quarter:]) - statistics.median(mib[quarter : 2 * quarter])


class Watched(Quiet):
    """A silent display that samples the resident memory of this process at every tenth step."""

    def __init__(self) -> None:
        super().__init__()
        self.mib: list[float] = []

    def advance(self, step: int) -> None:
        if step % 10 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def resident(folder: Path, steps: int, *changes: str) -> list[float]:
    """MiB over a training as the command runs it: with monitor, rows, tests and checkpoints."""
    length = (f"train.epochs={steps}", f"train.max_steps={steps}", "train.device=cpu")
    recipe = load_recipe(QUICKSTART, (*length, *changes))
    display = Watched()
    run = RunFolder.create(folder / "run", recipe.name)
    trainer = Trainer(recipe, build_data(recipe), run, display)
    run.begin_session(recipe, {})
    trainer.fit()
    return display.mib


def series(per_sample: float, warm_up: float = 0.0) -> list[float]:
    """200 samples in MiB, a sawtooth of 1 MiB on top."""
    return [400 + warm_up * min(i / 50, 1) + per_sample * i + i % 2 for i in range(200)]


def test_growth_is_a_leak_and_warm_up_is_none():
    assert growth(series(0.0)) == 0
    assert growth(series(0.0, warm_up=300.0)) == 0
    assert growth(series(1.1 * TOLERANCE / 100)) > TOLERANCE  # the quarters are 100 samples apart
    assert growth(series(0.9 * TOLERANCE / 100)) < TOLERANCE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_rehearsal(tmp_path):
    small = ("data.image_size=8", "model.width=4", "time_steps=2", "data.train_images=64")
    mib = resident(tmp_path, 20, *small)
    assert len(mib) == 2
    assert min(mib) > 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_2000_steps_of_the_quickstart_do_not_leak(tmp_path):
    mib = resident(tmp_path, 2000)
    assert len(mib) == 200
    assert growth(mib) < TOLERANCE
