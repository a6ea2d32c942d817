"""The register of runs that were planned: its commands load, and a row takes the best of its group."""

import subprocess

import pytest

from spiketriton.config import load_recipe
from spiketriton.runs.rows import Rows
from spiketriton.system.errors import UserError
from studies.results import register
from studies.results import run as results
from tests.small_runs import QUICK, small_trainer

REGISTERED = register.read()


def test_names_are_those_of_one_run():
    names = [row["name"] for row in REGISTERED]
    assert len({*names}) == len(names)
    assert {row["kind"] for row in REGISTERED} == {"rate", "row"}


@pytest.mark.parametrize("row", REGISTERED, ids=[row["name"] for row in REGISTERED])
def test_every_command_is_a_recipe(row):
    recipe, *words = row["command"].split()
    given = [word for word in words if "=best" not in word]
    found = load_recipe(recipe, given)
    if row["kind"] == "rate":
        assert found.data.validation == 0.1
        assert found.train.epochs == register.epochs_of(row)
    else:
        assert found.data.validation == 0
        known = {one["name"]: one for one in results.read()}
        assert row["test"] == known.get(row["name"], {}).get("accuracy", "")
    for word in words:
        if "=best" in word:  # of a group that has such a key
            group = word.partition(":")[2] or row["group"]
            key = word.partition("=")[0]
            rates = [r for r in REGISTERED if (r["group"], r["kind"]) == (group, "rate")]
            assert rates
            assert all(f" {key}=" in rate["command"] for rate in rates)


ROWS = [
    {"group": g, "name": n, "kind": k, "command": c, "validation": v, "test": ""}
    for g, n, k, c, v in (
        ("a", "a1", "rate", "r train.lr=1 x=7", "50.10"),
        ("a", "a2", "rate", "r train.lr=2 x=8", "50.20"),
        ("b", "b1", "rate", "r train.lr=3", ""),
        ("a", "row", "row", "r train.lr=best x=best seed=1", ""),
        ("c", "other", "row", "r train.lr=best:a", ""),
        ("b", "early", "row", "r train.lr=best", ""),
    )
]


def test_a_row_takes_the_best_of_its_group():
    *_, row, other, early = ROWS
    assert register.words_of(row, ROWS) == ["r", "train.lr=2", "x=8", "seed=1"]
    assert register.words_of(other, ROWS) == ["r", "train.lr=2"]
    with pytest.raises(UserError, match=r"train\.lr of b is not known before b1"):
        register.words_of(early, ROWS)
    assert [one["name"] for one in register.left(ROWS)] == ["b1", "row", "other", "early"]
    assert [one["name"] for one in register.left(ROWS, ["a", "early"])] == ["row", "early"]
    with pytest.raises(
        UserError, match="earl is no group and no run of the register; it has early"
    ):
        register.left(ROWS, ["earl"])


def test_what_has_ended_is_taken_in(tmp_path):
    small_trainer(tmp_path / "run", *QUICK, "train.epochs=1", "data.validation=0.2").fit()
    tests = Rows(tmp_path / "run" / "metrics.jsonl").read()
    for epochs, ended in ((1, True), (2, False)):
        row = {"kind": "rate", "name": "a", "command": f"r train.epochs={epochs}", "validation": ""}
        assert register.take(row, tmp_path / "run", "") == ended
        found = results.percent(tests[-1]["validation_accuracy"]) if ended else ""
        assert row["validation"] == found


@pytest.mark.parametrize(("given", "threads"), [("seed=1", "1"), ("train.threads=2", "2")])
def test_a_run_has_one_thread_unless_its_command_says_otherwise(
    tmp_path, monkeypatch, given, threads
):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    register.train("a", tmp_path / "a", ["cifar10_r18", given], "data")
    (command,) = commands
    assert [word for word in command if "threads" in word] == [f"train.threads={threads}"]
