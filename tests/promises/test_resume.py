"""Exact resume: whatever stops a run, the resumed one ends with the same bits."""

import functools
import json
import os
import pty
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spiketriton.config import to_toml
from spiketriton.errors import EXIT_DONE, EXIT_SIGHUP, EXIT_SIGINT, EXIT_SIGTERM, UserError
from spiketriton.runs.folder import RunFolder
from spiketriton.train import main
from spiketriton.trainer import Trainer
from tests.processes import Forked
from tests.small_runs import (
    Lines,
    assert_equal,
    last_state,
    small_recipe,
    small_trainer,
    untimed,
    wait_for,
)

STEPS = 21  # of the small recipe, 7 an epoch


def assert_same_run(unbroken: Path, resumed: Path) -> None:
    """The same state, the same rows of metrics, the same gradients, none of them twice."""
    assert_equal(last_state(unbroken), last_state(resumed))
    one, two = RunFolder(unbroken), RunFolder(resumed)
    assert one.metrics.read()
    assert untimed(one.metrics.read()) == untimed(two.metrics.read())
    assert one.gradients.read() == two.gradients.read()


KINDS = {
    "adamw": ["train.accumulate=2", "train.clip_grad_norm=1"],
    "sgd": [
        *("train.optimizer=sgd", "train.schedule=cosine", "train.accumulate=2"),
        "loss.class_weights=balanced",
    ],
    "plif": ["neuron.kind=plif", "model.norm=tebn", "loss.kind=tet", "train.log_every=5"],
    "held out": ["data.validation=0.1", "data.sampler=balanced"],
    "ema": ["train.ema=0.9", "train.schedule=step", "train.freeze=conv1", "train.decay_norms=true"],
    "mixed": [
        *("data.augmentation.cutout=3", "data.augmentation.erasing=0.3"),
        *("train.mixup=0.2", "train.cutmix=1", "train.accumulate=2", "loss.kind=tet"),
    ],
    "fp16": ["train.precision=fp16", "monitor.every=3"],
    "twin": ["neuron.kind=relu", "train.optimizer=sgd"],
}
STOPS = [
    *(("adamw", 10), ("adamw", 14), ("sgd", 1), ("plif", 14), ("held out", 14), ("ema", 10)),
    *(("mixed", 10), ("fp16", 1), ("twin", 9)),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Callable[..., Path]:
    """The folder of the unbroken run with these overrides; each is trained once."""

    @functools.cache
    def folder(*overrides: str) -> Path:
        path = tmp_path_factory.mktemp("unbroken") / "run"
        small_trainer(path, *overrides).fit()
        return path

    return folder


@pytest.mark.parametrize(("kind", "stop"), STOPS)
def test_a_stopped_and_resumed_run_equals_the_unbroken_one(tmp_path, unbroken, kind, stop):
    small_trainer(tmp_path / "resumed", *KINDS[kind]).fit(until=stop)
    assert last_state(tmp_path / "resumed")["step"] == stop
    small_trainer(tmp_path / "resumed", *KINDS[kind], resume=True).fit()
    assert_same_run(unbroken(*KINDS[kind]), tmp_path / "resumed")


def test_random_draws_continue_where_they_were(tmp_path):
    """For example a net with dropout: every generator that a step may draw from is restored."""

    def trainer(path: Path, resume: bool = False) -> Trainer:
        made = small_trainer(path, resume=resume)
        loss = made.loss

        def noisy(currents: Tensor, labels: Tensor) -> Tensor:
            other = random.random() + np.random.random()  # noqa: NPY002
            return loss(currents + torch.randn_like(currents), labels) * other

        made.loss = noisy
        return made

    trainer(tmp_path / "unbroken").fit()
    trainer(tmp_path / "resumed").fit(until=9)
    torch.randn(3), random.random(), np.random.random()  # noqa: NPY002
    trainer(tmp_path / "resumed", resume=True).fit()
    assert_same_run(tmp_path / "unbroken", tmp_path / "resumed")


def test_a_run_that_died_continues_from_its_last_checkpoint(tmp_path):
    """As after kill -9: rows and a torn line are there that no checkpoint knows of."""

    class Died(Exception):
        pass

    class Dies(Lines):
        def advance(self, step: int) -> None:
            if step == 17:
                raise Died

    every = ["checkpoint.every=5", "train.log_every=2"]
    small_trainer(tmp_path / "unbroken", *every).fit()
    with pytest.raises(Died):
        small_trainer(tmp_path / "resumed", *every, display=Dies()).fit()
    metrics = tmp_path / "resumed" / "metrics.jsonl"
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 16
    with metrics.open("a") as file:
        file.write('{"kind": "train", "st')

    trainer = small_trainer(tmp_path / "resumed", *every, resume=True)
    assert trainer.step == 15
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 14
    trainer.fit()
    assert_same_run(tmp_path / "unbroken", tmp_path / "resumed")


def test_a_damaged_checkpoint_falls_back_and_the_run_is_still_exact(tmp_path):
    small_trainer(tmp_path / "unbroken", "checkpoint.keep=2").fit()
    small_trainer(tmp_path / "resumed", "checkpoint.keep=2").fit(until=16)
    last = tmp_path / "resumed" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1])
    display = Lines()
    trainer = small_trainer(tmp_path / "resumed", "checkpoint.keep=2", resume=True, display=display)
    assert trainer.step == 14
    assert "last.pt is damaged" in display.warnings[0]
    trainer.fit()
    assert_same_run(tmp_path / "unbroken", tmp_path / "resumed")


class Signals(Lines):
    """Sends a signal to this process at a chosen moment."""

    def __init__(self, number: int, *, step: int | None = None, test: int | None = None) -> None:
        super().__init__()
        self.number, self.at_step, self.at_test = number, step, test

    def advance(self, step: int) -> None:
        if step == self.at_step:
            signal.raise_signal(self.number)

    def testing(self, done: int, batches: int) -> None:
        if done == self.at_test:
            self.at_test = None
            signal.raise_signal(self.number)

    def stopping(self, text: str) -> None:
        self.note(text)


@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [
        (signal.SIGINT, EXIT_SIGINT, {"step": 10}),
        (signal.SIGTERM, EXIT_SIGTERM, {"step": 14}),
        (signal.SIGINT, EXIT_SIGINT, {"test": 2}),
    ],
)
def test_a_signal_stops_after_the_step_and_saves(tmp_path, unbroken, number, code, moment):
    before = signal.getsignal(number)
    display = Signals(number, **moment)
    outcome = small_trainer(tmp_path / "resumed", display=display).fit()
    assert signal.getsignal(number) is before
    assert outcome.exit_code == code
    assert outcome.saved_at == outcome.progress.step == moment.get("step", 7)
    assert "finishing this step, then saving" in display.text
    assert not outcome.finished

    outcome = small_trainer(tmp_path / "resumed", resume=True).fit()
    assert outcome.exit_code == EXIT_DONE
    assert_same_run(unbroken(), tmp_path / "resumed")


@pytest.mark.parametrize(("moment", "code"), [("evaluate", EXIT_SIGTERM), ("save", EXIT_DONE)])
def test_a_signal_at_the_very_end(tmp_path, unbroken, moment, code):
    """In the last test there is something left to do; while the last state is saved there is none."""
    trainer = small_trainer(tmp_path / "run")
    doing = getattr(trainer, moment)

    def interrupted(*arguments: object) -> object:
        last = (
            trainer.progress.tested_at == STEPS or moment == "evaluate"
        )  # there is a save before the test
        if trainer.step == STEPS and last and not trainer.stop.requested:
            signal.raise_signal(signal.SIGTERM)
        return doing(*arguments)

    setattr(trainer, moment, interrupted)
    outcome = trainer.fit()
    assert outcome.exit_code == code
    assert outcome.finished == (code == EXIT_DONE)
    small_trainer(tmp_path / "run", resume=True).fit()
    assert_same_run(unbroken(), tmp_path / "run")


def test_a_step_cut_off_by_the_signal_is_not_saved(tmp_path):
    """Ctrl-C also reaches a compiler or a worker, whose death must not save a half-done step."""
    display = Signals(signal.SIGINT, step=10)
    trainer = small_trainer(tmp_path / "run", display=display)
    trained = trainer.train_step

    def cut_off() -> None:
        if trainer.step == 9:
            trainer.stop.signal = signal.SIGINT
            raise RuntimeError("worker exited")
        trained()

    trainer.train_step = cut_off  # type: ignore[method-assign]
    outcome = trainer.fit()
    assert outcome.exit_code == EXIT_SIGINT
    assert outcome.saved_at == last_state(tmp_path / "run")["step"] == 7
    assert display.warnings == ["step 10 was cut off: worker exited"]


def start(folder: Path, *arguments: str, terminal: int | None = None) -> Forked:
    """The command itself."""
    return Forked("-m", "spiketriton.train", *arguments, folder=folder, terminal=terminal)


def long_recipe(folder: Path) -> Path:
    """Long enough for a signal to come in time on any machine; with workers, which get it too."""
    recipe = small_recipe("train.epochs=300", "train.log_every=2", "data.workers=1")
    path = folder / "long.toml"
    path.write_text(to_toml(recipe))
    return path


def test_ctrl_c_in_a_terminal(tmp_path):
    """SIGINT to the whole process group; what was saved equals the unbroken run at that step."""
    recipe = long_recipe(tmp_path)
    process = start(tmp_path, recipe.name, "--run-dir", "run")
    wait_for(process, "step ")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == EXIT_SIGINT, rest
    assert "Traceback" not in rest
    assert "spiketriton train --resume run" in rest

    stopped = last_state(tmp_path / "run")
    resumed_to = stopped["step"] + 5
    keys = ["train.epochs=300", "train.log_every=2", "data.workers=1"]
    small_trainer(tmp_path / "unbroken", *keys).fit(until=resumed_to)
    small_trainer(tmp_path / "run", *keys, resume=True).fit(until=resumed_to)
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")


def test_a_terminal_that_closes(tmp_path):
    """The hang-up reaches all processes on it, and nothing can be written any more."""
    recipe = long_recipe(tmp_path)
    terminal, inner = pty.openpty()
    process = start(tmp_path, recipe.name, "--run-dir", "run", terminal=inner)
    os.close(inner)
    seen = b""
    while b"steps" not in seen or not (tmp_path / "run" / "metrics.jsonl").exists():
        seen += os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait() == EXIT_SIGHUP, seen[-2000:]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert last_state(tmp_path / "run")["step"] >= json.loads(rows[-1])["step"] > 0


def test_two_processes_do_not_train_one_run(tmp_path):
    """As when a job is requeued while the old one still saves. A lock ends with its process."""
    recipe = long_recipe(tmp_path)
    process = start(tmp_path, recipe.name, "--run-dir", "run")
    wait_for(process, "step ")
    with pytest.raises(UserError, match="in use by another process"):
        main(["--resume", str(tmp_path / "run")])
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunFolder.open(tmp_path / "run").held():
        pass


def test_a_run_continues_when_its_output_is_closed(tmp_path):
    """`train ... 2>&1 | head -1`"""
    (tmp_path / "small.toml").write_text(to_toml(small_recipe("train.log_every=1")))
    process = start(tmp_path, "small.toml", "--run-dir", "run")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == EXIT_DONE
    assert last_state(tmp_path / "run")["step"] == STEPS


@pytest.mark.usefixtures("no_pictures")
def test_resume_by_the_command(tmp_path, unbroken, capsys):
    small_trainer(tmp_path / "run").fit(until=10)
    assert main(["--resume", str(tmp_path / "run"), "data.root=/nowhere"]) == EXIT_DONE
    assert "resumes after step 10 of 21" in capsys.readouterr().out
    resumed = last_state(tmp_path / "run")
    assert 'root = "/nowhere"' in resumed.pop("recipe")
    expected = last_state(unbroken())
    del expected["recipe"]
    assert_equal(expected, resumed)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "changes",
    [
        ["model.memory=packed", "model.checkpoint_blocks=true", "train.log_every=3"],
        ["train.micro_batch=8"],
    ],
)
def test_what_changes_no_bit_may_change(tmp_path, unbroken, changes):
    """On a smaller card a run goes on with less memory; in other parts not bit for bit, which is said."""
    small_trainer(tmp_path / "run").fit(until=10)
    display = Lines()
    small_trainer(tmp_path / "run", *changes, resume=True, display=display).fit()
    parts = "micro_batch" in changes[0]
    assert ("computed in other parts from here on (2)" in display.text) == parts
    resumed, expected = last_state(tmp_path / "run"), last_state(unbroken())
    assert resumed["step"] == expected["step"]
    if not parts:
        assert_equal(expected["model"], resumed["model"])
        assert_equal(expected["optimizer"], resumed["optimizer"])


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_ends_by_its_steps_is_extended(tmp_path, capsys):
    run = tmp_path / "run"
    small_trainer(run, "train.max_steps=4").fit()
    for wanted, words in (
        ("5", "no effect on a run that ends by train.max_steps = 4; accepted: train.max_steps=N"),
        ("train.max_steps=4", "the run has 4 steps already"),
    ):
        with pytest.raises(UserError, match=words):
            main(["--resume", str(run), "--extend", wanted])
    with pytest.raises(
        UserError, match=r"max_steps = 6 .*; --extend trains it longer, and train.init_from"
    ):
        main(["--resume", str(run), "train.max_steps=6"])
    longer = ["--resume", str(run), "--extend", "train.max_steps=6"]
    with pytest.MonkeyPatch.context() as patch:  # cut short, once the longer recipe is kept
        patch.setattr(Trainer, "fit", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            main(longer)
    assert "extended from 4 to 6 steps: " in capsys.readouterr().out
    assert RunFolder(run).load_recipe().train.max_steps == 6
    assert main(longer) == EXIT_DONE
    assert "4 of 6" in capsys.readouterr().out
    assert (last_state(run)["step"], RunFolder(run).load_recipe().train.max_steps) == (6, 6)


@pytest.mark.usefixtures("no_pictures")
def test_resuming_a_finished_run_changes_nothing(tmp_path, capsys):
    small_trainer(tmp_path / "run").fit()
    before = last_state(tmp_path / "run")
    assert main(["--resume", str(tmp_path / "run")]) == EXIT_DONE
    assert "21 of 21" in capsys.readouterr().out
    assert_equal(before, last_state(tmp_path / "run"))


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_is_extended_on_the_schedule_of_the_longer_one(tmp_path, capsys):
    run, longer = tmp_path / "run", ["train.epochs=5", "train.schedule=cosine"]
    small_trainer(run, "train.schedule=cosine").fit()
    expected = small_trainer(tmp_path / "longer", *longer)
    expected.fit(until=25)
    assert main(["--resume", str(run), "--extend", "5"]) == EXIT_DONE
    assert (
        "extended from 3 to 5 epochs: the learning rate continues as in a run of that length"
        in (capsys.readouterr().out)
    )
    rows = RunFolder(run).metrics.read()
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [7, 14, 21, 28, 35]
    ours = {row["step"]: row["lr"] for row in rows if row["kind"] == "train"}
    theirs = RunFolder(tmp_path / "longer").metrics.read()
    rates = {row["step"]: row["lr"] for row in theirs if row["kind"] == "train"}
    assert ours[24] == pytest.approx(rates[24], rel=1e-6)
    assert last_state(run)["step"] == 35
    assert RunFolder(run).load_recipe().train.epochs == 5
    assert main(["--resume", str(run)]) == EXIT_DONE  # it is a run of five epochs now


def test_extensions_that_extend_nothing_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_trainer(tmp_path / "run").fit(until=1)
    for arguments, words in (
        (["a.toml", "--extend", "5"], "--extend needs --resume"),
        (["--resume", "run", "--extend", "x"], "extend x: accepted: a number of epochs, or train"),
        (["--resume", "run", "--extend", "2"], "the run has 3 epochs already"),
    ):
        with pytest.raises(UserError, match=words):
            main(arguments)
