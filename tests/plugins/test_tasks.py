"""A task by a plugin: its score is logged, drawn, chosen by, evaluated, reported, predicted and resumed; or refused."""

import importlib.util
import json
import math
import sys
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import spiketriton
from spiketriton import plugins
from spiketriton.config import DataConfig, LossConfig
from spiketriton.config.recipe import AugmentationConfig
from spiketriton.data.sources import ArraySplit, SequenceSplit, Source
from spiketriton.data.unmoved import refuse_moves
from spiketriton.evaluate.results import Evaluation
from spiketriton.gradients.verdict import learned_by
from spiketriton.plugins.tasks import Score, Task, task_of
from spiketriton.predict import main as predict
from spiketriton.show.run_pictures import curves
from spiketriton.show.verdict import learned
from spiketriton.system.errors import UserError
from tests.small_runs import last_state, small_recipe, small_trainer

SIDE, OUTPUTS = 8, 2
IMAGES = torch.linspace(0, 1, 48 * SIDE**2).view(48, 1, SIDE, SIDE)
TARGETS = torch.stack([IMAGES.mean((1, 2, 3)), -IMAGES.amax((1, 2, 3))], 1)
given = SimpleNamespace(targets=TARGETS, classes=("mean", "least"), images=IMAGES)


@plugins.data("ramps")
def ramps(config):
    split = ArraySplit(given.images, given.targets)
    known = {"channels": 1, "statistics": ((0.5,), (0.3,)), "move": "crop"}
    return Source(train=split, test=split, classes=given.classes, image_size=SIDE, **known)


@plugins.task("means")
class Means(Task):
    score, higher_is_better = "squares", False

    def loss(self, currents, targets):
        return (currents.mean(0) - targets).square().mean()

    def measure(self, currents, targets):
        return (self.reading(currents) - targets).square().mean(1).sum()

    def chance(self, targets):
        return float((targets - targets.mean(0)).square().mean())


KEYS = (
    "data.name=ramps", "data.train_images=0", "data.test_images=0", "data.augment=none", "loss.kind=means",
    f"plugins.modules=['{__name__}']", f"data.image_size={SIDE}", "data.validation=0.25",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps of 16 images, and the rows of its tests."""
    folder = tmp_path_factory.mktemp("task") / "run"
    trainer = small_trainer(folder, *KEYS, "train.max_steps=4", "train.ema=0.5")
    trainer.fit()
    return trainer, [row for row in trainer.folder.metrics.read() if row["kind"] == "eval"]


def test_its_score_is_logged_drawn_and_chosen_by(trained):
    trainer, tests = trained
    assert [row["score"] for row in tests] == ["squares"] * len(tests)
    assert len(tests) > 1
    assert all({"test_squares", "validation_squares", "ema_squares"} <= row.keys() for row in tests)
    assert "test_accuracy" not in tests[0]
    assert tests[0]["test_chance"] == pytest.approx(Means().chance(TARGETS), rel=1e-6)
    best = min(tests, key=lambda row: row["validation_squares"])
    found = trainer.progress
    assert (found.best_step, found.best_test_score) == (
        best["step"],
        pytest.approx(best["test_squares"], rel=1e-6),
    )
    panel = curves(trainer.folder.metrics.read(), "x").axes[1]
    assert panel.get_title() == f"Test squares, last {tests[-1]['test_squares']:.4g}"
    assert [line.get_label() for line in panel.lines] == [
        "test",
        "test, averaged weights",
        "validation",
    ]
    said = trainer.fit().row()
    assert said["test_squares"] == found.test_score
    assert said["higher_is_better"] is False


@pytest.mark.usefixtures("blank_pictures")
def test_it_is_evaluated_reported_and_predicted(trained, capsys):
    trainer, tests = trained
    run = spiketriton.load_run(trainer.folder.path, plugins=True)
    found = run.evaluate()
    assert found.values[-1] == pytest.approx(tests[-1]["test_squares"], rel=1e-5)
    assert (found.score, found.share, found.confusion) == ("squares", False, [])
    assert all(map(math.isnan, found.interval[-1]))
    assert Evaluation.from_json(found.to_json()).values == found.values
    page = run.report().read_text("utf-8")
    assert "Squares" in page
    assert "squares by time steps" in page
    answers = run.predict(IMAGES[:3])
    assert answers.shape == (3, 2)
    expected = run.model(run._run.to_device(next(iter(run._run.data.test))[0][:3])).mean(0)
    torch.testing.assert_close(answers, expected)
    words = [str(trainer.folder.path), "--trust-plugins", "--json", str(picture(trainer))]
    copy_context().run(predict, words)  # the consent ends with the call
    said = json.loads(capsys.readouterr().out)
    assert said["answer"].keys() == {"mean", "least"}


def picture(trainer) -> Path:
    path = trainer.folder.path / "picture.png"
    Image.fromarray((255 * IMAGES[3, 0]).byte().numpy()).save(path)
    return path


def test_a_stopped_and_resumed_run_has_the_same_bits(trained, tmp_path):
    trainer, _ = trained
    keys = (*KEYS, "train.max_steps=4", "train.ema=0.5")
    small_trainer(tmp_path / "run", *keys).fit(until=2)
    small_trainer(tmp_path / "run", *keys, resume=True).fit()
    whole, again = last_state(trainer.folder.path), last_state(tmp_path / "run")
    for name, value in whole["model"].items():
        assert torch.equal(value, again["model"][name]), name
    for name in ("test_score", "best_score", "best_step", "higher_is_better"):
        assert whole[name] == again[name], name


def test_ranks_count_together(trained):
    """Each rank's sums, of its part of 37 images, add up to those of one alone."""
    trainer, _ = trained
    test = replace(trainer.data.test, members=trainer.data.test.members[:37])
    whole = trainer.tester.tested(test, None)
    sums = []
    for rank in range(2):
        ranks = SimpleNamespace(total=lambda x: sums.append(x) or x)
        stop = SimpleNamespace(anywhere=lambda: False, ranks=ranks)
        tester = replace(trainer.tester, stop=stop)
        tester.tested(replace(test, rank=rank, world_size=2), None)
    both = Means().scored((sums[0] + sums[1])[:-1], 37)
    assert both.value == pytest.approx(whole.score.value, rel=1e-5)
    assert sums[0][0] != sums[1][0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": TARGETS[:, :1]}, r"labels of shape \[48, 1\] and torch.float32 for 48 images; accepted: floats"),
        ({"targets": TARGETS.long()}, r"torch.int64 for 48 images; accepted: floats \[48, 2\]"),
        ({"targets": TARGETS / 0}, "labels that are not finite"),
        ({"classes": ()}, r"accepted: floats \[48, 0\]"),
        ({"images": IMAGES.repeat(1, 1, 1, 2)}, "images of 8x16 would be resized to 8x8"),
        ("data.augment=standard", "augment = .standard. moves images, and the targets of loss.kind = .means. do not"),
        ("data.augmentation.policy=randaugment", "policy = .randaugment. moves images"),
        ("loss.label_smoothing=0.1", "has no effect because loss.kind = .means. is a task without classes"),
        ("loss.teacher=runs/a", "loss.teacher = .runs/a. has no effect"),
        ({"score": "loss"}, "the score of Means is named 'loss'; accepted: letters, digits and _, other than loss"),
        ({"dense": True}, r"accepted: floats \[48, 2, 8, 8\]"),
        ({"loss": lambda self, c, t: (c.mean(0) - t).square()}, r"its loss is a tensor \[2, 2\]; accepted: a scalar"),
        ({"loss": lambda self, c, t: c.nothing}, "loss of answers .*, failed: AttributeError"),
        ({"measure": lambda self, c, t: (c[-1] - t).square()}, r"measure gives a tensor \[2, 2\]; accepted: a number"),
        ({"chance": lambda self, t: "none"}, "and 'none'; accepted: a float, and a float or None"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_a_step(tmp_path, monkeypatch, changes, words):
    keys = list(KEYS)
    if isinstance(changes, str):
        keys = [key for key in keys if key.partition("=")[0] != changes.partition("=")[0]] + [
            changes
        ]
    else:
        for name, value in changes.items():
            monkeypatch.setattr(given if name in vars(given) else Means, name, value)
    with pytest.raises(UserError, match=words):
        small_trainer(tmp_path / "run", *keys)


@pytest.mark.parametrize(("key", "value"), [("flip", True), ("roll", 3)])
def test_recordings_are_not_moved_without_their_targets(key, value):
    frames = ArraySplit(torch.zeros(4, 2, 2, SIDE, SIDE, dtype=torch.uint8), TARGETS[:4])
    known = {"channels": 2, "image_size": SIDE, "statistics": ((0.0,), (1.0,)), "move": "events"}
    source = Source(train=frames, test=frames, classes=given.classes, **known)

    def asked(**keys):
        moves = AugmentationConfig(**keys)
        return DataConfig(name="eventfolder", augment="none", augmentation=moves)

    refuse_moves(asked(), source, "means", SIDE)
    with pytest.raises(UserError, match=f"augmentation.{key} = {str(value).lower()} moves images"):
        refuse_moves(asked(**{key: value}), source, "means", SIDE)


@pytest.mark.parametrize(("key", "value"), [("shift", 2), ("stretch", 0.1)])
def test_sequences_are_not_moved_without_their_targets(key, value):
    """A target for each step: what is recalled of five steps ago."""
    split = SequenceSplit(np.zeros((4, 7, 1)), np.zeros((4, 7)))
    source = Source(train=split, test=split, classes=("value",))

    def asked(**keys):
        moves = AugmentationConfig(**keys)
        return DataConfig(name="spoken_digits", augment="none", augmentation=moves)

    refuse_moves(asked(), source, "means", 1)
    with pytest.raises(UserError, match=f"augmentation.{key} = {value} moves sequences"):
        refuse_moves(asked(**{key: value}), source, "means", 1)


def test_a_network_of_ours_does_not_answer_for_each_pixel(tmp_path, monkeypatch):
    monkeypatch.setattr(Means, "dense", True)
    monkeypatch.setattr(given, "targets", IMAGES.expand(48, 2, SIDE, SIDE))
    words = r"answers with 2 numbers an image, and loss.kind = .means. wants \[2, 8, 8\]; accepted: a network of"
    with pytest.raises(UserError, match=words):
        small_trainer(tmp_path / "run", *KEYS)


def test_chance_is_judged_where_it_is_known():
    recipe = small_recipe()
    row = {"kind": "eval", "step": 200, "test_squares": 0.5, "test_images": 9, "score": "squares"}
    row |= {"score_is_share": False, "higher_is_better": False}
    for chance, learns in ((0.4, False), (0.52, None), (0.53, True)):  # by 5 %
        found = learned_by([{**row, "test_chance": chance}], recipe, (5, 5), 300)
        assert (found.known, found.learns) == (True, learns)
        assert f"test squares 0.5 on 9 images, guessing has {chance}" in learned(found)
    found = learned_by([row], recipe, (5, 5), 300)
    assert (found.known, found.learns) == (False, None)
    assert learned(found) == "not judged: test squares 0.5, and what guessing has is not known"
    assert found.score == Score.of_row(row)
    for error, learns in ((0.9, False), (0.81, None), (0.79, True)):  # twice as many right answers
        share = {**row, "test_squares": error, "test_chance": 0.9, "score_is_share": True}
        assert learned_by([share], recipe, (5, 5), 300).learns is learns


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("name", "bar"), [("segmentation", 0.6), ("regression", -0.6), ("multi_label", 0.9)]
)
def test_an_example_learns_far_above_chance(name, bar, tmp_path, monkeypatch):
    """Bars of the score, of a distance with its sign turned; code lines without blank ones stay below 40."""
    file = Path(__file__).parents[2] / "examples" / f"{name}.py"
    lines = file.read_text("utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) < 40
    spec = importlib.util.spec_from_file_location(f"example_{name}", file)
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"example_{name}", example)
    spec.loader.exec_module(example)
    run = example.train(run_dir=tmp_path / "run", quiet=True, threads=1, epochs=7)  # of 10
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    found = Score.of_row(last)
    assert found.beats(found.chance, 3 * found.spread)
    assert (1 if found.higher_is_better else -1) * found.value > bar
    assert run.classes


def test_a_kind_that_makes_something_else_is_refused():
    @plugins.loss("nothing")
    def nothing(config):
        return None

    with pytest.raises(UserError, match="made a NoneType; accepted: a function of currents and"):
        task_of(LossConfig(kind="nothing"))
