"""rows.csv: what was said of nets drawn before any of them was trained, and the table of it."""

import re
from pathlib import Path

import numpy as np
import pytest

from spiketriton.config import DataConfig, load_recipe
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit
from spiketriton.gradients.verdict import Word
from spiketriton.training.guard import Diverged
from spiketriton.training.trainer import Trainer
from studies.verdicts import run, unlearnable
from tests.small_runs import QUICK

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
ROWS = run.read()
ANSWERED = [row for row in ROWS if row["commit"]]
TRAINED = [row for row in ANSWERED if not row["run"].startswith("refused")]


def test_the_table_is_that_of_the_rows():
    text = (HERE / "log.md").read_text("utf-8")
    assert run.page(text, ROWS) == text
    other = [row | {"test": "0.9"} for row in ROWS]
    assert run.page(text, other) != text


def test_what_is_said_is_counted():
    def row(group, before, run, test, said="10 too early to tell"):
        said = {"before": before, "run": run, "said": said}
        return {"draw": "1", "group": group, "test": test, "commit": "0", **said}

    made = run.table(
        [
            row("drawn", "no obstacle found", "healthy: it learns", "0.3", "100 the loss falls"),
            row("recipe", "no obstacle found", "too early to tell", "0.19"),
            row("drawn", "lost forward", "learning, although lost forward", "0.21"),
            row(
                "chance",
                "silent forward",
                "at chance so far: silent forward",
                "0.1",
                "9 the loss falls",
            ),
            {"draw": "1", "group": "drawn", "commit": ""},
            row("drawn", "no obstacle found", "healthy: it learns", "0.3") | {"draw": "2"},
            row("sought", "exploding backward", "learning, although exploding backward", "0.3"),
            row("chance", "no obstacle found", "refused: nothing to train", ""),
        ]
    )
    _, _, *lines = made.splitlines()
    assert lines == [
        "| before training: no obstacle found | drawn | 3 | 2 | 1 | 50 | 9 | 91 |",
        "| before training: an obstacle | drawn | 3 | 1 | 1 | 100 | 21 | 100 |",
        "| before training: an obstacle | sought | 1 | 1 | 1 | 100 | 21 | 100 |",
        "| before training: an obstacle | cannot learn | 1 | 1 | 0 | 0 | 0 | 79 |",
        "| before a test: the loss falls | drawn | 3 | 1 | 1 | 100 | 21 | 100 |",
        "| before a test: the loss falls | cannot learn | 1 | 1 | 0 | 0 | 0 | 79 |",
        "| at the end: healthy, or learning | drawn | 3 | 2 | 2 | 100 | 34 | 100 |",
        "| at the end: healthy, or learning | sought | 1 | 1 | 1 | 100 | 21 | 100 |",
        "| at the end: too early to tell | drawn | 3 | 1 | 0 | 0 | 0 | 79 |",
        "| at the end: at chance so far | cannot learn | 1 | 1 | 0 | 0 | 0 | 79 |",
    ]


def test_what_is_said_of_the_second_draw_is_counted():
    def row(group, test, said, told="", run="", draw="2"):
        asked = {"before": "no obstacle found", "python": "", "python_run": "", "run": run}
        return {
            "draw": draw,
            "group": group,
            "test": test,
            "said": said,
            "told": told,
            "commit": "0",
            **asked,
        }

    made = run.table_again(
        [
            row("fifty", "0.3", "100 at chance; 200 healthy"),
            row("fifty", "0.3", "100 at chance", run="at chance so far: silent forward"),
            row("fifty", "0.1", "100 healthy; 200 at chance", told="lost"),
            row("chain", "0.1", "100 the loss falls"),
            row("fifty", "0.9", "100 healthy", draw="1"),
            row("chance", "0.1", "100 at chance"),
            row("chain", "0.9", "100 healthy") | {"commit": ""},
        ]
    )
    _, _, *lines = made.splitlines()
    assert [line for line in lines if line.startswith("| fifty")] == [
        "| fifty | all | 3 | learnt (above 20 %) | 2 | 67 | 21 | 94 |",
        "| fifty | that learnt | 2 | an obstacle was named | 1 | 50 | 9 | 91 |",
        "| fifty | that did not | 1 | an obstacle was named | 1 | 100 | 21 | 100 |",
        "| fifty | called healthy at a test | 2 | learnt | 1 | 50 | 9 | 91 |",
        "| fifty | at chance at the end | 2 | learnt | 1 | 50 | 9 | 91 |",
    ]
    assert [line for line in lines if line.startswith(("| chain", "| chance"))] == [
        "| chain | all | 1 | learnt (above 20 %) | 0 | 0 | 0 | 79 |",
        "| chain | that did not | 1 | an obstacle was named | 0 | 0 | 0 | 79 |",
        "| chance | all | 1 | learnt (above 20 %) | 0 | 0 | 0 | 79 |",
        "| chance | that did not | 1 | an obstacle was named | 0 | 0 | 0 | 79 |",
        "| chance | at chance at the end | 1 | learnt | 0 | 0 | 0 | 79 |",
    ]
    for told in (
        "all | 4 | learnt (above 20 %) | 2",
        "that learnt | 2 | an obstacle was named | 1",
    ):
        assert f"| all that can learn | {told} | 50 |" in made


@pytest.mark.parametrize("saved", [False, True])
def test_a_net_that_diverges_is_answered(tmp_path, monkeypatch, saved):
    """Before its first checkpoint, and after it."""
    train_step = Trainer.train_step

    def diverge(self):
        if self.step == 2:
            if saved:
                self.save()
            raise Diverged("the loss is nan at step 3")
        train_step(self)

    monkeypatch.setattr(Trainer, "train_step", diverge)
    row = run.row_of(
        "drawn",
        "quickstart",
        " ".join([*QUICK, "data.image_size=8 data.test_images=16 train.log_every=1"]),
    )
    found = run.train(row, tmp_path / "run", "data")
    assert found["said"] == "1 too early to tell"
    assert (found["test"], found["told"]) == ("", "")
    assert found["run"] == ("too early to tell" if saved else "diverged: the loss is nan at step 3")


def test_a_row_was_registered_before_it_was_trained():
    made = [{key: row[key] for key in ("draw", "group", "recipe", "settings")} for row in ROWS[59:]]
    sought = [run.row_of(*net) for net in run.SOUGHT]
    assert made == [*sought, *run.drawn_again()]
    assert {row["group"] for row in ROWS[:59]} == {"recipe", "drawn", "chance"}
    for row in ANSWERED:
        assert re.fullmatch("[0-9a-f]{9}", row["registered"])
        assert re.fullmatch("[0-9a-f]{9}(-dirty)?", row["commit"])
        assert row["machine"]
        assert float(row["hours"]) > 0


def test_a_row_is_trained_by_the_recipe_that_it_was_drawn_with():
    """Some recipes have changed since, and the limit that SGD had in every net."""
    limited = [
        load_recipe(run.recipe_of(row), run.words_of(row, "data")).clipping
        for row in ROWS
        if row["recipe"] == "cifar100_r18"
        or all(
            f"train.{word}" in row["settings"] for word in ("optimizer=sgd", "clip_grad_norm=auto")
        )
    ]
    assert limited == [1] * 8


def test_nothing_was_said_before_it_can_be_known_nothing_at_chance_was_healthy():
    assert len(TRAINED) >= 8
    before_a_test = (Word.EARLY, Word.FALLING, Word.FLAT)
    for row in TRAINED:
        words = [said.split(" ", 1) for said in row["said"].split("; ")]
        assert all(word == Word.EARLY for step, word in words if int(step) < 100)
        if "data.train_images" not in row["settings"]:  # tested at its end alone
            assert all(word in before_a_test for _, word in words[:-1])
        assert row["before"] == row["python"]
        if row["group"] == "chance":
            assert not row["run"].startswith((Word.HEALTHY, Word.LEARNING))
            assert Word.HEALTHY not in row["said"]
        elif run.learnt(row):
            assert not row["run"].startswith(Word.CHANCE)


@pytest.fixture
def tiny(monkeypatch):
    """The data sets of unlearnable.py, of 50 images instead of CIFAR-10's."""
    made = unlearnable
    images, labels = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1), np.arange(50) % 10
    split = ArraySplit(images, labels)
    source = Source(
        train=split,
        test=split,
        classes=tuple("abcdefghij"),
        channels=1,
        image_size=1,
        statistics=((0.5,), (0.2,)),
        move="crop",
    )
    monkeypatch.setattr(unlearnable, "cifar10", lambda config: source)
    return made, source


def test_what_cannot_be_learnt(tiny):
    made, source = tiny
    config = DataConfig(name="digits")
    shuffled, dark = made.shuffled(config), made.dark(config)
    assert shuffled.test is source.test
    assert not np.array_equal(shuffled.train.labels, source.train.labels)
    assert sorted(shuffled.train.labels) == sorted(source.train.labels)
    assert dark.statistics == ((0.5,), (2e5,))
    assert dark.train is source.train
    other, grey, one = (
        getattr(made, name)(config) for name in ("other_test", "constant", "one_class")
    )
    assert other.train is source.train
    assert not np.array_equal(other.test.labels, source.test.labels)
    assert sorted(other.test.labels) == sorted(source.test.labels)
    assert (grey.train.images == 128).all()
    assert (grey.test.images == 128).all()
    assert np.array_equal(grey.train.labels, source.train.labels)
    assert (set(one.train.labels.tolist()), one.test) == ({0}, source.test)


def test_the_page_counts_as_the_rows_do():
    """docs/gradient_flow.md: nets that were called healthy, and those that learnt."""
    first = run.trained_of(ROWS, "1")
    nets = [row for row in first if row["group"] in ("recipe", "drawn")]
    healthy = [row for row in nets if row["run"].startswith((Word.HEALTHY, Word.LEARNING))]
    learnt = [row for row in nets if float(row["test"]) > 0.2]
    assert all(row in learnt for row in healthy)
    assert all(row["before"] == Word.FREE for row in learnt)
    page = (DOCS / "gradient_flow.md").read_text("utf-8")
    told = f"Of {len(nets)}, {len(healthy)} were called healthy, and learnt; of {len(learnt)} that learnt"
    assert told in page
    second = [row for row in run.trained_of(ROWS, "2") if row["group"] != "chance"]
    found = [row for row in second if run.learnt(row)]
    assert not any(map(run.named, found))
    told = f"{len(second)} nets of a second draw, for the present limits, {len(found)} learnt, and had no obstacle"
    assert told in page
