"""Exact resume: whatever stops a run, the resumed one ends with the same bits."""

import errno
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
from spiketriton.runs import checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import EXIT_DONE, EXIT_SIGHUP, EXIT_SIGINT, EXIT_SIGTERM, UserError
from spiketriton.train import main
from spiketriton.training import environment
from spiketriton.training.environment import describe
from spiketriton.training.trainer import Trainer
from tests.processes import Forked
from tests.small_runs import (
    QUICK,
    Lines,
    as_on_a_gpu,
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


# nets and keys whose state must come back: convolutions where a norm or a layer of their own is
KINDS = {
    "adamw": [*QUICK, "train.accumulate=2", "train.clip_grad_norm=1"],
    "sgd": [
        *(*QUICK, "train.optimizer=sgd", "train.schedule=cosine", "train.accumulate=2"),
        "loss.class_weights=balanced",
    ],
    "plif": ["neuron.kind=plif", "model.norm=tebn", "loss.kind=tet", "train.log_every=5"],
    "held out": [*QUICK, "data.validation=0.1"],
    "ema": ["train.ema=0.9", "train.schedule=step", "train.freeze=conv1", "train.decay_norms=true"],
    "mixed": [
        *(*QUICK, "data.augmentation.cutout=3", "data.augmentation.erasing=0.3"),
        *("train.mixup=0.2", "train.cutmix=1", "train.accumulate=2", "loss.kind=tet"),
    ],
    "fp16": [*QUICK, "train.precision=fp16", "train.log_every=3"],
    "bf16": [*QUICK, "train.precision=bf16", "train.log_every=3"],
    "twin": [*QUICK, "neuron.kind=relu", "train.optimizer=sgd"],
    "muon": [*QUICK, "train.optimizer=muon", "train.weight_decay=0.1"],
}
STOPS = [
    *(("adamw", 6), ("adamw", 4), ("sgd", 1), ("plif", 4), ("held out", 3), ("ema", 6)),
    *(("mixed", 6), ("fp16", 1), ("bf16", 6), ("twin", 5)),
    *(("muon", 1), ("muon", 4)),
]
"""After the first step, the first epoch, and within the second and last one."""


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
def test_a_stopped_and_resumed_run_equals_the_unbroken_one(
    tmp_path, unbroken, monkeypatch, kind, stop
):
    if kind == "fp16":
        monkeypatch.setattr(environment, "choose_precision", as_on_a_gpu)
    keys = (*KINDS[kind], "train.epochs=2", "data.train_images=64")  # 4 steps an epoch
    small_trainer(tmp_path / "resumed", *keys).fit(until=stop)
    assert last_state(tmp_path / "resumed")["step"] == stop
    small_trainer(tmp_path / "resumed", *keys, resume=True).fit()
    assert_same_run(unbroken(*keys), tmp_path / "resumed")


@pytest.mark.parametrize("begun", ["fp32", "fp16"])
def test_a_run_may_go_on_where_another_precision_is_chosen(tmp_path, monkeypatch, begun):
    """As one of train.precision = "fp16" that moves from a GPU to a CPU, or back; it says so."""
    keys, display = ["train.precision=fp16", "train.max_steps=4"], Lines()
    for now in (begun, "fp16" if begun == "fp32" else "fp32"):
        choice = environment.Choice(environment.PRECISIONS[now], "faked")
        monkeypatch.setattr(environment, "choose_precision", lambda *_, choice=choice: choice)
        trainer = small_trainer(tmp_path / "run", *keys, resume=now != begun, display=display)
        session = describe(trainer.device, precision=trainer.placement.precision)
        trainer.folder.begin_session(trainer.recipe, session)
        assert ("precision: " in display.text) == (now != begun)
        assert trainer.update.scaler.is_enabled() == (now == "fp16")
        trainer.fit(until=2 if now == begun else 4)
    assert f"precision: {now} from here on instead of {begun}; the weights" in display.text
    assert last_state(tmp_path / "run")["step"] == 4


def test_random_draws_continue_where_they_were(tmp_path):
    """For example a net with dropout: every generator that a step may draw from is restored."""

    def trainer(path: Path, resume: bool = False) -> Trainer:
        made = small_trainer(path, *QUICK, resume=resume)
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


def test_a_damaged_checkpoint_falls_back_and_the_run_is_still_exact(tmp_path):
    keys = QUICK
    small_trainer(tmp_path / "unbroken", *keys).fit()
    small_trainer(tmp_path / "resumed", *keys).fit(until=16)
    last = tmp_path / "resumed" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1])
    display = Lines()
    trainer = small_trainer(tmp_path / "resumed", *keys, resume=True, display=display)
    assert trainer.step == 14
    assert "last.pt is damaged" in display.warnings[0]
    trainer.fit()
    assert_same_run(tmp_path / "unbroken", tmp_path / "resumed")


def test_a_checkpoint_without_a_surrogates_width_is_damaged(tmp_path):
    """A width may have been measured: the recipe's in its place would train another network."""
    small_trainer(tmp_path / "run", *QUICK).fit(until=4)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = checkpoint.read_checkpoint(last)
    width = min(name for name in state["model"] if name.endswith("_extra_state"))
    del state["model"][width]
    checkpoint.Checkpoints(last.parent, print).save_as(last, state)
    with pytest.raises(UserError, match=f"the checkpoint is damaged: model lacks {width}"):
        small_trainer(tmp_path / "run", *QUICK, resume=True)


def test_a_test_whose_result_was_not_saved_is_made_again_and_has_one_row(
    tmp_path, unbroken, monkeypatch
):
    """As of a run that is killed after a test; the state before it is there."""
    write = checkpoint._write_part

    def full(path, state):
        if state["tested_at"] == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_part", full)
        small_trainer(tmp_path / "run", *QUICK).fit(until=7)
    assert RunFolder(tmp_path / "run").metrics.read()[-1]["kind"] == "eval"
    assert last_state(tmp_path / "run")["tested_at"] < 7
    small_trainer(tmp_path / "run", *QUICK, resume=True).fit()
    assert_same_run(unbroken(*QUICK), tmp_path / "run")


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
    display = Signals(number, **moment)
    outcome = small_trainer(tmp_path / "resumed", *QUICK, display=display).fit()
    assert outcome.exit_code == code
    assert outcome.saved_at == outcome.progress.step == moment.get("step", 7)
    assert "finishing this step, then saving" in display.text
    assert not outcome.finished

    outcome = small_trainer(tmp_path / "resumed", *QUICK, resume=True).fit()
    assert outcome.exit_code == EXIT_DONE
    assert_same_run(unbroken(*QUICK), tmp_path / "resumed")


@pytest.mark.parametrize(("moment", "code"), [("evaluate", EXIT_SIGTERM), ("save", EXIT_DONE)])
def test_a_signal_at_the_very_end(tmp_path, unbroken, moment, code):
    """In the last test there is something left to do; while the last state is saved there is none."""
    trainer = small_trainer(tmp_path / "run", *QUICK)
    doing = getattr(trainer, moment)

    def interrupted(*arguments: object) -> object:
        # there is a save before the test
        last = trainer.progress.tested_at == STEPS or moment == "evaluate"
        if trainer.step == STEPS and last and not trainer.stop.requested:
            signal.raise_signal(signal.SIGTERM)
        return doing(*arguments)

    setattr(trainer, moment, interrupted)
    outcome = trainer.fit()
    assert outcome.exit_code == code
    assert outcome.finished == (code == EXIT_DONE)
    small_trainer(tmp_path / "run", *QUICK, resume=True).fit()
    assert_same_run(unbroken(*QUICK), tmp_path / "run")


# long enough for a signal to come in time on any machine; with workers, which get it too
LONG = [*QUICK, "train.epochs=2000", "train.log_every=2", "data.workers=1"]


def start(folder: Path, *overrides: str, terminal: int | None = None) -> Forked:
    """The command itself."""
    (folder / "small.toml").write_text(to_toml(small_recipe(*overrides)))
    words = ["-m", "spiketriton.train", "small.toml", "--run-dir", "run"]
    return Forked(*words, folder=folder, terminal=terminal)


def test_ctrl_c_in_a_terminal(tmp_path):
    """SIGINT to the whole process group; what was saved equals the unbroken run at that step."""
    process = start(tmp_path, *LONG)
    wait_for(process, "step ")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == EXIT_SIGINT, rest
    assert "Traceback" not in rest
    assert "spiketriton train --resume run" in rest

    stopped = last_state(tmp_path / "run")
    resumed_to = stopped["step"] + 5
    small_trainer(tmp_path / "unbroken", *LONG).fit(until=resumed_to)
    small_trainer(tmp_path / "run", *LONG, resume=True).fit(until=resumed_to)
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")


def test_a_terminal_that_closes(tmp_path):
    """The hang-up reaches all processes on it, and nothing can be written any more."""
    terminal, inner = pty.openpty()
    process = start(tmp_path, *LONG, terminal=inner)
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
    process = start(tmp_path, *LONG)
    wait_for(process, "step ")
    with pytest.raises(UserError, match="in use by another process"):
        main(["--resume", str(tmp_path / "run")])
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunFolder.open(tmp_path / "run").held():
        pass


def test_a_run_continues_when_its_output_is_closed(tmp_path):
    """`train ... 2>&1 | head -1`"""
    process = start(tmp_path, *QUICK, "train.log_every=1")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == EXIT_DONE
    assert last_state(tmp_path / "run")["step"] == STEPS


@pytest.mark.usefixtures("no_pictures")
def test_resume_by_the_command(tmp_path, unbroken, capsys):
    small_trainer(tmp_path / "run", *QUICK).fit(until=10)
    assert main(["--resume", str(tmp_path / "run"), "data.root=/nowhere"]) == EXIT_DONE
    assert "resumes after step 10 of 21" in capsys.readouterr().out
    resumed = last_state(tmp_path / "run")
    assert 'root = "/nowhere"' in resumed.pop("recipe")
    expected = last_state(unbroken(*QUICK))
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
    keys = ("train.epochs=2", "data.train_images=64")
    small_trainer(tmp_path / "run", *keys).fit(until=5)
    display = Lines()
    small_trainer(tmp_path / "run", *keys, *changes, resume=True, display=display).fit()
    parts = "micro_batch" in changes[0]
    assert ("computed in other parts from here on (2)" in display.text) == parts
    resumed, expected = last_state(tmp_path / "run"), last_state(unbroken(*keys))
    assert resumed["step"] == expected["step"]
    if not parts:
        assert_equal(expected["model"], resumed["model"])
        assert_equal(expected["optimizer"], resumed["optimizer"])


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_ends_by_its_steps_is_extended(tmp_path, monkeypatch, capsys):
    run, resume = tmp_path / "run", ["--resume", str(tmp_path / "run")]
    small_trainer(run, *QUICK, "train.max_steps=4").fit()
    for words, refusal in (
        (["--extend", "5"], "no effect on a run that ends by train.max_steps = 4; accepted: train"),
        (["--extend", "train.max_steps=4"], "the run has 4 steps already"),
        (["--extend", "x"], "extend x: accepted: a number of epochs, or train"),
        (["train.max_steps=6"], "max_steps = 6 .*; --extend trains it longer, and train.init_from"),
    ):
        with pytest.raises(UserError, match=refusal):
            main([*resume, *words])
    longer = [*resume, "--extend", "train.max_steps=6"]
    with monkeypatch.context() as patch:  # cut short, once the longer recipe is kept
        patch.setattr(Trainer, "fit", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            main(longer)
    assert "extended from 4 to 6 steps: " in capsys.readouterr().out
    assert RunFolder(run).load_recipe().train.max_steps == 6
    assert main(longer) == EXIT_DONE
    assert "4 of 6" in capsys.readouterr().out
    assert (last_state(run)["step"], RunFolder(run).load_recipe().train.max_steps) == (6, 6)


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_is_extended_on_the_schedule_of_the_longer_one(tmp_path, capsys):
    run, resume = tmp_path / "run", ["--resume", str(tmp_path / "run")]
    keys = (*QUICK, "train.schedule=cosine")
    small_trainer(run, *keys).fit()
    small_trainer(tmp_path / "longer", *keys, "train.epochs=5").fit(until=25)
    assert main([*resume, "--extend", "5"]) == EXIT_DONE
    said = "extended from 3 to 5 epochs: the learning rate continues as in a run of that length"
    assert said in capsys.readouterr().out
    rows = RunFolder(run).metrics.read()
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [7, 14, 21, 28, 35]
    ours, theirs = (
        [row["lr"] for row in folder.metrics.read() if row["step"] == 24]
        for folder in (RunFolder(run), RunFolder(tmp_path / "longer"))
    )
    assert ours == pytest.approx(theirs, rel=1e-6)

    before = last_state(run)  # of a run of five epochs, which changes nothing any more
    assert main(resume) == EXIT_DONE
    assert "35 of 35" in capsys.readouterr().out
    assert_equal(before, last_state(run))
