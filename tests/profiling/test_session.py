"""Rows on disk as they come, patience, and what becomes of a contender that fails."""

import json
import os
import sys
import time

import pytest
import torch

from profiling.harness import session
from profiling.harness.contenders import OURS, Case, Contender, Status, Unavailable, Work
from profiling.harness.session import ALLOCATOR, Session
from profiling.harness.timing import QUICK
from spiketriton.system.errors import UserError

EVERY_ROW = {
    "section", "run", "status", "device", "device_type", "cpu", "threads", "spiketriton", "commit",
    "dirty", "python", "torch", "triton", "allocator", "quick", "command", "cuda", "platform",
}  # fmt: skip


class Idle(Work):
    """Takes one second more at each sample."""

    device, taken = torch.device("cpu"), 0

    def prepare(self, effort) -> None: ...

    def sample(self) -> float:
        self.taken += 1
        return self.taken


class Wrong(Idle):
    def check(self) -> dict:
        return {"status": Status.WRONG, "why": "it guesses"}

    def prepare(self, effort) -> None:
        raise AssertionError("what is wrong is not timed")


class Some(Case):
    """Ours and others."""

    def __init__(self, **builds) -> None:
        self.spec, self.builds = {"recipe": "some", "T": 1}, builds

    def contenders(self, options):
        return [Contender(name, build, {"package": name}) for name, build in self.builds.items()]

    def numbers(self, timings):
        return {name: {"derived": timing.median} for name, timing in timings.items()}


def raising(error: BaseException):
    def build():
        raise error

    return build


def test_a_row_has_its_case_its_numbers_and_where_it_was_measured(measured):
    of = measured(Some(copy=Idle, spiketriton=Idle, wrong=Wrong, unwanted=Wrong), OURS, "wro*")
    assert of.keys() == {"copy", OURS, "wrong"}
    assert all(row.keys() >= EVERY_ROW for row in of.values())
    ours = of[OURS]
    assert (ours["recipe"], ours["package"]) == ("some", OURS)
    assert (ours["median_ms"], ours["samples"], ours["derived"]) == (2000, QUICK.least, 2)
    assert of["copy"]["times_ours"] == 1
    assert of["wrong"]["status"] == Status.WRONG
    assert "median_ms" not in of["wrong"]
    told = [f"{name}={os.environ[name]}" for name in ALLOCATOR if name in os.environ]
    assert ours["allocator"] == " ".join(told) or "default"


@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (Unavailable("no\nGPU"), Status.MISSING, "no GPU"),
        (UserError("its files are missing"), Status.MISSING, "its files are missing"),
        (torch.OutOfMemoryError("x" * 500), Status.TOO_LARGE, "x" * 200),
        (ValueError("y" * 500), Status.FAILED, "ValueError: " + "y" * 300),
    ],
)
def test_what_keeps_a_contender_away_is_in_its_row_and_on_the_screen(
    error, status, why, measured, capsys
):
    of = measured(Some(broken=raising(error), spiketriton=Idle))
    assert (of["broken"]["status"], of["broken"]["why"]) == (status, why)
    assert of[OURS]["status"] == Status.OK
    assert f"kernels: broken: {status}: {why}" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):  # is no contender's failure
        measured(Some(broken=raising(KeyboardInterrupt())))


def test_what_is_beyond_the_minutes_is_named_and_ours_is_kept(quick, tmp_path):
    one = Session(quick, tmp_path, minutes=1e-9)
    one.measure("step", [Some(spiketriton=Idle)])
    row = json.loads(one.file.read_text())
    assert (row["status"], row["recipe"]) == (Status.NOT_REACHED, "some")
    assert "contender" not in row
    one = Session(quick, tmp_path, minutes=1)

    def late() -> Idle:
        one.deadline = 0
        return Idle()

    one.measure("step", [Some(before=late, spiketriton=Idle, after=Idle)])
    of = {row["contender"]: row for row in one.rows}
    assert of[OURS]["samples"] == QUICK.least  # the race ends as early as it may
    assert of["before"]["status"] == Status.OK
    assert of["after"]["status"] == Status.NOT_REACHED


def test_what_compiles_longer_than_there_is_time_is_stopped(quick, tmp_path, monkeypatch):
    """Also where a compiler reports every Exception as its own; the next contender is measured."""
    monkeypatch.setattr(session, "PREPARING", (0.05, 0.05))

    def slow() -> Idle:
        try:
            time.sleep(60)
        except Exception as error:
            raise RuntimeError("backend failed") from error
        return Idle()

    one = Session(quick, tmp_path, minutes=1)
    one.measure("step", [Some(compiled=slow, spiketriton=Idle)])
    of = {row["contender"]: row for row in one.rows}
    assert of["compiled"]["status"] == Status.NOT_REACHED
    assert of[OURS]["status"] == Status.OK


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_the_process_starts_anew_once_with_the_allocator(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    session.reexecute(["run.py", "all"], {"HOME": "/", "KINETO_LOG_LEVEL": "1"})
    ((path, argv, environ),) = started
    assert argv == [path, "run.py", "all"]
    assert environ == {"HOME": "/", "KINETO_LOG_LEVEL": "1"} | ALLOCATOR
    session.reexecute(argv, environ)
    assert len(started) == 1
