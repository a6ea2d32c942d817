"""Trainings of seconds, for tests of the engine.

from tests.small_runs import small_recipe, small_trainer
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketriton.config import Recipe, recipe_from_toml, replace, to_toml
from spiketriton.config.names import BLOCK_NETS
from spiketriton.data import build_data
from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.runs.folder import Onlooker, RunFolder
from spiketriton.system.errors import UserError
from spiketriton.system.ranks import Ranks
from spiketriton.training import environment
from spiketriton.training.display import Display
from spiketriton.training.trainer import Trainer

# 7 steps an epoch and 21 in all; 8 spiking layers of real images
SMALL = """
time_steps = 3
[data]
name = "digits"
image_size = 8
train_images = 120
test_images = 50
workers = 0
[model]
name = "resnet8"
width = 4
[train]
epochs = 3
batch_size = 16
lr = 0.01
precision = "fp32"
log_every = 4
threads = 1
"""


def small_recipe(*overrides: str) -> Recipe:
    """The recipe above, of plain blocks where the network has blocks."""
    names = [word.partition("=")[2] for word in overrides if word.startswith("model.name=")]
    name = names[-1] if names else "resnet8"
    keys = "" if ":" in name else "width = 4\n"  # somebody's network has no width here
    keys += 'block = "plain"\n' if name in BLOCK_NETS else ""
    return replace(recipe_from_toml(SMALL.replace("width = 4\n", keys), "small"), *overrides)


CHOOSE = environment.choose_precision


def as_on_a_gpu(wanted: str, device: torch.device) -> environment.Choice:
    """`choose_precision` that takes fp16 on a CPU, too."""
    if wanted == "auto":  # as an optimizer asks that is imported late
        return CHOOSE(wanted, device)
    return environment.Choice(environment.PRECISIONS[wanted], "as on a GPU")


class Lines(Display):
    """A display that keeps its lines and warnings."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @property
    def text(self) -> str:
        assert isinstance(self.stream, io.StringIO)
        return self.stream.getvalue()


def small_trainer(
    path: Path,
    *overrides: str,
    resume: bool = False,
    display: Display | None = None,
    ranks: Ranks | None = None,
) -> Trainer:
    """A trainer in the run folder `path`, new or resumed; as `spiketriton.train` makes it."""
    recipe, ranks = small_recipe(*overrides), ranks or Ranks()
    find = partial(RunFolder.open, path) if resume else partial(RunFolder.create, path, recipe.name)
    folder = ranks.decide(find)
    folder = folder if ranks.first else Onlooker(folder.path)
    data = build_data(recipe, rank=ranks.rank, world_size=ranks.world_size)
    trainer = Trainer(recipe, data, folder, display or Lines(), ranks)
    if resume:
        trainer.resume()
    else:
        trainer.begin()
    folder.begin_session(recipe, {})
    return trainer


def last_state(path: Path) -> dict[str, Any]:
    """last.pt without the one entry that depends on the clock."""
    state = read_checkpoint(path / "checkpoints" / "last.pt")
    del state["seconds"]
    return state


def refused(main: Callable[[list[str]], Any], arguments: list[str]) -> str:
    """The one line with which a command refuses them."""
    with pytest.raises(UserError) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_equal(a: Any, b: Any, where: str = "state") -> None:
    """Equality bit for bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
        assert a.dtype == b.dtype, where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


QUICK = ("model.name=mlp", "model.depth=2", "model.width=8")
"""The net whose training takes the least, for what a trainer does, whatever it trains."""

FASTEST = ("train.max_steps=2", *QUICK)


def fastest_recipe(folder: Path) -> str:
    """A file of the small recipe whose training takes the least."""
    path = folder / "small.toml"
    path.write_text(to_toml(small_recipe(*FASTEST)), "utf-8")
    return str(path)


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without what depends on the clock and the machine."""
    clock = {"seconds", "images_per_s", "data_wait", "peak_memory_mib", "test_seconds"}
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def wait_for(process: Any, word: str) -> str:
    """What a process printed, up to the first line that starts with `word`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(word):
            return seen
    raise AssertionError(f"{word!r} was not printed:\n{seen}")
