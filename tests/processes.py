"""Processes that find everything imported: a server imports the engine once, and forks each of them.

They are processes of their own, with their own group, folder, variables, output and exit code, as a shell would
start them, without the four seconds of processor that imports take. The server is as old as the first call and
knows nothing of what tests have changed in theirs.

from tests.processes import Forked, started
"""

import atexit
import contextlib
import fcntl
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.child import ROOT, environment

LONGEST = 600  # seconds, of any of them
IMPORTED = (
    "spiketriton.api",
    "spiketriton.training.session",
    "spiketriton.show.run_pictures",
    "spiketriton.data.digits",
    "spiketriton.models.resnet",
    "spiketriton.models.feedforward",
    "tests.small_runs",
)
"""By the server, before it forks: what a training needs, and pytest, which programs of tests import."""


class Forked:
    """What subprocess.Popen is, for `python *words`: "-m", a module and arguments; or "-c", a program and arguments.

    Its errors go where its output goes, unless `errors` names a file. terminal: both are this terminal, and it is the
    process's own. pictures: whether a training ends with them, which take most of a short run's seconds.
    """

    def __init__(
        self,
        *words: str,
        folder: Path | None = None,
        errors: Path | None = None,
        terminal: int | None = None,
        pictures: bool = False,
        **variables: str,
    ) -> None:
        read, write = os.pipe() if terminal is None else (None, os.dup(terminal))
        self._status, status = os.pipe()
        call = {
            "words": words,
            "folder": str(folder or Path.cwd()),
            "errors": errors and str(errors),
            "terminal": terminal is not None,
            "pictures": pictures,
            "variables": environment(**variables),
        }
        message = json.dumps(call).encode()
        _server().sendall(len(message).to_bytes(4, "big") + message)
        socket.send_fds(_server(), [b"+"], [write, status])
        os.close(write)
        os.close(status)
        self.stdout = None if read is None else open(read, encoding="utf-8")  # noqa: SIM115
        self.pid = int(_line(self._status))
        self.returncode: int | None = None

    def wait(self, timeout: float = LONGEST) -> int:
        if self.returncode is None:
            assert select.select([self._status], [], [], timeout)[0], "it hangs"
            self.returncode = int(_line(self._status))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float = LONGEST) -> tuple[str, None]:
        """The rest of the output; a process that takes longer is killed with its group, and its output the error."""
        assert self.stdout is not None
        late = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        late.start()
        said = self.stdout.read()
        self.wait()
        assert late.is_alive(), f"it hangs:\n{said}"
        late.cancel()
        return said, None

    def send_signal(self, number: int) -> None:
        """To the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def done(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What subprocess.run returns, output and errors apart."""
    with tempfile.TemporaryDirectory() as elsewhere:
        errors = Path(elsewhere) / "errors"
        process = Forked(*words, folder=folder, errors=errors, **variables)
        said, _ = process.communicate()
        return subprocess.CompletedProcess(words, process.wait(), said, errors.read_text())


def said_by(code: str, *words: str) -> Any:
    """What the program says in JSON in its last line. In it Triton compiles, and interprets no kernel."""
    ended = done("-c", code, *words, folder=ROOT)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def start_ranks(*words: str, folder: Path, world: int = 2) -> list[Forked]:
    """The ranks of a run, as torchrun starts them, with the store in this process as it is in torchrun's."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    processes = [
        Forked(*words, folder=folder, RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(world)
    ]
    processes[0].store = store  # type: ignore[attr-defined] - which lives as long as they
    return processes


def said(processes: list[Forked]) -> str:
    """All that they say until they have ended."""
    return "".join(process.communicate()[0] for process in processes)


def _line(file: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(file, 1)
        assert byte, "the server has died"
        line += byte
    return line


# ---- the server


_running: list[subprocess.Popen] = []


@cache
def _server() -> socket.socket:
    """Our end of the connection with which it ends."""
    ours, theirs = socket.socketpair()
    code = f"import tests.processes as p; p.serve({theirs.fileno()})"
    variables = environment(PYTHONUNBUFFERED="1")
    variables.pop("TRITON_INTERPRET", None)  # of the test that comes first
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=variables,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    _running.append(process)
    theirs.close()
    return ours


def serve(number: int) -> None:
    """Forks a process for each call; of each, a keeper tells its number, waits, and tells its exit code."""
    # the last thing of all in a process: nanobind, in Triton, calls what is frozen below a leak
    atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)
    for module in IMPORTED:
        import_module(module)
    gc.collect()
    gc.freeze()  # a process then ends without looking through all that it found: 0.3 seconds, not 1.4
    connection = socket.socket(fileno=number)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # of keepers
    while head := connection.recv(4, socket.MSG_WAITALL):
        call = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        _, (out, status), _, _ = socket.recv_fds(connection, 1, 2)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            _keep(call, out, status)
        os.close(out)
        os.close(status)


def _keep(call: dict, out: int, status: int) -> None:
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _become(call, out)
        return
    os.close(out)
    os.write(status, f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(status, f"{code}\n".encode())
    os._exit(0)


def _become(call: dict, out: int) -> None:
    """Runs the call and leaves as Python does; what it raises is seen and counted as by Python itself."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as do those of nohup
    if not call["pictures"]:
        import spiketriton.training.session

        spiketriton.training.session.draw_run = lambda *_: []
    os.setsid()
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["variables"])
    if call["terminal"]:
        fcntl.ioctl(out, termios.TIOCSCTTY, 0)
        os.dup2(out, 0)
    errors = os.open(call["errors"], os.O_WRONLY | os.O_CREAT) if call["errors"] else out
    os.dup2(out, 1)
    os.dup2(errors, 2)
    for file in {out, errors}:
        os.close(file)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = io.TextIOWrapper(open(number, "wb", 0, closefd=False), "utf-8", write_through=True)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    option, what, *arguments = call["words"]
    sys.argv = [option, *arguments]
    if option == "-c":
        exec(compile(what, "-c", "exec"), {"__name__": "__main__"})
    else:
        if "." in what:  # a module, which is run anew; not the package
            sys.modules.pop(what, None)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    sys.exit(0)
