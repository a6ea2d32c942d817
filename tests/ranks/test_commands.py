"""The command on several ranks: signals, ranks that end or make a mistake, one message for all."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from spiketriton.config import to_toml
from spiketriton.system.errors import EXIT_ERROR, EXIT_SIGTERM, EXIT_USER, UserError
from spiketriton.training.trainer import Trainer
from tests.processes import Forked, said, start_ranks
from tests.ranks.test_ranks import rows
from tests.small_runs import last_state, small_recipe, small_trainer, wait_for


def recipe_file(folder: Path, *overrides: str) -> str:
    (folder / "small.toml").write_text(to_toml(small_recipe(*overrides)))
    return "small.toml"


@pytest.mark.parametrize("torchrun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_on_two_ranks(tmp_path, torchrun):
    """What it says, and a signal, which torchrun hands on; it ends then as it ends after any: with 1."""
    name = recipe_file(tmp_path, "train.epochs=400", "train.log_every=2")
    run = ["-m", "spiketriton.train", name, "--run-dir", "run"]
    if torchrun:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        processes = [Forked(*launch, *run, folder=tmp_path)]
    else:
        processes = start_ranks(*run, folder=tmp_path)
    output = wait_for(processes[0], "step ")
    for one in processes:
        one.send_signal(signal.SIGTERM)
    rest = said(processes)
    assert {one.returncode for one in processes} == {EXIT_ERROR if torchrun else EXIT_SIGTERM}
    words = "ranks: 2 ranks, by gloo; batch norm's statistics are those of each rank"
    assert output.count(words) == 1
    assert rest.count("SIGTERM: finishing this step, then saving") == 1
    assert rest.count("torchrun --nproc-per-node=2 -m spiketriton.train --resume run") == 1
    assert "spiketriton/training/trainer.py" not in rest
    state = last_state(tmp_path / "run")
    last = rows(tmp_path / "run", "metrics.jsonl")[-1]
    assert state["step"] >= last["step"] > 0
    (session,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert session["ranks"] == 2


def test_a_killed_rank_ends_the_run_with_one_message(tmp_path):
    """The run resumes from its last checkpoint, also on one rank."""
    keys = ["train.epochs=400", "train.log_every=2", "checkpoint.every=2"]
    processes = start_ranks("-c", ENDS.format("die"), recipe_file(tmp_path, *keys), folder=tmp_path)
    rest = said(processes)
    assert [process.returncode for process in processes] == [EXIT_ERROR, -signal.SIGKILL]
    assert rest.count("error: ") == 1, rest
    assert "error: rank 1 died or stopped responding; all ranks are stopping" in rest
    assert "spiketriton/training/trainer.py" not in rest, "no traceback of ours"
    resumed = small_trainer(tmp_path / "run", *keys, resume=True)
    assert resumed.step == 4
    assert resumed.fit(until=6).saved_at == 6


STOPS = """
import ctypes, os, signal
from spiketriton.system import group
from spiketriton.system.torchrun import ranks_of_torchrun
group.PULSE, group.PATIENCE = 0.02, 0.1
with ranks_of_torchrun() as ranks:
    ranks.most(1.0)
    if ranks.rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    ctypes.CDLL(None).pause()  # as NCCL does: waits, raises nothing and lets no signal handler of Python's run
"""


def test_a_rank_that_waits_for_a_stopped_one_in_a_call_that_never_returns_ends(tmp_path):
    first, second = start_ranks("-c", STOPS, folder=tmp_path)
    rest, _ = first.communicate()
    second.send_signal(signal.SIGKILL)
    assert "error: rank 1 died or stopped responding; all ranks are stopping" in rest
    assert (first.returncode, second.wait()) == (EXIT_ERROR, -signal.SIGKILL)


@pytest.mark.parametrize("moment", ["start", "step"])
def test_a_mistake_is_reported_once(tmp_path, moment):
    """One that all ranks make, before any work; and one of the second, in the middle of training."""
    if moment == "start":
        name = recipe_file(tmp_path, "train.batch_size=15")
        words = ["-m", "spiketriton.train", name, "--run-dir", "run"]
        message = "train.batch_size = 15 does not divide by train.accumulate = 1 on 2 ranks"
    else:
        words = ["-c", ENDS.format("make_a_mistake"), recipe_file(tmp_path)]
        message = "on rank 1: no such image"
    processes = start_ranks(*words, folder=tmp_path)
    output = said(processes)
    assert [process.returncode for process in processes] == [EXIT_USER, EXIT_USER]
    assert output.count("error: ") == 1, output
    assert f"error: {message}" in output
    assert "spiketriton/training/trainer.py" not in output, "no traceback of ours"
    assert (tmp_path / "run").exists() == (moment == "step"), "no work, no folder"


ENDS = """
import sys
import tests.ranks.test_commands as t
from spiketriton.system import group
from spiketriton.system.errors import run_command
from spiketriton.train import main
group.PATIENCE = 3.0
t.end_at(5, t.{})
run_command(main, [sys.argv[1], "--run-dir", "run"])
"""  # the real command, but that the second rank ends at a step


def end_at(step: int, how: Callable[[], None]) -> None:
    """The second rank ends at a step as `how` says."""
    train_step = Trainer.train_step

    def until(self: Trainer) -> None:
        if self.step == step - 1 and self.ranks.rank == 1:
            how()
        train_step(self)

    Trainer.train_step = until  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_a_mistake() -> None:
    raise UserError("no such image")
