"""Training does not leak: the resident memory of a long run."""

import os
import statistics
from pathlib import Path

import pytest

from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.runs.folder import RunFolder
from spiketriton.training.display import Quiet
from spiketriton.training.trainer import Trainer

TOLERANCE = 8.0
"""MiB between the second and the last quarter of a run: 8 KiB a step over 2,000 steps is found."""
SMALL = (
    *("data.image_size=8", "data.train_images=64", "data.test_images=32", "train.batch_size=16"),
    *("model.width=4", "time_steps=2"),
)


class Watched(Quiet):
    """A silent display that samples the resident memory of this process at every tenth step."""

    def __init__(self) -> None:
        super().__init__()
        self.mib: list[float] = []

    def advance(self, step: int) -> None:
        if step % 10 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("steps", "changes"), [(200, SMALL), pytest.param(2000, (), marks=pytest.mark.slow)]
)
def test_a_training_does_not_leak(tmp_path, steps, changes):
    """As the command runs it: with monitor, rows, tests and checkpoints."""
    length = (f"train.epochs={steps}", f"train.max_steps={steps}", "train.device=cpu")
    recipe = load_recipe("quickstart", (*length, *changes))
    display = Watched()
    run = RunFolder.create(tmp_path / "run", recipe.name)
    trainer = Trainer(recipe, build_data(recipe), run, display)
    run.begin_session(recipe, {})
    trainer.fit()
    quarter = steps // 40  # the first is warm-up: libraries, caches and the allocator's pools fill
    early, late = display.mib[quarter : 2 * quarter], display.mib[-quarter:]
    assert len(display.mib) == 4 * quarter
    assert statistics.median(late) - statistics.median(early) < TOLERANCE
