"""A run that is killed again and again, at any instant, ends with the same bits.

A server process imports everything once and forks a child for each session, so a kill costs a
fraction of a second. The kills are SIGKILL from outside at random instants of the session, and
deaths at chosen points while a checkpoint is written, which random instants rarely hit.
"""

import contextlib
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spiketriton.config import to_toml
from spiketriton.errors import EXIT_DONE
from spiketriton.runs.checkpoint import Checkpoints, read_checkpoint
from spiketriton.runs.rows import Rows
from tests.child import environment
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
    "monitor.every=2",
    f"checkpoint.every={EVERY}",
]

# ---- the process that is killed

SERVER = "import tests.promises.test_kills; tests.promises.test_kills.serve()"


def serve() -> None:
    """Forks a session for each line `death:recipe or nothing:folder`; says its pid, then how it ended."""
    from spiketriton import session
    from spiketriton.train import main

    session.draw_run = (
        lambda *_: []
    )  # pictures of a run that has ended: most of a session's seconds
    for line in sys.stdin:
        death, recipe, folder = line.rstrip("\n").split(":")
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            die_at(death)
            os._exit(main([recipe, "--run-dir", folder] if recipe else ["--resume", folder]))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


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
    """Starts sessions in the server; `folder` is the run's."""

    def __init__(self, server: subprocess.Popen, recipe: Path) -> None:
        self.server, self.recipe = server, recipe
        self.seconds = 0.0  # of the first session, which is not killed
        self.kills = self.torn = self.repeated = 0

    def session(self, folder: Path, delay: float | None = None, death: str = "") -> int:
        """One session of the run; its exit code, or -9 when it was killed after `delay` seconds."""
        begun = (folder / "recipe.toml").exists()
        before = self.progress(folder)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{death}:{'' if begun else self.recipe}:{folder}\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        start = time.perf_counter()
        if delay is not None and not select.select([self.server.stdout], [], [], delay)[0]:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself just now
                os.kill(pid, signal.SIGKILL)
        code = int(self.server.stdout.readline())
        self.seconds = self.seconds or time.perf_counter() - start
        log = folder.with_name(folder.name + ".log").read_text()
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
    def progress(folder: Path) -> tuple[int, int]:
        """The step from which a resumed run would continue, and the last one that was taken."""
        state = Checkpoints(folder / "checkpoints", keep=1, warn=pytest.fail).load()
        steps = [row["step"] for row in Rows(folder / "metrics.jsonl").read()]
        return (state["step"] if state else 0), max(steps, default=0)


@pytest.fixture(scope="module")
def killer(tmp_path_factory) -> Iterator[Killer]:
    recipe = tmp_path_factory.mktemp("recipe") / "small.toml"
    recipe.write_text(to_toml(small_recipe(*KEYS)))
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as server:
        yield Killer(server, recipe)
        assert server.stdin is not None
        server.stdin.close()


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
    "kills", [4, pytest.param(50, marks=pytest.mark.slow)], ids="{} kills".format
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


@pytest.mark.parametrize("death", ["write 1", "write 4", "rename 4", "rename 6", "write 14"])
def test_killed_in_the_middle_of_a_checkpoint(killer, unbroken, tmp_path, death):
    """Half a file, a whole file without its name, the moment between two renames, and the last of all."""
    torn = killer.torn
    assert killer.session(tmp_path / "run", death=death) < 0
    assert killer.torn == torn + 1
    assert killer.session(tmp_path / "run") == EXIT_DONE
    assert_same_bits(unbroken, tmp_path / "run")
