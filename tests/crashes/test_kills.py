"""A run that is killed again and again, at any instant, ends with the same bits.

Each session is forked, so a kill costs a fraction of a second. The kills are SIGKILL from outside at random instants
of the session, and deaths at chosen points while a checkpoint is written, which random instants rarely hit.
"""

import contextlib
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from spiketriton.config import to_toml
from spiketriton.runs.checkpoint import Checkpoints, read_checkpoint
from spiketriton.runs.rows import Rows
from spiketriton.system.errors import EXIT_DONE
from tests.processes import Forked
from tests.small_runs import assert_equal, small_recipe, untimed

EVERY = 3
KEYS = [
    "model.name=mlp",
    "model.depth=4",
    "model.width=32",
    "data.augment=strong",
    "data.validation=0.05",
    "train.log_every=1",
    "train.accumulate=2",
    f"checkpoint.every={EVERY}",
]

# ---- the process that is killed

SESSION = """
import sys
import tests.crashes.test_kills as t
from spiketriton.system.errors import run_command
from spiketriton.train import main
t.die_at(sys.argv[1])
run_command(main, sys.argv[2:])
"""


def die_at(death: str) -> None:
    """Lets this process die at a place such as "write 3": in the third file of a checkpoint.

    "write": with half of its bytes in the file (at a limit of the kernel's, whose signal kills);
    "rename": before a file is moved to where it belongs.
    """
    if not death:
        return
    kind, count = death.split()
    left = int(count)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event != {"write": "open", "rename": "os.rename"}[kind]:
            return
        path = str(arguments[0])
        if "/checkpoints/" not in path or (kind == "write" and not path.endswith(".part")):
            return
        left -= 1
        if left == 0 and kind == "rename":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, HALF))

    sys.addaudithook(look)


HALF = 20_000  # bytes: less than a checkpoint of the small net


# ---- the one who kills


class Killer:
    """Starts sessions of runs, and kills them."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self.seconds = 0.0  # of the first session, which is not killed
        self.kills = self.torn = self.repeated = 0

    def session(self, folder: Path, delay: float = 600, death: str = "") -> int:
        """One session of the run in `folder`; its exit code, or -9 when it was killed after `delay` seconds."""
        begun = (folder / "recipe.toml").exists()
        words = ["--resume", folder] if begun else [self.recipe, "--run-dir", folder]
        before, start = self.progress(folder), time.perf_counter()
        process = Forked("-c", SESSION, death, *map(str, words))
        kill = threading.Timer(delay, self.kill, [process.pid])
        kill.start()
        assert process.stdout is not None
        log, code = process.stdout.read(), process.wait()
        kill.cancel()
        self.seconds = self.seconds or time.perf_counter() - start
        assert "Traceback" not in log, log
        if code == EXIT_DONE:
            return code
        assert code in (-signal.SIGKILL, -signal.SIGXFSZ), log
        self.kills += 1
        self.torn += any(folder.glob("checkpoints/*.part"))
        kept, reached = self.progress(folder)
        assert reached - kept <= EVERY
        assert kept >= before[0], "a kill has cost an earlier checkpoint"
        self.repeated = max(self.repeated, reached - kept)
        return code

    @staticmethod
    def kill(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself just now
            os.kill(pid, signal.SIGKILL)

    @staticmethod
    def progress(folder: Path) -> tuple[int, int]:
        """The step from which a resumed run would continue, and the last one that was taken."""
        state = Checkpoints(folder / "checkpoints", warn=pytest.fail).load()
        steps = [row["step"] for row in Rows(folder / "metrics.jsonl").read()]
        return (state["step"] if state else 0), max(steps, default=0)


@pytest.fixture(scope="module")
def killer(tmp_path_factory) -> Killer:
    recipe = tmp_path_factory.mktemp("recipe") / "small.toml"
    recipe.write_text(to_toml(small_recipe(*KEYS)))
    return Killer(recipe)


@pytest.fixture(scope="module")
def unbroken(killer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert killer.session(folder) == EXIT_DONE
    return folder


def assert_same_bits(unbroken: Path, killed: Path) -> None:
    """Checkpoints and rows of both runs, without times."""
    for name in ("last.pt", "last.1.pt", "best.pt"):
        states = [read_checkpoint(run / "checkpoints" / name) for run in (unbroken, killed)]
        for state in states:
            del state["seconds"]
        assert_equal(*states, where=name)
    for name in ("metrics.jsonl", "gradients.jsonl"):
        one, other = (untimed(Rows(run / name).read()) for run in (unbroken, killed))
        assert one, name
        assert one == other, name
    assert not list(killed.glob("**/*.part")), "a half-written file was left behind"


@pytest.mark.parametrize(
    "kills", [3, pytest.param(50, marks=pytest.mark.slow)], ids="{} kills".format
)
def test_killed_at_random_instants(killer, unbroken, tmp_path, kills):
    """Runs are killed and resumed until each has ended, uniformly over a session's time."""
    draw = random.Random(kills)
    goal, runs = killer.kills + kills, 0
    while killer.kills < goal:
        folder = tmp_path / f"run{runs}"
        runs += 1
        while killer.kills < goal and killer.session(folder, draw.uniform(0, killer.seconds)) < 0:
            pass
        assert killer.session(folder) == EXIT_DONE
        assert_same_bits(unbroken, folder)
    print(
        f"{kills} kills in {runs} runs, {killer.torn} while a checkpoint was written; "
        f"{killer.repeated} steps repeated at most"
    )


SELDOM = [pytest.param(death, marks=pytest.mark.slow) for death in ("write 1", "rename 4")]


@pytest.mark.parametrize("death", ["write 4", "rename 6", "write 14", *SELDOM])
def test_killed_in_the_middle_of_a_checkpoint(killer, unbroken, tmp_path, death):
    """Half a file, a whole file without its name, the moment between two renames, and the last of all."""
    torn = killer.torn
    assert killer.session(tmp_path / "run", death=death) < 0
    assert killer.torn == torn + 1
    assert killer.session(tmp_path / "run") == EXIT_DONE
    assert_same_bits(unbroken, tmp_path / "run")
