"""`--base REV`: another commit of the package, checked out in a worktree, as one more contender.

Another process imports that commit's package and builds the same case with this profiling code. It
answers line by line over pipes, one sample at a time, so that old and new take turns in one race.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiling.contenders import OURS, Contender, Options, Section, Spec, Verdict
from profiling.memory import Memory
from profiling.timing import Effort
from spiketriton.errors import UserError, one_line

ROOT = Path(__file__).resolve().parent.parent

SERVE = """\
import sys
sys.path.append(sys.argv.pop(1))  # behind the worktree's packages, which PYTHONPATH names
from profiling.run import serve
serve(sys.argv[1:])
"""


class Base:
    """A worktree of the commit `rev` and the process that measures it; a context manager.

    UserError: git knows no such commit.
    """

    def __init__(self, rev: str, arguments: list[str]) -> None:
        found = _git("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}")
        if found.returncode:
            raise UserError(f"--base {rev!r}: accepted: a commit, branch or tag of this repository")
        self.commit = found.stdout.strip()
        self.arguments = arguments
        self.folder = Path(tempfile.mkdtemp(prefix="spiketriton-base-"))
        self.process: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        return f"{OURS} @{self.commit[:8]}"

    def __enter__(self) -> Base:
        tree = self.folder / "tree"
        added = _git("worktree", "add", "--detach", str(tree), self.commit)
        if added.returncode:
            raise UserError(f"--base: git worktree add failed: {one_line(added.stderr)}")
        shutil.rmtree(tree / "profiling", ignore_errors=True)  # both sides run this one
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, str(ROOT), *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}"},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        _git("worktree", "remove", "--force", str(self.folder / "tree"))
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, do: str, **arguments: Any) -> Any:
        """The process's answer; RuntimeError with its words when it could not."""
        self.requests.write(json.dumps({"do": do, **arguments}) + "\n")
        self.requests.flush()
        line = self.answers.readline()
        if not line:
            raise RuntimeError(f"the process of {self.commit[:8]} ended; its words are above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def contenders(self, spec: Spec) -> list[Contender]:
        facts = {"base_commit": self.commit}
        return [Contender(self.name, lambda: RemoteWork(self, spec), facts)]


class RemoteWork:
    """Our work on a case, in the other commit's process."""

    def __init__(self, base: Base, spec: Spec) -> None:
        self.base = base
        base.ask("build", spec=spec)

    def check(self) -> Verdict:
        return Verdict(**self.base.ask("check"))

    def prepare(self, effort: Effort) -> None:
        self.base.ask("prepare", effort=vars(effort))

    def sample(self) -> float:
        return self.base.ask("sample")

    def memory(self) -> Memory:
        return Memory(**self.base.ask("memory"))


def answer_requests(section: Callable[[Spec], Section], options: Options) -> None:
    """The other process: answers requests from stdin until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    work: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            value: Any = None
            if request["do"] == "build":
                spec = request["spec"]
                contenders = section(spec).contenders(spec, options)
                work = next(c for c in contenders if c.name == OURS).build()
            elif request["do"] == "check":
                value = vars(work.check())
            elif request["do"] == "prepare":
                work.prepare(Effort(**request["effort"]))
            elif request["do"] == "sample":
                value = work.sample()
            elif request["do"] == "memory":
                value = vars(work.memory())
            answer = {"value": value}
        except Exception as error:  # told to the parent, which puts it into the row
            answer = {"error": f"{type(error).__name__}: {one_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
